#pragma once

#include <cstdint>

namespace imc::cuda {

// Bytes of device memory that `sinkhorn` needs beside its input and output.
int64_t sinkhorn_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device);

// Scores to soft assignments, asynchronously on `stream`. Element: 0 float32, 2 bfloat16, 3 float16.
void sinkhorn(int element,
              uintptr_t scores,       // [problems, batch, prototypes]
              uintptr_t assignments,  // [problems, batch, prototypes]
              uintptr_t workspace,    // sinkhorn_workspace_bytes(...) bytes, 16-byte aligned
              int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int iterations, int device,
              uintptr_t stream);

}  // namespace imc::cuda
