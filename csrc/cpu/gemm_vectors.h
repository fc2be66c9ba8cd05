// The parts of gemm.h's product by vectors of the element type. A tile of kTileRows x kPanel sums stays in registers.
//
// B is packed into panels of kPanel columns, [panel][depth][kPanel]. A stays where it is: a block of its rows is copied
// into scratch by a source object.
#pragma once

#include "elements.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kTileRows = 12;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kTileRows = 6;  // 12 accumulators of 16 registers
#else
constexpr int kVectorBytes = 16, kTileRows = 6;
#endif

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  static constexpr int lanes = kVectorBytes / sizeof(T);
};

template <typename T>
constexpr int kPanel = 2 * Vector<T>::lanes;

// A panel's depth slice (kDepth x kPanel) stays in the L1 cache, a block of A (kBlockRows x kDepth) in L2.
constexpr int kDepth = 128, kBlockRows = 96, kBlockPanels = 8;

template <typename T>
int64_t packed_size(int64_t depth, int64_t columns) {
  return ceil_div(columns, kPanel<T>) * kPanel<T> * depth;
}

// Where row k of the depth begins in the panel of a column, a multiple of kPanel.
template <typename T>
const T* panel_at(const T* packed, int64_t depth, int64_t column, int64_t k = 0) {
  return packed + column * depth + k * kPanel<T>;
}

// One panel of a B given row by row, its rows `stride` apart: the first `columns` of kPanel columns, the others 0.
template <typename S, typename T>
void pack_panel(const S* b, int64_t stride, const T* depth_scale, int64_t depth, int64_t columns, T* panel) {
  constexpr int width = kPanel<T>;
  for (int64_t k = 0; k < depth; ++k) {
    T* out = panel + k * width;
    const T* row = numbers_of(b + k * stride, out, columns);
    const T scale = depth_scale ? depth_scale[k] : T(1);
    for (int64_t j = 0; j < columns; ++j) out[j] = row[j] * scale;
    for (int64_t j = columns; j < width; ++j) out[j] = 0;
  }
}

// Packs B given row by row, b[depth][columns]; row k is scaled by depth_scale[k] where that is not null.
template <typename S, typename T = Number<S>>
void pack_rows(const S* b, const T* depth_scale, int64_t depth, int64_t columns, T* packed, int threads) {
  constexpr int width = kPanel<T>;
  parallel_for(ceil_div(columns, width), useful_threads(depth * columns, threads), [&](int64_t panel, int) {
    const int64_t first = panel * width, filled = columns - first < width ? columns - first : width;
    pack_panel(b + first, columns, depth_scale, depth, filled, packed + panel * depth * width);
  });
}

// Packs B given column by column, b[columns][depth]; column j is scaled by column_scale[j] where that is not null.
template <typename S, typename T = Number<S>>
void pack_columns(const S* b, const T* column_scale, int64_t depth, int64_t columns, T* packed, int threads) {
  constexpr int width = kPanel<T>;
  parallel_for(ceil_div(columns, width), useful_threads(depth * columns, threads), [&](int64_t panel, int) {
    T* out = packed + panel * depth * width;
    for (int64_t slice = 0; slice < depth; slice += kDepth) {  // what is written stays in the L1 cache
      const int64_t end = depth < slice + kDepth ? depth : slice + kDepth;
      for (int64_t j = 0; j < width; ++j) {
        const int64_t column = panel * width + j;
        if (column < columns) {
          const T scale = column_scale ? column_scale[column] : T(1);
          T buffer[kDepth];
          const T* numbers = numbers_of(b + column * depth + slice, buffer, end - slice);
          for (int64_t k = slice; k < end; ++k) out[k * width + j] = numbers[k - slice] * scale;
        } else {
          for (int64_t k = slice; k < end; ++k) out[k * width + j] = 0;
        }
      }
    }
  });
}

// Sources of A. copy() fills a tile with A[first_row .. + rows][first_k .. + depth], element (row, k) at
// row * kRowStride + k * kDepthStride: in the order in which the source lies in memory, so that copies are contiguous.

// A = data[rows][row_size]; row i is scaled by row_scale[i] where that is not null.
template <typename S, typename T = Number<S>>
struct RowSource {
  static constexpr int kRowStride = kDepth, kDepthStride = 1;
  const S* data;
  int64_t row_size;
  const T* row_scale;

  void copy(int64_t first_row, int64_t rows, int64_t first_k, int64_t depth, T* tile) const {
    for (int64_t r = 0; r < rows; ++r) {
      T* out = tile + r * kRowStride;
      const T* row = numbers_of(data + (first_row + r) * row_size + first_k, out, depth);
      const T scale = row_scale ? row_scale[first_row + r] : T(1);
#pragma omp simd
      for (int64_t k = 0; k < depth; ++k) out[k] = row[k] * scale;
    }
  }
};

// A is the transpose of data[depth][row_size].
template <typename S, typename T = Number<S>>
struct TransposedSource {
  static constexpr int kRowStride = 1, kDepthStride = kBlockRows;
  const S* data;
  int64_t row_size;

  void copy(int64_t first_row, int64_t rows, int64_t first_k, int64_t depth, T* tile) const {
    for (int64_t k = 0; k < depth; ++k)
      copy_elements(data + (first_k + k) * row_size + first_row, tile + k * kDepthStride, rows);
  }
};

// c[kTileRows][kPanel] (+)= tile[kTileRows][depth] * panel[depth][kPanel]. The tile may lie in `pieces` of `depth`,
// `step` elements apart.
template <typename Source, typename T>
inline void multiply_tile(int64_t depth, const T* tile, const T* panel, T* c, int64_t c_stride, bool accumulate,
                          int64_t pieces = 1, int64_t step = 0) {
  using V = typename Vector<T>::type;
  using Unaligned = typename Vector<T>::unaligned;
  constexpr int lanes = Vector<T>::lanes;
  V sums[kTileRows][2] = {};
  // The rows of C lie kilobytes apart: fetched only when they are written, they took as long as half the arithmetic
  // (1536 x 1000 x 128, one thread: 5.0 ms, fetched ahead 3.4, writing to one place 2.6).
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    __builtin_prefetch(c + r * c_stride, 1);
    __builtin_prefetch(c + r * c_stride + lanes, 1);
    __builtin_prefetch(c + r * c_stride + 2 * lanes - 1, 1);
  }
  for (int64_t piece = 0; piece < pieces; ++piece, tile += step)
    for (int64_t k = 0; k < depth; ++k, panel += kPanel<T>) {
      const V left = *reinterpret_cast<const Unaligned*>(panel);
      const V right = *reinterpret_cast<const Unaligned*>(panel + lanes);
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        const T a = tile[r * Source::kRowStride + k * Source::kDepthStride];
        sums[r][0] += a * left;
        sums[r][1] += a * right;
      }
    }
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    Unaligned* row = reinterpret_cast<Unaligned*>(c + r * c_stride);
    Unaligned* right = reinterpret_cast<Unaligned*>(c + r * c_stride + lanes);
    *row = accumulate ? *row + sums[r][0] : sums[r][0];
    *right = accumulate ? *right + sums[r][1] : sums[r][1];
  }
}

// A tile that hangs over the edge of C goes through a buffer.
template <typename Source, typename T>
void multiply_edge(int64_t depth, const T* tile, const T* panel, T* c, int64_t c_stride, bool accumulate, int64_t rows,
                   int64_t columns) {
  T buffer[kTileRows * kPanel<T>] = {};
  if (accumulate)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < columns; ++j) buffer[r * kPanel<T> + j] = c[r * c_stride + j];
  multiply_tile<Source>(depth, tile, panel, buffer, kPanel<T>, accumulate);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j) c[r * c_stride + j] = buffer[r * kPanel<T> + j];
}

// One block of C: c[rows][columns] (+)= A[first_row .. + rows][0 .. depth] B[0 .. depth][columns], rows <= kBlockRows.
// `panels` is the first of B's panels, each of which begins `panel_depth` rows after the one before it. `tile` is
// scratch of kTileSize elements, all finite: rows past the edge are multiplied, never kept.
constexpr int64_t kTileSize = static_cast<int64_t>(kBlockRows) * kDepth;

template <typename T, typename Source>
void multiply_block(const Source& a, int64_t first_row, int64_t rows, const T* panels, int64_t panel_depth,
                    int64_t columns, int64_t depth, T* c, int64_t c_stride, bool accumulate, T* tile) {
  constexpr int width = kPanel<T>;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t slice = depth - k < kDepth ? depth - k : kDepth;
    a.copy(first_row, rows, k, slice, tile);
    for (int64_t column = 0; column < columns; column += width) {
      const T* panel = panel_at(panels, panel_depth, column, k);
      const int64_t kept_columns = columns - column < width ? columns - column : width;
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const int64_t kept_rows = rows - r < kTileRows ? rows - r : kTileRows;
        const T* from = tile + r * Source::kRowStride;
        T* out = c + r * c_stride + column;
        if (kept_rows == kTileRows && kept_columns == width)
          multiply_tile<Source>(slice, from, panel, out, c_stride, accumulate || k > 0);
        else
          multiply_edge<Source>(slice, from, panel, out, c_stride, accumulate || k > 0, kept_rows, kept_columns);
      }
    }
  }
}

}  // namespace imc::IMC_ISA
