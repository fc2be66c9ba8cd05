#pragma once

#include "device.cuh"

namespace imc::cuda {

// *sum = scale * the sum of terms [count].
void launch_sum(const float* terms, int64_t count, float scale, float* sum, const Place& place);

}  // namespace imc::cuda
