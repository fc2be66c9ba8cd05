// A loss's gradient, computed with its value, times what flows back to it.
#include <cstdint>

#include "elements.h"
#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

template <typename S>
void scale_gradient(S* result, const Gradient<S>* gradient, const Number<S>* factors, int64_t losses, int64_t size,
                    int threads) {
  using T = Number<S>;
  constexpr int64_t kPiece = 1024;
  const int64_t pieces = ceil_div(size, kPiece);
  parallel_for(losses * pieces, useful_threads(losses * size, threads), [&](int64_t item, int) {
    const int64_t loss = item / pieces, first = item % pieces * kPiece;
    const int64_t count = size - first < kPiece ? size - first : kPiece;
    T buffer[kPiece];
    const T* from = numbers_of(gradient + loss * size + first, buffer, count);
    S* to = result + loss * size + first;
    T* product = numbers_for(to, buffer);
    const T factor = factors[loss];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) product[i] = from[i] * factor;
    finish_row(product, to, count);
  });
}

IMC_INSTANTIATE(scale_gradient)
IMC_INSTANTIATE_HALF(scale_gradient)

}  // namespace imc::IMC_ISA
