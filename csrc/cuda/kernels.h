// Every CUDA kernel's launch. They are asynchronous on `stream` (a cudaStream_t) of `device`, and take memory from their
// caller alone. T is float, __nv_bfloat16 or __half. Matrices are contiguous, the last index runs fastest; a null
// gradient is not computed. A workspace is aligned to 16 bytes, and holds nothing that lasts.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define IMC_INSTANTIATE_CUDA(kernel)                             \
  template decltype(kernel<float>) kernel<float>;                 \
  template decltype(kernel<__nv_bfloat16>) kernel<__nv_bfloat16>; \
  template decltype(kernel<__half>) kernel<__half>;

namespace imc::cuda {

int64_t sinkhorn_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device);

// rows and columns, where not null, receive the logarithms (base 2) of the scalings after each iteration, for scores
// from which the first one of their problem is subtracted.
template <typename T>
void sinkhorn(const T* scores,         // [problems, batch, prototypes]
              const float* marginals,  // [prototypes], each prototype's share of the mass; null: all the same
              T* assignments,          // [problems, batch, prototypes]
              float* rows,             // [problems, iterations, batch]
              float* columns,          // [problems, iterations, prototypes]
              float* workspace,        // sinkhorn_workspace_bytes(...)
              int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int device,
              uintptr_t stream);

int64_t sinkhorn_backward_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device);

template <typename T>
void sinkhorn_backward(const T* scores,          // [problems, batch, prototypes]
                       const float* marginals,   // [prototypes] or null
                       const float* rows,        // [problems, iterations, batch]
                       const float* columns,     // [problems, iterations, prototypes]
                       const T* grad_output,     // [problems, batch, prototypes]
                       T* gradient,              // [problems, batch, prototypes]
                       float* workspace,         // sinkhorn_backward_workspace_bytes(...)
                       int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations,
                       int device, uintptr_t stream);

}  // namespace imc::cuda
