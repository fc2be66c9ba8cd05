// Operations on one row that several kernels share.
#pragma once

#include "math.h"

namespace imc::IMC_ISA {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
T row_max(const T* x, int64_t n) {
  T high = x[0];
#pragma omp simd reduction(max : high)
  for (int64_t i = 0; i < n; ++i) high = x[i] > high ? x[i] : high;
  return high;
}

template <typename T>
T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

template <typename T>
T row_min(const T* x, int64_t n) {
  T low = x[0];
#pragma omp simd reduction(min : low)
  for (int64_t i = 0; i < n; ++i) low = x[i] < low ? x[i] : low;
  return low;
}

// p = exp(scale (x - max x)); returns the sum of p. An infinity in x makes it NaN, as NaN does: the maximum alone would
// let -infinity pass as a probability of zero.
template <typename T>
T exp_row(const T* x, T* p, int64_t n, T scale) {
  const T high = row_max(x, n), low = row_min(x, n);
  T sum = low - low;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    p[i] = exp_bounded((x[i] - high) * scale);
    sum += p[i];
  }
  return sum;
}

}  // namespace imc::IMC_ISA
