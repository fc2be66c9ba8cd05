// Compiles a kernel of kernels.h for both element types.
#pragma once

#define IMC_INSTANTIATE(kernel)                     \
  template decltype(kernel<float>) kernel<float>;   \
  template decltype(kernel<double>) kernel<double>;

// And for those that also write half precision.
#define IMC_INSTANTIATE_HALF(kernel)                    \
  template decltype(kernel<bfloat16>) kernel<bfloat16>; \
  template decltype(kernel<float16>) kernel<float16>;
