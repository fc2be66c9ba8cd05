// Cosines of embeddings x and prototypes w. The inverse norms are applied while the operands of the product are copied
// into its panels; normalised matrices never exist. Backward, with g = dL/dscores and hats for normalised rows:
//   dL/dx = (h - x^ (x^ . h)) / |x|,  h = g w^          dL/dw = (h - w^ (w^ . h)) / |w|,  h = g^T x^
#include <cstdint>

#include "gemm.h"
#include "instantiate.h"
#include "kernels.h"
#include "normalise.h"

namespace imc::IMC_ISA {

template <typename S>
void prototype_scores(const S* embeddings, const S* prototypes, S* scores, int64_t rows, int64_t prototype_count,
                      int64_t dim, bool normalize_prototypes, int threads) {
  using T = Number<S>;
  Scratch<T> row_scale(rows), column_scale(prototype_count), packed(packed_size<T>(dim, prototype_count));
  inverse_norms(embeddings, row_scale.get(), rows, dim, threads);
  if (normalize_prototypes) inverse_norms(prototypes, column_scale.get(), prototype_count, dim, threads);
  pack_columns(prototypes, normalize_prototypes ? column_scale.get() : nullptr, dim, prototype_count, packed.get(),
               threads);
  gemm(RowSource<S>{embeddings, dim, row_scale.get()}, packed.get(), scores, rows, prototype_count, dim, threads);
}

template <typename S>
void prototype_scores_backward(const S* embeddings, const S* prototypes, const S* grad_output, S* embeddings_gradient,
                               S* prototypes_gradient, int64_t rows, int64_t prototype_count, int64_t dim,
                               bool normalize_prototypes, int threads) {
  using T = Number<S>;
  Scratch<T> row_scale(rows), column_scale(prototype_count);
  inverse_norms(embeddings, row_scale.get(), rows, dim, threads);
  if (normalize_prototypes) inverse_norms(prototypes, column_scale.get(), prototype_count, dim, threads);
  if (embeddings_gradient) {
    Scratch<T> packed(packed_size<T>(prototype_count, dim)), h(kIsHalf<S> ? rows * dim : 0);
    T* gradient = numbers_for(embeddings_gradient, h.get());
    pack_rows(prototypes, normalize_prototypes ? column_scale.get() : nullptr, prototype_count, dim, packed.get(),
              threads);
    gemm(RowSource<S>{grad_output, prototype_count, nullptr}, packed.get(), gradient, rows, dim, prototype_count,
         threads);
    project(embeddings, row_scale.get(), gradient, embeddings_gradient, rows, dim, threads);
  }
  if (prototypes_gradient) {
    Scratch<T> packed(packed_size<T>(rows, dim)), h(kIsHalf<S> ? prototype_count * dim : 0);
    T* gradient = numbers_for(prototypes_gradient, h.get());
    pack_rows(embeddings, row_scale.get(), rows, dim, packed.get(), threads);
    gemm(TransposedSource<S>{grad_output, prototype_count}, packed.get(), gradient, prototype_count, dim, rows,
         threads);
    if (normalize_prototypes)
      project(prototypes, column_scale.get(), gradient, prototypes_gradient, prototype_count, dim, threads);
    else
      finish_row(gradient, prototypes_gradient, prototype_count * dim);
  }
}

IMC_INSTANTIATE(prototype_scores)
IMC_INSTANTIATE_HALF(prototype_scores)
IMC_INSTANTIATE(prototype_scores_backward)
IMC_INSTANTIATE_HALF(prototype_scores_backward)

}  // namespace imc::IMC_ISA
