// Sums from which one of their terms is taken out again, to every digit.
#pragma once

#include <cstdint>

#include "rows.h"

namespace imc::IMC_ISA {

namespace {

// The largest of some numbers >= 0, and the sum of the others. A sum without one of its terms x is (peak - x) + rest,
// with no cancellation: a row alone in its cluster keeps every digit of what the other rows have there.
template <typename T>
struct PeakAndRest {
  T peak = 0;
  double rest = 0;

  void add(const PeakAndRest& other) {
    const bool higher = other.peak > peak;
    rest += other.rest + static_cast<double>(higher ? peak : other.peak);
    peak = higher ? other.peak : peak;
  }
};

// Of the numbers x[kCount] and y[kCount].
template <int64_t kCount, typename T>
PeakAndRest<T> peak_and_rest(const T* x, const T* y) {
  const T high_x = row_max(x, kCount), high_y = row_max(y, kCount);
  const T peak = high_x > high_y ? high_x : high_y;
  double below = 0;
  int32_t peaks = 0;
#pragma omp simd reduction(+ : below, peaks)
  for (int64_t i = 0; i < kCount; ++i) {
    below += static_cast<double>(x[i] != peak ? x[i] : T(0)) + static_cast<double>(y[i] != peak ? y[i] : T(0));
    peaks += (x[i] == peak) + (y[i] == peak);
  }
  return {peak, below + (peaks - 1) * static_cast<double>(peak)};
}

}  // namespace

}  // namespace imc::IMC_ISA
