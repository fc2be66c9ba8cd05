// Blocks of samples of few columns each, transposed to [column][sample], so that vectors run over samples.
#pragma once

#include <cstdint>

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kBlock = 32;

// x = rows [filled, columns] transposed, with zeros past the last.
template <typename T>
void load_block(const T* rows, T* x, int64_t filled, int64_t columns) {
  if (filled < kBlock)
    for (int64_t i = 0; i < columns * kBlock; ++i) x[i] = 0;
  for (int64_t i = 0; i < filled; ++i)
    for (int64_t c = 0; c < columns; ++c) x[c * kBlock + i] = rows[i * columns + c];
}

// The way back.
template <typename T>
void store_block(const T* x, T* rows, int64_t filled, int64_t columns) {
  for (int64_t i = 0; i < filled; ++i)
    for (int64_t c = 0; c < columns; ++c) rows[i * columns + c] = x[c * kBlock + i];
}

template <typename T>
double sum_block(const T* x) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < kBlock; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

}  // namespace

}  // namespace imc::IMC_ISA
