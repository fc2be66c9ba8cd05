// The last step of a loss: the sum of what its blocks found, by one block, in an order that depends on the count alone.

#include "device.cuh"
#include "primitives.cuh"
#include "sum.h"

namespace imc::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) sum_kernel(const float* __restrict__ terms, int64_t count, float scale,
                                                       float* __restrict__ sum) {
  float total = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += terms[i];
  total = block_sum<kThreads / kWarp>(total);
  if (threadIdx.x == 0) *sum = total * scale;
}

}  // namespace

void launch_sum(const float* terms, int64_t count, float scale, float* sum, const Place& place) {
  launch<sum_kernel>("launching a sum", {1, kThreads}, place, terms, count, scale, sum);
}

}  // namespace imc::cuda
