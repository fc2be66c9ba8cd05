// Cosines of embeddings x and prototypes w. The inverse norms are applied while the operands of the product are copied
// into its panels; normalised matrices never exist. Backward, with g = dL/dscores and hats for normalised rows:
//   dL/dx = (h - x^ (x^ . h)) / |x|,  h = g w^          dL/dw = (h - w^ (w^ . h)) / |w|,  h = g^T x^
#include <cstdint>

#include "gemm.h"
#include "instantiate.h"
#include "kernels.h"
#include "normalise.h"

namespace imc::IMC_ISA {

template <typename T>
void prototype_scores(const T* embeddings, const T* prototypes, T* scores, int64_t rows, int64_t prototype_count,
                      int64_t dim, bool normalize_prototypes, int threads) {
  Scratch<T> row_scale(rows), column_scale(prototype_count), packed(packed_size<T>(dim, prototype_count));
  inverse_norms(embeddings, row_scale.get(), rows, dim, threads);
  if (normalize_prototypes) inverse_norms(prototypes, column_scale.get(), prototype_count, dim, threads);
  pack_columns<T>(prototypes, normalize_prototypes ? column_scale.get() : nullptr, dim, prototype_count, packed.get(),
                  threads);
  gemm(RowSource<T>{embeddings, dim, row_scale.get()}, packed.get(), scores, rows, prototype_count, dim, threads);
}

template <typename T>
void prototype_scores_backward(const T* embeddings, const T* prototypes, const T* grad_output, T* embeddings_gradient,
                               T* prototypes_gradient, int64_t rows, int64_t prototype_count, int64_t dim,
                               bool normalize_prototypes, int threads) {
  Scratch<T> row_scale(rows), column_scale(prototype_count);
  inverse_norms(embeddings, row_scale.get(), rows, dim, threads);
  if (normalize_prototypes) inverse_norms(prototypes, column_scale.get(), prototype_count, dim, threads);
  if (embeddings_gradient) {
    Scratch<T> packed(packed_size<T>(prototype_count, dim));
    pack_rows<T>(prototypes, normalize_prototypes ? column_scale.get() : nullptr, prototype_count, dim, packed.get(),
                 threads);
    gemm(RowSource<T>{grad_output, prototype_count, nullptr}, packed.get(), embeddings_gradient, rows, dim,
         prototype_count, threads);
    project(embeddings, row_scale.get(), embeddings_gradient, rows, dim, threads);
  }
  if (prototypes_gradient) {
    Scratch<T> packed(packed_size<T>(rows, dim));
    pack_rows<T>(embeddings, row_scale.get(), rows, dim, packed.get(), threads);
    gemm(TransposedSource<T>{grad_output, prototype_count}, packed.get(), prototypes_gradient, prototype_count, dim,
         rows, threads);
    if (normalize_prototypes)
      project(prototypes, column_scale.get(), prototypes_gradient, prototype_count, dim, threads);
  }
}

IMC_INSTANTIATE(prototype_scores)
IMC_INSTANTIATE(prototype_scores_backward)

}  // namespace imc::IMC_ISA
