// Blocks of samples, transposed to [column][sample], so that vectors run over samples: rows may be short.
#pragma once

#include <cstdint>

#include "elements.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kBlock = 32;  // samples

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif

template <typename T>
struct Tile {
  static constexpr int64_t kSide = kVectorBytes / static_cast<int64_t>(sizeof(T));
  typedef T Row __attribute__((vector_size(kVectorBytes)));
  typedef T UnalignedRow __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));

  Row rows[kSide];

  void load(int64_t i, const T* from) { rows[i] = *reinterpret_cast<const UnalignedRow*>(from); }
  void store(int64_t i, T* to) const { *reinterpret_cast<UnalignedRow*>(to) = rows[i]; }
  template <typename S>
  void load(int64_t i, const S* from) {
    copy_elements(from, reinterpret_cast<T*>(&rows[i]), kSide);
  }
  template <typename S>
  void store(int64_t i, S* to) const {
    copy_elements(reinterpret_cast<const T*>(&rows[i]), to, kSide);
  }

  // By perfect shuffles of all rows, as many as double up to a row's length.
  void transpose() {
    for (int64_t width = 1; width < kSide; width *= 2) {
      Row shuffled[kSide];
      for (int64_t i = 0; i < kSide / 2; ++i)
        zip(rows[i], rows[i + kSide / 2], shuffled[2 * i], shuffled[2 * i + 1], Lanes<kSide>());
      for (int64_t i = 0; i < kSide; ++i) rows[i] = shuffled[i];
    }
  }

 private:
  template <int64_t>
  struct Lanes {};

  static void zip(Row a, Row b, Row& low, Row& high, Lanes<2>) {
    low = __builtin_shufflevector(a, b, 0, 2);
    high = __builtin_shufflevector(a, b, 1, 3);
  }
  static void zip(Row a, Row b, Row& low, Row& high, Lanes<4>) {
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  }
  static void zip(Row a, Row b, Row& low, Row& high, Lanes<8>) {
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  }
  static void zip(Row a, Row b, Row& low, Row& high, Lanes<16>) {
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
};

// x = rows [filled, columns] transposed, with zeros past the last.
template <typename S, typename T>
void load_block(const S* rows, T* x, int64_t filled, int64_t columns) {
  constexpr int64_t kSide = Tile<T>::kSide;
  for (int64_t first = 0; first < kBlock; first += kSide)
    for (int64_t c = 0; c < columns; c += kSide) {
      const int64_t wide = columns - c < kSide ? columns - c : kSide;
      Tile<T> tile;
      for (int64_t i = 0; i < kSide; ++i) {
        const int64_t at = (first + i) * columns + c;
        tile.rows[i] = typename Tile<T>::Row{};
        if (at + kSide <= filled * columns)  // past the end of a row lies the next
          tile.load(i, rows + at);
        else if (first + i < filled)
          for (int64_t j = 0; j < wide; ++j) tile.rows[i][j] = number(rows[at + j]);
      }
      tile.transpose();
      for (int64_t j = 0; j < wide; ++j) tile.store(j, x + (c + j) * kBlock + first);
    }
}

// The way back. A tile that reaches past the end of a row writes into the next one, which is written later: the last tile
// of each row comes first.
template <typename T, typename Out>
void store_block(const T* x, Out* rows, int64_t filled, int64_t columns) {
  constexpr int64_t kSide = Tile<T>::kSide;
  for (int64_t first = 0; first < filled; first += kSide)
    for (int64_t c = (columns - 1) / kSide * kSide; c >= 0; c -= kSide) {
      const int64_t wide = columns - c < kSide ? columns - c : kSide;
      Tile<T> tile;
      for (int64_t j = 0; j < kSide; ++j) tile.load(j, x + (j < wide ? c + j : c) * kBlock + first);
      tile.transpose();
      for (int64_t i = 0; i < kSide; ++i) {
        const int64_t at = (first + i) * columns + c;
        if (at + kSide <= filled * columns)
          tile.store(i, rows + at);
        else if (first + i < filled)
          for (int64_t j = 0; j < wide; ++j) convert(tile.rows[i][j], rows + at + j);
      }
    }
}

// Brings the rows of a block into the caches while another is worked on: read by tiles, they come too late otherwise.
template <typename T>
void prefetch_block(const T* rows, int64_t filled, int64_t columns) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < filled * columns; i += kLine) __builtin_prefetch(rows + i);
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
