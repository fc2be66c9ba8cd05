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

// x[0] += the sum of x[1, 2 kWidth).
template <int64_t kWidth, typename T>
inline void fold(T* x) {
#pragma omp simd
  for (int64_t j = 0; j < kWidth; ++j) x[j] += x[j + kWidth];
  if constexpr (kWidth > 1) fold<kWidth / 2>(x);
}

// The sum of term(i) over [0, n), by 64 running sums: several vector registers of them hide the latency of the
// addition, and none adds up more than 64 terms before double takes over, so that the error does not grow with n, nor
// with narrower vectors.
template <typename T, typename Term>
double sum_of(int64_t n, const Term& term) {
  constexpr int64_t kLanes = 64, kBlock = kLanes * 64;
  double total = 0;
  for (int64_t block = 0; block < n; block += kBlock) {
    const int64_t end = n < block + kBlock ? n : block + kBlock;
    T lanes[kLanes] = {};
    int64_t i = block;
    for (; i + kLanes <= end; i += kLanes)
#pragma omp simd
      for (int64_t j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
#pragma omp simd
    for (int64_t j = 0; j < end - i; ++j) lanes[j] += term(i + j);
    if (n >= kLanes) {
      fold<kLanes / 2>(lanes);
    } else {  // of a short row most sums are 0
      int64_t width = kLanes / 2;
      while (width >= n && width > 0) width /= 2;
      for (; width > 0; width /= 2)
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    }
    total += lanes[0];
  }
  return total;
}

template <typename T>
double dot(const T* x, const T* y, int64_t n) {
  return sum_of<T>(n, [=](int64_t i) { return x[i] * y[i]; });
}

// p = exp(scale (x - max x)); returns the sum of p. An infinity in x makes it NaN, as NaN does: the maximum alone would
// let -infinity pass as a probability of zero.
template <typename T>
T exp_row(const T* x, T* p, int64_t n, T scale) {
  T high = x[0], low = x[0];
#pragma omp simd reduction(max : high) reduction(min : low)
  for (int64_t i = 0; i < n; ++i) {
    high = x[i] > high ? x[i] : high;
    low = x[i] < low ? x[i] : low;
  }
  const double sum = sum_of<T>(n, [=](int64_t i) { return p[i] = exp_bounded((x[i] - high) * scale); });
  return static_cast<T>(sum) + (low - low);
}

}  // namespace imc::IMC_ISA
