// Compiles a kernel of kernels.h for both element types; of double AMX has no product.
#pragma once

#ifdef __AMX_BF16__
#define IMC_INSTANTIATE(kernel) template decltype(kernel<float>) kernel<float>;
#else
#define IMC_INSTANTIATE(kernel)                     \
  template decltype(kernel<float>) kernel<float>;   \
  template decltype(kernel<double>) kernel<double>;
#endif

// And for those that also write half precision.
#define IMC_INSTANTIATE_HALF(kernel)                    \
  template decltype(kernel<bfloat16>) kernel<bfloat16>; \
  template decltype(kernel<float16>) kernel<float16>;
