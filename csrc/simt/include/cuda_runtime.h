// The part of CUDA that the kernels and their launchers use, on the executor: this folder stands in for the toolkit's
// headers where IMC_BUILD_CUDA=simt builds the sources of csrc/cuda with a C++ compiler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

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
