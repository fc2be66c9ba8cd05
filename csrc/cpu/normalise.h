// Rows divided by their norms: as scales that a product applies on the way, and the way back through them.
#pragma once

#include "rows.h"

namespace imc::IMC_ISA {

constexpr double kSmallestNorm = 1e-12;  // that of torch.nn.functional.normalize

// inverse[i] = 1 / max(|row i|, kSmallestNorm)
template <typename T>
void inverse_norms(const T* x, T* inverse, int64_t rows, int64_t dim) {
  for (int64_t i = 0; i < rows; ++i) {
    const T norm = static_cast<T>(__builtin_sqrt(dot(x + i * dim, x + i * dim, dim)));
    inverse[i] = T(1) / (norm < T(kSmallestNorm) ? T(kSmallestNorm) : norm);
  }
}

// Through the normalisation, in place: gradient holds h on entry. A row shorter than kSmallestNorm was only scaled.
template <typename T>
void project(const T* x, const T* inverse, T* gradient, int64_t rows, int64_t dim) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = x + i * dim;
    T* g = gradient + i * dim;
    const T scale = inverse[i];
    const T along = scale < T(1 / kSmallestNorm) ? static_cast<T>(dot(row, g, dim)) * scale * scale : T(0);
#pragma omp simd
    for (int64_t d = 0; d < dim; ++d) g[d] = (g[d] - row[d] * along) * scale;
  }
}

}  // namespace imc::IMC_ISA
