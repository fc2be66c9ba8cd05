// Device primitives the kernels share. What differs between nvcc and the executor on which the tests run the same
// kernels on the CPU (csrc/simt) stands here and in device.cuh.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

namespace imc::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

__device__ __forceinline__ void from_float(float x, float& to) { to = x; }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16(x); }
__device__ __forceinline__ void from_float(float x, __half& to) { to = __float2half(x); }

// N neighbours that move as one access of up to 16 bytes.
template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T v[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& values) {
  *reinterpret_cast<Pack<T, N>*>(to) = values;
}

// Loads in flight: 16-byte ones of a warp cover 1024 elements.
template <typename T, int kWidth>
constexpr int kBatch = kWidth > 1 ? 2 * sizeof(T) : 4;

// Calls visit(k, Pack of kWidth floats) for this lane's share of a row, with kBatch loads in flight.
template <int kWidth, int kBatch, typename T, typename Visit>
__device__ __forceinline__ void read_row(const T* __restrict__ row, int length, int lane, Visit visit) {
  constexpr int kStep = kWarp * kWidth;
#pragma unroll 1
  for (int first = lane * kWidth; first < length; first += kBatch * kStep) {
    Pack<T, kWidth> raw[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * kStep < length) raw[i] = load<kWidth>(row + first + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * kStep >= length) break;
      Pack<float, kWidth> values;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values.v[j] = to_float(raw[i].v[j]);
      visit(first + i * kStep, values);
    }
  }
}

#ifdef __CUDA_ARCH__
// Larger and smaller of two, where a NaN wins.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(a), "f"(b));
  return a;
}
__device__ __forceinline__ float min_or_nan(float a, float b) {
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(a), "f"(b));
  return a;
}
// 2^x, within two units in the last place; 0 where that is below the normal numbers.
__device__ __forceinline__ float exp2_normal(float x) {
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(x));
  return x;
}
#else
__device__ __forceinline__ float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float min_or_nan(float a, float b) { return a < b || a != a ? a : b; }
__device__ __forceinline__ float exp2_normal(float x) {
  const float result = exp2f(x);
  return result < FLT_MIN ? 0 : result;
}
#endif

__device__ __forceinline__ float safe_log(float x) { return logf(x < FLT_MIN ? FLT_MIN : x); }

template <typename T, typename Operation>
__device__ __forceinline__ T warp_reduce(T x, Operation operation) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = operation(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

// IMC_SHARED(float, sums, 32) declares the block's shared array float sums[32].
#ifdef __CUDACC__
#define IMC_SHARED(type, name, size) __shared__ type name[size]
#else
#define IMC_SHARED(type, name, size)                       \
  static const char name##_key = 0;                        \
  type(&name)[size] = *static_cast<type(*)[size]>(simt::shared_variable(&name##_key, sizeof(type[size])))
#endif

// The sum over the block, in every thread.
template <int kWarps>
__device__ __forceinline__ float block_sum(float x) {
  IMC_SHARED(float, sums, kWarps);
  x = warp_reduce(x, [](float a, float b) { return a + b; });
  __syncthreads();  // the last sum may still be read
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += sums[i];
  return total;
}

__device__ __forceinline__ float* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ float4 dynamic_shared_memory[];
  return reinterpret_cast<float*>(dynamic_shared_memory);
#else
  return static_cast<float*>(simt::dynamic_shared());
#endif
}

__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

// Clusters exist from sm_90 on; the launchers use none before.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHaveClusters = true;

__device__ __forceinline__ void cluster_sync() { cooperative_groups::this_cluster().sync(); }

// The same variable in the shared memory of another block of the cluster.
template <typename T>
__device__ __forceinline__ T* cluster_peer(T* variable, int rank) {
  return cooperative_groups::this_cluster().map_shared_rank(variable, rank);
}
#else
constexpr bool kHaveClusters = false;

__device__ __forceinline__ void cluster_sync() {}
template <typename T>
__device__ __forceinline__ T* cluster_peer(T* variable, int) {
  return variable;
}
#endif

}  // namespace imc::cuda
