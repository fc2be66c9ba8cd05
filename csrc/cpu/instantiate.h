// Compiles a kernel of kernels.h for both element types.
#pragma once

#define IMC_INSTANTIATE(kernel)                     \
  template decltype(kernel<float>) kernel<float>;   \
  template decltype(kernel<double>) kernel<double>;
