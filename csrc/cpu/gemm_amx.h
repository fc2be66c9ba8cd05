// The parts of gemm.h's product by AMX, of float32 alone. A packed operand is the parts of its numbers (amx.h), in tiles
// of 16 x 32, one and a half times as long as the numbers themselves.
//
// B is packed into panels of kPanel columns, [panel][step along the depth][2 tiles of columns][part]. A stays where it
// is: a block of its rows is split into scratch by a source object, [tile of rows][step][part].
#pragma once

#include "amx.h"
#include "elements.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

constexpr int kTileRows = 32;
template <typename T>
constexpr int kPanel = 32;

// A panel's depth slice, and the parts of 32 rows of A, stay in the L1 cache together; a block of A in L2.
constexpr int kDepth = 128, kBlockRows = 128, kBlockPanels = 8;

inline int64_t whole_steps(int64_t depth) { return ceil_div(depth, kTileDepth) * kTileDepth; }

// The memory of numbers, in float32, that their parts take.
inline int64_t parts_size(int64_t numbers) { return numbers * 3 / 2; }

inline uint16_t* parts_in(float* memory) { return reinterpret_cast<uint16_t*>(memory); }
inline const uint16_t* parts_in(const float* memory) { return reinterpret_cast<const uint16_t*>(memory); }

template <typename T>
int64_t packed_size(int64_t depth, int64_t columns) {
  return parts_size(ceil_div(columns, kPanel<T>) * kPanel<T> * whole_steps(depth));
}

// Where row k of the depth begins in the panel of a column: multiples of kTileDepth and kPanel.
template <typename T>
const T* panel_at(const T* packed, int64_t depth, int64_t column, int64_t k = 0) {
  return packed + parts_size(column * whole_steps(depth) + k * kPanel<T>);
}

// tiles: where those of a panel go. split(step, first column, columns, tiles) leaves the parts of one, by pairs.
template <typename Split>
void pack_panel(int64_t depth, int64_t columns, uint16_t* tiles, const Split& split) {
  for (int64_t k = 0; k < depth; k += kTileDepth)
    for (int64_t column = 0; column < kPanel<float>; column += kTileSide, tiles += kParts)
      split(k, column, columns - column < kTileSide ? columns - column : kTileSide, tiles);
}

// Packs B given row by row, b[depth][columns]; row k is scaled by depth_scale[k] where that is not null.
template <typename S, typename T = Number<S>>
void pack_rows(const S* b, const T* depth_scale, int64_t depth, int64_t columns, T* packed, int threads) {
  parallel_for(ceil_div(columns, kPanel<T>), useful_threads(depth * columns, threads), [&](int64_t panel, int) {
    const int64_t first = panel * kPanel<T>;
    pack_panel(depth, columns - first, parts_in(packed + parts_size(first * whole_steps(depth))),
               [&](int64_t k, int64_t column, int64_t filled, uint16_t* tiles) {
                 split_pairs(b + k * columns + first + column, columns, depth_scale ? depth_scale + k : nullptr,
                             depth - k, filled, tiles);
               });
  });
}

// Packs B given column by column, b[columns][depth]; column j is scaled by column_scale[j] where that is not null.
template <typename S, typename T = Number<S>>
void pack_columns(const S* b, const T* column_scale, int64_t depth, int64_t columns, T* packed, int threads) {
  parallel_for(ceil_div(columns, kPanel<T>), useful_threads(depth * columns, threads), [&](int64_t panel, int) {
    const int64_t first = panel * kPanel<T>;
    pack_panel(depth, columns - first, parts_in(packed + parts_size(first * whole_steps(depth))),
               [&](int64_t k, int64_t column, int64_t filled, uint16_t* tiles) {
                 const int64_t at = first + column;
                 split_rows(b + at * depth + k, depth, column_scale ? column_scale + at : nullptr, filled, depth - k,
                            tiles);
                 transpose_tiles(tiles);
               });
  });
}

// Sources of A. split() fills the tiles with the parts of A[first_row .. + rows][first_k .. + depth].

// A = data[rows][row_size]; row i is scaled by row_scale[i] where that is not null.
template <typename S, typename T = Number<S>>
struct RowSource {
  const S* data;
  int64_t row_size;
  const T* row_scale;

  void split(int64_t first_row, int64_t rows, int64_t first_k, int64_t depth, uint16_t* tiles) const {
    split_rows(data + first_row * row_size + first_k, row_size, row_scale ? row_scale + first_row : nullptr, rows,
               depth, tiles);
  }
};

// A is the transpose of data[depth][row_size].
template <typename S, typename T = Number<S>>
struct TransposedSource {
  const S* data;
  int64_t row_size;

  void split(int64_t first_row, int64_t rows, int64_t first_k, int64_t depth, uint16_t* tiles) const {
    split_pairs(data + first_k * row_size + first_row, row_size, nullptr, depth, rows, tiles);
    transpose_tiles(tiles);
  }
};

// One block of C: c[rows][columns] (+)= A[first_row .. + rows][0 .. depth] B[0 .. depth][columns], rows <= kBlockRows.
// `panels` is the first of B's panels, which have a depth of panel_depth. `tile` is scratch of kTileSize elements.
constexpr int64_t kTileSize = static_cast<int64_t>(kBlockRows) * kDepth * 3 / 2;

template <typename T, typename Source>
void multiply_block(const Source& a, int64_t first_row, int64_t rows, const T* panels, int64_t panel_depth,
                    int64_t columns, int64_t depth, T* c, int64_t c_stride, bool accumulate, T* tile) {
  const TileRegisters registers;
  alignas(64) float edge[kTileRows * kPanel<T>];
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t slice = depth - k < kDepth ? depth - k : kDepth, steps = ceil_div(slice, kTileDepth);
    uint16_t* left = parts_in(tile);
    for (int64_t r = 0; r < ceil_div(rows, kTileRows) * kTileRows; r += kTileSide)
      for (int64_t step = 0; step < steps; ++step)
        a.split(first_row + r, rows - r < kTileSide ? rows - r : kTileSide, k + step * kTileDepth,
                slice - step * kTileDepth, left + (r / kTileSide * steps + step) * kParts);
    const bool add = accumulate || k > 0;
    for (int64_t column = 0; column < columns; column += kPanel<T>) {
      const uint16_t* right = parts_in(panel_at(panels, panel_depth, column, k));
      const int64_t kept_columns = columns - column < kPanel<T> ? columns - column : kPanel<T>;
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const int64_t kept_rows = rows - r < kTileRows ? rows - r : kTileRows;
        const uint16_t* from = left + r / kTileSide * steps * kParts;
        T* out = c + r * c_stride + column;
        if (kept_rows == kTileRows && kept_columns == kPanel<T>) {
          multiply_tiles(steps, from, steps * kParts, right, out, c_stride, add, kTileRows, [&](int64_t i) {
            __builtin_prefetch(out + i * c_stride, 1);  // the rows of C lie kilobytes apart
            __builtin_prefetch(out + i * c_stride + kTileSide, 1);
            __builtin_prefetch(out + i * c_stride + kTileRows - 1, 1);
          });
          continue;
        }
        multiply_tiles(steps, from, steps * kParts, right, edge, kPanel<T>, false, 0, [](int64_t) {});
        for (int64_t i = 0; i < kept_rows; ++i)
          for (int64_t j = 0; j < kept_columns; ++j)
            out[i * c_stride + j] = edge[i * kPanel<T> + j] + (add ? out[i * c_stride + j] : T(0));
      }
    }
  }
}

}  // namespace imc::IMC_ISA
