// Products of float32 by AMX, whose tiles multiply bfloat16. A float32 is the sum of three bfloat16 without a rest: its
// first eight bits, what is left of it rounded to eight, and what is left of that. Of the nine products of two numbers'
// parts the six largest are added up, in float32; the others are together below 2^-22 of the numbers' product, 2^-25 on
// average with changing sign: less than the roundings of a float32 sum. Numbers below 2^-110 lose digits, below 2^-126
// they count as 0. Out of the L1 cache a product of 32 x 128 x 32 numbers took 1,870 cycles so; at the 64 operations a
// cycle that AVX-512 has at best it takes 4,096.
//
// Three tiles hold the parts of 16 x 32 numbers. Of the left operand a tile has 16 rows of 32 along the depth (by rows);
// of the right one pairs of two along the depth, 16 of which make up a row, of 16 columns (by pairs). Each is the
// other's transpose, a pair for an element.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "rows.h"
#include "sample_blocks.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kTileSide = 16, kTileDepth = 32;
constexpr int64_t kTileNumbers = kTileSide * kTileDepth, kParts = 3 * kTileNumbers;

// The tile registers, as this file uses them. They belong to a thread, and to whoever configured them last.
class TileRegisters {
 public:
  TileRegisters() {
    const Shape shape;
    _tile_loadconfig(&shape);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  struct alignas(64) Shape {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

// Numbers of a row, those past the mask 0. (The forms without a mask make g++ 12 warn of its own headers.)
inline __m256i halves(const void* x, __mmask16 filled) { return _mm256_maskz_loadu_epi16(filled, x); }
inline __m512 load(const float* x, __mmask16 filled) { return _mm512_maskz_loadu_ps(filled, x); }
inline __m512 load(const bfloat16* x, __mmask16 filled) {
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(filled, _mm512_maskz_cvtepu16_epi32(filled, halves(x, filled)), 16));
}
inline __m512 load(const float16* x, __mmask16 filled) {
  return _mm512_maskz_cvtph_ps(filled, halves(x, filled));
}

// The parts of 16 numbers, each in the upper half of its 32 bits. The first is cut off, not rounded: rounded, the largest
// numbers would become infinite.
struct Parts {
  __m512i part[3];

  explicit Parts(__m512 x) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    part[0] = _mm512_and_si512(_mm512_castps_si512(x), upper);
    const __m512 rest = _mm512_sub_ps(x, _mm512_castsi512_ps(part[0]));
    const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(rest), _mm512_set1_epi32(0x8000));
    part[1] = _mm512_and_si512(rounded, upper);
    part[2] = _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(part[1])));
  }
};

inline __m512 scaled_row(const float* scale, int64_t i, __m512 x) {
  return scale ? _mm512_mul_ps(x, _mm512_set1_ps(scale[i])) : x;
}

// tiles[3] = the parts of x[rows <= 16][depth <= 32], rows `stride` apart, by rows; zeros past the edges. Row i is
// scaled by scale[i] where that is not null.
template <typename S>
void split_rows(const S* x, int64_t stride, const float* scale, int64_t rows, int64_t depth, uint16_t* tiles) {
  const __mmask16 low = lanes(depth), high = depth > 16 ? lanes(depth - 16) : __mmask16(0);
  __m512i upper_halves;  // of 32 numbers, in turn
  {
    alignas(64) uint16_t places[32];
    for (int i = 0; i < 32; ++i) places[i] = static_cast<uint16_t>(2 * i + 1);
    upper_halves = _mm512_load_si512(places);
  }
  for (int64_t i = 0; i < kTileSide; ++i, tiles += kTileDepth) {
    if (i >= rows) {
      for (int part = 0; part < 3; ++part) _mm512_storeu_si512(tiles + part * kTileNumbers, _mm512_setzero_si512());
      continue;
    }
    const Parts a(scaled_row(scale, i, load(x + i * stride, low)));
    const Parts b(scaled_row(scale, i, high ? load(x + i * stride + 16, high) : _mm512_setzero_ps()));
    for (int part = 0; part < 3; ++part)
      _mm512_storeu_si512(tiles + part * kTileNumbers,
                          _mm512_permutex2var_epi16(a.part[part], upper_halves, b.part[part]));
  }
}

// tiles[3] = the parts of x[depth <= 32][columns <= 16], rows `stride` apart, by pairs; zeros past the edges. Row i is
// scaled by scale[i] where that is not null.
template <typename S>
void split_pairs(const S* x, int64_t stride, const float* scale, int64_t depth, int64_t columns, uint16_t* tiles) {
  const __mmask16 filled = columns > 0 ? lanes(columns) : __mmask16(0);
  for (int64_t i = 0; i < kTileDepth; i += 2, tiles += kTileDepth) {
    const Parts a(i < depth ? scaled_row(scale, i, load(x + i * stride, filled)) : _mm512_setzero_ps());
    const Parts b(i + 1 < depth ? scaled_row(scale, i + 1, load(x + (i + 1) * stride, filled)) : _mm512_setzero_ps());
    for (int part = 0; part < 3; ++part)
      _mm512_storeu_si512(tiles + part * kTileNumbers,
                          _mm512_mask_mov_epi16(_mm512_maskz_srli_epi32(0xffff, a.part[part], 16), 0xaaaaaaaau, b.part[part]));
  }
}

// Three tiles by rows become their transpose by pairs, and the other way round.
inline void transpose_tiles(uint16_t* tiles) {
  for (int part = 0; part < 3; ++part) {
    float* bits = reinterpret_cast<float*>(tiles + part * kTileNumbers);
    Tile<float> tile;
    for (int64_t i = 0; i < kTileSide; ++i) tile.load(i, bits + i * kTileSide);
    tile.transpose();
    for (int64_t i = 0; i < kTileSide; ++i) tile.store(i, bits + i * kTileSide);
  }
}

// c[32][32] (+)= A B, its rows c_stride apart. left: the parts of A, by rows, [2 tiles of rows][steps of 32 along the
// depth], the second tile of rows left_stride behind the first; right: those of B, by pairs, [steps][2 tiles of columns].
// fetch(i) is called for each i in [0, fetches), evenly over the time that the tiles take: memory that is asked for all at
// once stops the processor.
template <typename Fetch>
inline void multiply_tiles(int64_t steps, const uint16_t* left, int64_t left_stride, const uint16_t* right, float* c,
                           int64_t c_stride, bool accumulate, int64_t fetches, const Fetch& fetch) {
  const int64_t stride = c_stride * static_cast<int64_t>(sizeof(float));
  const int64_t at_a_time = ceil_div(fetches, 6 * steps);
  int64_t fetched = 0;
  float* below = c + kTileSide * c_stride;
  asm volatile("" ::: "memory");  // the compiler does not know what tiles read
  if (accumulate) {
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + kTileSide, stride);
    _tile_loadd(2, below, stride);
    _tile_loadd(3, below + kTileSide, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
#define IMC_LEFT(part)                                 \
  _tile_loadd(4, left + part * kTileNumbers, 64);      \
  _tile_loadd(5, left + left_stride + part * kTileNumbers, 64)
#define IMC_RIGHT(part)                                \
  _tile_loadd(6, right + part * kTileNumbers, 64);     \
  _tile_loadd(7, right + kParts + part * kTileNumbers, 64)
#define IMC_MULTIPLY()       \
  _tile_dpbf16ps(0, 4, 6);   \
  _tile_dpbf16ps(1, 4, 7);   \
  _tile_dpbf16ps(2, 5, 6);   \
  _tile_dpbf16ps(3, 5, 7);   \
  for (int64_t i = 0; i < at_a_time && fetched < fetches; ++i) fetch(fetched++)
  for (int64_t step = 0; step < steps; ++step, left += kParts, right += 2 * kParts) {
    IMC_LEFT(2);
    IMC_RIGHT(0);
    IMC_MULTIPLY();
    IMC_LEFT(1);
    IMC_MULTIPLY();
    IMC_RIGHT(1);
    IMC_MULTIPLY();
    IMC_LEFT(0);
    IMC_MULTIPLY();
    IMC_RIGHT(2);
    IMC_MULTIPLY();
    IMC_RIGHT(0);
    IMC_MULTIPLY();
  }
#undef IMC_LEFT
#undef IMC_RIGHT
#undef IMC_MULTIPLY
  _tile_stored(0, c, stride);
  _tile_stored(1, c + kTileSide, stride);
  _tile_stored(2, below, stride);
  _tile_stored(3, below + kTileSide, stride);
}

}  // namespace

}  // namespace imc::IMC_ISA
