// The part of CUDA that the kernels and their launchers use, on the executor: this folder stands in for the toolkit's
// headers where IMC_BUILD_CUDA=simt builds the sources of csrc/cuda with a C++ compiler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#include "coarse_math.h"
#include "simt/executor.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using simt::blockDim;
using simt::blockIdx;
using simt::gridDim;
using simt::threadIdx;

inline void __threadfence() { simt::fence(); }
inline void __threadfence_system() { simt::fence(); }
inline void __threadfence_block() {}
inline void __syncthreads() { simt::sync_block(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::sync_warp(mask); }

namespace simt {
template <typename T>
T exchange_value(unsigned mask, T value, unsigned source_lane) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, source_lane);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return simt::exchange_value(mask, value, static_cast<unsigned>(source));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return simt::exchange_value(mask, value, simt::lane() ^ static_cast<unsigned>(bits));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  const unsigned source = simt::lane() + distance;
  return simt::exchange_value(mask, value, source < 32 ? source : simt::lane());
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  return simt::exchange_value(mask, value, simt::lane() >= distance ? simt::lane() - distance : simt::lane());
}
inline unsigned __ballot_sync(unsigned mask, int vote) { return simt::ballot(mask, vote != 0); }
inline int __any_sync(unsigned mask, int vote) { return simt::ballot(mask, vote != 0) != 0; }
inline int __all_sync(unsigned mask, int vote) { return simt::ballot(mask, vote == 0) == 0; }

// The value before.
namespace simt {
template <typename T, typename Update>
T atomic(T* address, Update update) {
  T old{};
  atomically(address, sizeof(T), [&](void* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    old = value;
    value = update(value);
    std::memcpy(at, &value, sizeof value);
  });
  return old;
}
}  // namespace simt

template <typename T>
T atomicAdd(T* address, T value) {
  return simt::atomic(address, [&](T old) { return old + value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return simt::atomic(address, [&](T old) { return max(old, value); });
}
template <typename T>
T atomicMin(T* address, T value) {
  return simt::atomic(address, [&](T old) { return min(old, value); });
}
template <typename T>
T atomicExch(T* address, T value) {
  return simt::atomic(address, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  return simt::atomic(address, [&](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return simt::atomic(address, [&](unsigned old) { return old >= last ? 0 : old + 1; });
}

// The host's functions. The executor throws, so all of them succeed.

enum cudaError_t { cudaSuccess = 0 };
using cudaStream_t = struct CUstream_st*;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const simt::Limits& device = simt::limits();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(device.shared_per_block);
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.largest_cluster > 1 ? 9 : 8;
  }
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads, std::size_t shared_bytes) {
  *blocks = simt::occupancy(static_cast<unsigned>(threads), shared_bytes);
  return cudaSuccess;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative, cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttributeValue {
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  simt::Launch launch{{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}};
  launch.shared_bytes = config->dynamicSmemBytes;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) launch.cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension) launch.cluster = attribute.val.clusterDim.x;
  }
  const std::tuple<Parameters...> values{static_cast<Parameters>(arguments)...};
  simt::launch(launch, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}
