// Rows divided by their norms: as scales that a product applies on the way, and the way back through them.
#pragma once

#include "elements.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

constexpr double kSmallestNorm = 1e-12;  // that of torch.nn.functional.normalize

// body(row, its numbers) for each of the rows, in chunks of 64.
template <typename S, typename Body>
void for_rows(const S* x, int64_t rows, int64_t dim, int threads, const Body& body) {
  constexpr int64_t chunk = 64;
  threads = useful_threads(rows * dim, threads);
  Scratch<Number<S>> spare(kIsHalf<S> ? threads * dim : 0);
  parallel_for(ceil_div(rows, chunk), threads, [&](int64_t item, int worker) {
    for (int64_t row = item * chunk; row < rows && row < (item + 1) * chunk; ++row)
      body(row, numbers_of(x + row * dim, &spare[worker * dim], dim));
  });
}

// inverse[i] = 1 / max(|row i|, kSmallestNorm)
template <typename S, typename T = Number<S>>
void inverse_norms(const S* x, T* inverse, int64_t rows, int64_t dim, int threads) {
  for_rows(x, rows, dim, threads, [&](int64_t i, const T* row) {
    const T norm = static_cast<T>(__builtin_sqrt(dot(row, row, dim)));
    inverse[i] = T(1) / (norm < T(kSmallestNorm) ? T(kSmallestNorm) : norm);
  });
}

// Through the normalisation: gradient holds h on entry, and may lie where the result goes. A row shorter than
// kSmallestNorm was only scaled.
template <typename S, typename Out, typename T = Number<S>>
void project(const S* x, const T* inverse, T* gradient, Out* result, int64_t rows, int64_t dim, int threads) {
  for_rows(x, rows, dim, threads, [&](int64_t i, const T* row) {
    T* g = gradient + i * dim;
    const T scale = inverse[i];
    const T along = scale < T(1 / kSmallestNorm) ? static_cast<T>(dot(row, g, dim)) * scale * scale : T(0);
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) g[d] = (g[d] - row[d] * along) * scale;
    finish_row(g, result + i * dim, dim);
  });
}

}  // namespace imc::IMC_ISA
