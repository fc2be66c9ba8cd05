// C = A B for the products inside the kernels, bitwise the same for any number of threads: each element of C is the
// sum, in order, of its sums over slices of kDepth, whoever computes it. (The library's own product splits the depth by
// thread count.)
//
// B is packed into panels of kPanel columns. A stays where it is: a block of its rows is copied into scratch by a source
// object, which may scale it on the way, so that normalised copies of a matrix never exist.
#pragma once

#ifdef __AMX_BF16__
#include "gemm_amx.h"
#else
#include "gemm_vectors.h"
#endif

namespace imc::IMC_ISA {

// c[rows][columns] (+)= A[rows][depth] B[depth][columns], B packed. c has the row stride `columns`; what is added to is not
// of half precision.
template <typename T, typename Source, typename Out>
void gemm(const Source& a, const T* packed_b, Out* c, int64_t rows, int64_t columns, int64_t depth, int threads,
          bool accumulate = false) {
  constexpr int64_t block_columns = kBlockPanels * kPanel<T>;
  // Few rows are cut into smaller blocks, so that threads share the work evenly.
  int64_t height = kBlockRows;
  while (ceil_div(rows, height) * ceil_div(columns, block_columns) < 6 && height > 2 * kTileRows) height /= 2;
  const int64_t row_blocks = ceil_div(rows, height);
  threads = useful_threads(rows * columns * depth / 16, threads);
  Scratch<T> tiles(threads * kTileSize);
  for (int64_t i = 0; i < threads * kTileSize; ++i) tiles[i] = 0;
  Scratch<T> blocks(kIsHalf<Out> ? threads * height * block_columns : 0);
  parallel_for(row_blocks * ceil_div(columns, block_columns), threads, [&](int64_t item, int worker) {
    const int64_t row = item % row_blocks * height, column = item / row_blocks * block_columns;
    const int64_t high = rows - row < height ? rows - row : height;
    const int64_t wide = columns - column < block_columns ? columns - column : block_columns;
    Out* out = c + row * columns + column;
    T* numbers = numbers_for(out, &blocks[worker * height * block_columns]);
    const int64_t stride = kIsHalf<Out> ? block_columns : columns;
    multiply_block(a, row, high, panel_at(packed_b, depth, column), depth, wide, depth, numbers, stride, accumulate,
                   &tiles[worker * kTileSize]);
    for (int64_t r = 0; r < high; ++r) finish_row(numbers + r * stride, out + r * columns, wide);
  });
}

}  // namespace imc::IMC_ISA
