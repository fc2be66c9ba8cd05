// Rows divided by their norms: as scales that a product applies on the way, and the way back through them.
#pragma once

#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

constexpr double kSmallestNorm = 1e-12;  // that of torch.nn.functional.normalize

// body(row) for each of the rows, in chunks of 64.
template <typename Body>
void for_rows(int64_t rows, int64_t dim, int threads, const Body& body) {
  constexpr int64_t chunk = 64;
  parallel_for(ceil_div(rows, chunk), useful_threads(rows * dim, threads), [&](int64_t item, int) {
    for (int64_t row = item * chunk; row < rows && row < (item + 1) * chunk; ++row) body(row);
  });
}

// inverse[i] = 1 / max(|row i|, kSmallestNorm)
template <typename T>
void inverse_norms(const T* x, T* inverse, int64_t rows, int64_t dim, int threads) {
  for_rows(rows, dim, threads, [&](int64_t i) {
    const T norm = static_cast<T>(__builtin_sqrt(dot(x + i * dim, x + i * dim, dim)));
    inverse[i] = T(1) / (norm < T(kSmallestNorm) ? T(kSmallestNorm) : norm);
  });
}

// Through the normalisation, in place: gradient holds h on entry. A row shorter than kSmallestNorm was only scaled.
template <typename T>
void project(const T* x, const T* inverse, T* gradient, int64_t rows, int64_t dim, int threads) {
  for_rows(rows, dim, threads, [&](int64_t i) {
    const T* row = x + i * dim;
    T* g = gradient + i * dim;
    const T scale = inverse[i];
    const T along = scale < T(1 / kSmallestNorm) ? static_cast<T>(dot(row, g, dim)) * scale * scale : T(0);
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) g[d] = (g[d] - row[d] * along) * scale;
  });
}

}  // namespace imc::IMC_ISA
