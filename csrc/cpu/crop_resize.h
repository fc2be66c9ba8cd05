// Antialiased bilinear resize of a box of 8-bit interleaved pixels to planes of numbers.
//
// Rows first, on the pixels as they lie; then columns, where a block of neighbouring results is the product of a short
// run of pixels and a matrix of weights: no gathers, no transposition, and mirroring is a matter of the matrix.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "gemm.h"

namespace imc::IMC_ISA {

// Weights of an axis of `size` results. Result block * lanes + lane is the sum, over k in [0, span of the block), of
// block weights[k * lanes + lane] times input[block start + k]; only inputs in [first, last) of a result count.
template <typename T>
struct Axis {
  static constexpr int64_t lanes = Vector<T>::lanes;
  T* weights;
  int32_t *first, *last;           // [size], input pixels
  int32_t *start, *span, *offset;  // [blocks]; offset of the block's weights

  static int64_t weight_count(int64_t longest, int64_t size) { return ceil_div(size, lanes) * lanes * longest; }
  static int64_t index_count(int64_t size) { return 2 * size + 3 * ceil_div(size, lanes); }

  Axis(int64_t size, T* numbers, int32_t* indices)
      : weights(numbers),
        first(indices),
        last(first + size),
        start(last + size),
        span(start + ceil_div(size, lanes)),
        offset(span + ceil_div(size, lanes)) {}

  // The triangle filter of half-width max(1, length / size) input pixels. In units of 1 / (2 size) pixels all distances
  // are integers, and the weights but for their sum exact. They add up to `total`.
  void build(int32_t length, int32_t size, bool mirrored, T total) const {
    const int32_t reach = 2 * (length > size ? length : size);
    for (int32_t o = 0, low = 0, high = 0; o < size; ++o) {
      const int32_t centre = (2 * o + 1) * length, at = mirrored ? size - 1 - o : o;
      while ((2 * low + 1) * size + reach <= centre) ++low;
      while (high < length && (2 * high + 1) * size < centre + reach) ++high;
      first[at] = low;
      last[at] = high;
    }
    T* block_weights = weights;
    for (int32_t block = 0; block * lanes < size; ++block) {
      const int32_t left = static_cast<int32_t>(block * lanes);
      const int32_t right = left + lanes < size ? static_cast<int32_t>(left + lanes - 1) : size - 1;
      start[block] = mirrored ? first[right] : first[left];
      span[block] = (mirrored ? last[left] : last[right]) - start[block];
      offset[block] = static_cast<int32_t>(block_weights - weights);
      int32_t centres[lanes];
      T sums[lanes];
      for (int32_t lane = 0; lane < lanes; ++lane) {
        const int32_t at = left + lane < right ? left + lane : right;
        centres[lane] = (2 * (mirrored ? size - 1 - at : at) + 1) * length;
        sums[lane] = 0;
      }
      for (int32_t k = 0; k < span[block]; ++k) {
        const int32_t position = (2 * (start[block] + k) + 1) * size;
#pragma omp simd
        for (int32_t lane = 0; lane < lanes; ++lane) {
          const int32_t distance = position > centres[lane] ? position - centres[lane] : centres[lane] - position;
          const T weight = static_cast<T>(reach > distance ? reach - distance : 0);
          block_weights[k * lanes + lane] = weight;
          sums[lane] += weight;
        }
      }
      for (int32_t lane = 0; lane < lanes; ++lane) sums[lane] = total / sums[lane];
      for (int32_t k = 0; k < span[block]; ++k)
#pragma omp simd
        for (int32_t lane = 0; lane < lanes; ++lane) block_weights[k * lanes + lane] *= sums[lane];
      block_weights += span[block] * lanes;
    }
  }
};

// As many pixels as a vector has lanes. GCC 12 finds the instruction that widens bytes by four in no portable form.
template <typename T>
typename Vector<T>::type load_pixels(const uint8_t* pixels) {
  typename Vector<T>::type numbers;
  for (int lane = 0; lane < Vector<T>::lanes; ++lane) numbers[lane] = static_cast<T>(pixels[lane]);
  return numbers;
}
#if defined(__AVX512F__)
template <>
inline Vector<float>::type load_pixels<float>(const uint8_t* pixels) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels));
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes));  // masked: see crop_colour.h
}
#elif defined(__AVX2__)
template <>
inline Vector<float>::type load_pixels<float>(const uint8_t* pixels) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixels))));
}
#endif

// narrow[size][stride] = the rows of a box, `width` bytes each, weighted by `axis`.
template <typename T>
void resize_rows(const uint8_t* box, int64_t image_stride, int64_t width, const Axis<T>& axis, int64_t size, T* narrow,
                 int64_t stride) {
  using V = typename Vector<T>::type;
  using Unaligned = typename Vector<T>::unaligned;
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t y = 0; y < size; ++y) {
    const int64_t block = y / lanes, taps = axis.last[y] - axis.first[y];
    const T* weights = axis.weights + axis.offset[block] + (axis.first[y] - axis.start[block]) * lanes + y % lanes;
    const uint8_t* pixels = box + axis.first[y] * image_stride;
    T* out = narrow + y * stride;
    if (width < lanes) {
      for (int64_t x = 0; x < width; ++x) {
        T sum = 0;
        for (int64_t k = 0; k < taps; ++k) sum += weights[k * lanes] * static_cast<T>(pixels[k * image_stride + x]);
        out[x] = sum;
      }
      continue;
    }
    for (int64_t x = 0; x < width; x += lanes) {
      if (x > width - lanes) x = width - lanes;  // the last vector overlaps: nothing beyond the box is read
      V sum = {};
      for (int64_t k = 0; k < taps; ++k) sum += weights[k * lanes] * load_pixels<T>(pixels + k * image_stride + x);
      *reinterpret_cast<Unaligned*>(out + x) = sum;
    }
  }
}

// `Rows` rows of all channels. Blocks run from right to left: what the last one writes beyond its row is overwritten.
template <int Rows, int Channels, typename T>
void resize_tile(const T* narrow, int64_t stride, const Axis<T>& axis, int64_t size, T* planes, int64_t plane) {
  using V = typename Vector<T>::type;
  using Unaligned = typename Vector<T>::unaligned;
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t block = ceil_div(size, lanes) - 1; block >= 0; --block) {
    const T* weights = axis.weights + axis.offset[block];
    const T* pixels = narrow + axis.start[block] * Channels;
    V sums[Rows][Channels] = {};
    for (int64_t k = 0; k < axis.span[block]; ++k) {
      const V weight = *reinterpret_cast<const Unaligned*>(weights + k * lanes);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
        for (int c = 0; c < Channels; ++c) sums[r][c] += pixels[r * stride + k * Channels + c] * weight;
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
      for (int c = 0; c < Channels; ++c)
        *reinterpret_cast<Unaligned*>(planes + c * plane + r * size + block * lanes) = sums[r][c];
  }
}

// planes[Channels][size * size], `plane` numbers apart = the rows of `narrow`, weighted by `axis`. Spare numbers at the
// end of a plane are overwritten.
template <int Channels, typename T>
void resize_columns(const T* narrow, int64_t stride, const Axis<T>& axis, int64_t size, T* planes, int64_t plane) {
  constexpr int tile = 4;
  int64_t y = 0;
  for (; y + tile <= size; y += tile)
    resize_tile<tile, Channels>(narrow + y * stride, stride, axis, size, planes + y * size, plane);
  for (; y < size; ++y) resize_tile<1, Channels>(narrow + y * stride, stride, axis, size, planes + y * size, plane);
}

}  // namespace imc::IMC_ISA
