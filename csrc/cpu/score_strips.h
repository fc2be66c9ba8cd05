// Cosines of embeddings and prototypes times a scale, strip by strip: of all rows with a few thousand prototypes at a time, in memory
// that the next strip takes again, so that the whole matrix of scores never exists. In an unnamed namespace: it is compiled
// once per instruction set.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "normalise.h"

namespace imc::IMC_ISA {

namespace {

// Scores of so many elements are one strip: read again out of the caches, they cost less than computing them anew.
constexpr int64_t kHeldScores = int64_t(1) << 21;
constexpr int64_t kNarrowestStrip = 128, kWidestStrip = 1024, kStrips = 32;

// The width of the strips: a multiple of a panel's, and 1/32 of the scores where the prototypes are enough for that.
inline int64_t strip_width(int64_t rows, int64_t prototypes) {
  if (prototypes <= kNarrowestStrip || rows * prototypes <= kHeldScores) return prototypes;
  const int64_t width = prototypes / kStrips / kNarrowestStrip * kNarrowestStrip;
  return width < kNarrowestStrip ? kNarrowestStrip : width > kWidestStrip ? kWidestStrip : width;
}

template <typename S>
class ScoreStrips {
  using T = Number<S>;

 public:
  ScoreStrips(const S* embeddings, const S* prototypes, int64_t rows, int64_t count, int64_t dim, bool normalize,
              int64_t width, double scale, int threads)
      : embeddings_(embeddings), prototypes_(prototypes), rows_(rows), count_(count), dim_(dim), normalize_(normalize),
        width_(width), threads_(threads), inverse_norms_(rows), row_scale_(rows), column_scale_(normalize ? width : 0),
        packed_(packed_size<T>(dim, width)), scores_(rows * width) {
    inverse_norms(embeddings, inverse_norms_.get(), rows, dim, threads);
    for (int64_t i = 0; i < rows; ++i) row_scale_[i] = inverse_norms_[i] * static_cast<T>(scale);
  }

  // body(first prototype, prototypes) for each strip.
  template <typename Body>
  void for_strips(const Body& body) const {
    for (int64_t first = 0; first < count_; first += width_)
      body(first, count_ - first < width_ ? count_ - first : width_);
  }

  // The scores [rows, columns] of the first `rows` rows with the prototypes of a strip. They stay until another is asked
  // for.
  T* of(int64_t first, int64_t columns, int64_t rows) {
    if (columns == count_) rows = rows_;  // the only strip
    if (first != first_ || rows > filled_) {
      scale_columns(first, columns);
      pack_columns(prototypes_ + first * dim_, column_scale(), dim_, columns, packed_.get(), threads_);
      gemm(RowSource<S>{embeddings_, dim_, row_scale_.get()}, packed_.get(), scores_.get(), rows, columns, dim_, threads_);
      first_ = first;
      filled_ = rows;
    }
    return scores_.get();
  }

  // 1 / norm of the embeddings.
  const T* row_scale() { return inverse_norms_.get(); }
  // 1 / norm of the prototypes of the strip at hand, null where they are taken as they are.
  const T* column_scale() { return normalize_ ? column_scale_.get() : nullptr; }

 private:
  void scale_columns(int64_t first, int64_t columns) {
    if (normalize_) inverse_norms(prototypes_ + first * dim_, column_scale_.get(), columns, dim_, threads_);
  }

  const S *embeddings_, *prototypes_;
  int64_t rows_, count_, dim_;
  bool normalize_;
  int64_t width_;
  int threads_;
  Scratch<T> inverse_norms_, row_scale_, column_scale_, packed_, scores_;
  int64_t first_ = -1, filled_ = 0;
};

}  // namespace

}  // namespace imc::IMC_ISA
