// Colour jitter, grayscale and blur on planes of numbers in [0, 1].
//
// A plane holds s * s numbers, then at least as many spare ones as complete its last vector: loops run over whole
// vectors.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "gemm.h"

namespace imc::IMC_ISA {

template <typename V>
V maximum(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
V minimum(V a, V b) {
  return a < b ? a : b;
}
#if defined(__AVX512F__)
// All lanes, in the masked form: GCC 12 warns of its own header in the other.
inline __m512 maximum(__m512 a, __m512 b) { return _mm512_maskz_max_ps(0xffff, a, b); }
inline __m512 minimum(__m512 a, __m512 b) { return _mm512_maskz_min_ps(0xffff, a, b); }
#elif defined(__AVX2__)
inline __m256 maximum(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __m256 minimum(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
#endif

template <typename V>
V clamp01(V x) {
  return minimum(maximum(x, V{}), V{} + 1);
}

// The colour operations of one crop, in place.
template <int Channels, typename T>
struct Colour {
  using V = typename Vector<T>::type;
  using Unaligned = typename Vector<T>::unaligned;
  static constexpr int lanes = Vector<T>::lanes;

  Unaligned *red, *green, *blue;  // one and the same where there is one channel
  int64_t count;                  // s * s
  int64_t vectors;                // that hold them; what is spare is 0 at first

  Colour(T* red, T* green, T* blue, int64_t count)
      : red(reinterpret_cast<Unaligned*>(red)),
        green(reinterpret_cast<Unaligned*>(green)),
        blue(reinterpret_cast<Unaligned*>(blue)),
        count(count),
        vectors(ceil_div(count, lanes)) {}

  static V luma(V r, V g, V b) { return T(0.299) * r + T(0.587) * g + T(0.114) * b; }

  void brightness(T factor) const {
    Unaligned* const planes[3] = {red, green, blue};
    for (int c = 0; c < Channels; ++c)
      for (int64_t i = 0; i < vectors; ++i) planes[c][i] = clamp01<V>(planes[c][i] * factor);
  }

  // The mean is that of all the vectors: no operation before this one makes a spare 0 anything else.
  void contrast(T factor) const {
    constexpr int64_t chunk = 64;  // sums in two steps keep their rounding errors small
    V total = {};
    for (int64_t first = 0; first < vectors; first += chunk) {
      const int64_t last = first + chunk < vectors ? first + chunk : vectors;
      V sums[3] = {};
      for (int64_t i = first; i < last; ++i) {
        sums[0] += red[i];
        if (Channels == 3) {
          sums[1] += green[i];
          sums[2] += blue[i];
        }
      }
      total += Channels == 3 ? luma(sums[0], sums[1], sums[2]) : sums[0];
    }
    T mean = 0;
    for (int lane = 0; lane < lanes; ++lane) mean += total[lane];
    const T shift = mean / static_cast<T>(count) * (1 - factor);
    Unaligned* const planes[3] = {red, green, blue};
    for (int c = 0; c < Channels; ++c)
      for (int64_t i = 0; i < vectors; ++i) planes[c][i] = clamp01<V>(planes[c][i] * factor + shift);
  }

  void saturation(T factor) const {
    if (Channels == 1) return;
    for (int64_t i = 0; i < vectors; ++i) {
      const V r = red[i], g = green[i], b = blue[i], shift = luma(r, g, b) * (1 - factor);
      red[i] = clamp01(r * factor + shift);
      green[i] = clamp01(g * factor + shift);
      blue[i] = clamp01(b * factor + shift);
    }
  }

  // With h the hue in sixths of a turn, in [0, 6), each channel of HSV is low + chroma * f(h) where f is a trapezium: 1
  // over a third of the circle, 0 over another, linear between. Only h takes a division. The result needs no clamp:
  // low + (high - low) does not round to more than 1.
  void hue(T turns) const {
    if (Channels == 1) return;
    const T shift = 6 * turns;
    const V zero = {}, one = zero + 1;
    for (int64_t i = 0; i < vectors; ++i) {
      const V r = red[i], g = green[i], b = blue[i];
      const V high = maximum(maximum(r, g), b), low = minimum(minimum(r, g), b), chroma = high - low;
      V difference = high == g ? b - r : r - g, sector = high == g ? zero + 2 : zero + 4;
      difference = high == r ? g - b : difference;
      sector = high == r ? zero : sector;
      V h = difference / (chroma > 0 ? chroma : one) + (sector + shift);
      h = h < 0 ? h + 6 : h;
      h = h >= 6 ? h - 6 : h;
      red[i] = low + chroma * clamp01(maximum(h - 3, 3 - h) - 1);
      green[i] = low + chroma * clamp01(2 - maximum(h - 2, 2 - h));
      blue[i] = low + chroma * clamp01(2 - maximum(h - 4, 4 - h));
    }
  }

  // Brightness, contrast, saturation and hue by their factors, in the permutation of lexicographic rank `order`.
  void jitter(const float* factors, int order) const {
    const int ranks[4] = {6, 2, 1, 1};
    int left[4] = {0, 1, 2, 3};
    for (int step = 0; step < 4; ++step) {
      const int pick = order / ranks[step], operation = left[pick];
      order %= ranks[step];
      for (int i = pick; i < 3 - step; ++i) left[i] = left[i + 1];
      const T factor = static_cast<T>(factors[operation]);
      if (operation == 0) brightness(factor);
      if (operation == 1) contrast(factor);
      if (operation == 2) saturation(factor);
      if (operation == 3) hue(factor);
    }
  }

  void grayscale() const {
    if (Channels == 1) return;
    for (int64_t i = 0; i < vectors; ++i) red[i] = green[i] = blue[i] = luma(red[i], green[i], blue[i]);
  }
};

// A separable Gaussian of kTaps x kTaps pixels on planes of size x size, continued by reflection at their edges.
template <typename T>
struct Blur {
  using V = typename Vector<T>::type;
  using Unaligned = typename Vector<T>::unaligned;
  static constexpr int kRadius = 4, kTaps = 2 * kRadius + 1, lanes = Vector<T>::lanes;

  int64_t size, stride;
  T* line;          // [stride + lanes + 2 kRadius]
  T* image;         // [size][stride]
  int32_t* folded;  // [size + 2 kRadius]: where the line's pixel i - kRadius is found

  static int64_t row_stride(int64_t size) { return ceil_div(size, lanes) * lanes; }
  static int64_t number_count(int64_t size) {
    return (size + 1) * row_stride(size) + ceil_div(2 * kRadius, lanes) * lanes + lanes;
  }
  static int64_t index_count(int64_t size) { return size + 2 * kRadius; }

  Blur(int64_t size, T* numbers, int32_t* indices)
      : size(size), stride(row_stride(size)), line(numbers + size * stride), image(numbers), folded(indices) {}

  void fold() {
    const int64_t period = size > 1 ? 2 * (size - 1) : 1;
    for (int64_t i = 0; i < size + 2 * kRadius; ++i) {
      const int64_t x = (i + kRadius * (period - 1)) % period;  // i - kRadius, but for whole periods
      folded[i] = static_cast<int32_t>(x < size ? x : period - x);
    }
  }

  // What the last block of a row writes beyond it is overwritten by the next row, or spare.
  void operator()(T* plane, T sigma) const {
    T weights[kTaps], sum = 0;
    for (int k = 0; k < kTaps; ++k) {
      const T z = static_cast<T>(k - kRadius) / sigma;
      weights[k] = exp_bounded(T(-0.5) * z * z);
      sum += weights[k];
    }
    for (int k = 0; k < kTaps; ++k) weights[k] /= sum;
    const T* rows[kTaps];
    for (int64_t i = size; i < stride + lanes; ++i) line[i + kRadius] = 0;
    for (int64_t y = 0; y < size; ++y) {
      const T* row = plane + y * size;
#pragma omp simd
      for (int64_t x = 0; x < size; ++x) line[kRadius + x] = row[x];
      for (int64_t x = 0; x < kRadius; ++x) {
        line[x] = row[folded[x]];
        line[kRadius + size + x] = row[folded[kRadius + size + x]];
      }
      for (int k = 0; k < kTaps; ++k) rows[k] = line + k;
      weigh(rows, weights, image + y * stride);
    }
    for (int64_t y = 0; y < size; ++y) {
      for (int k = 0; k < kTaps; ++k) rows[k] = image + folded[y + k] * stride;
      weigh(rows, weights, plane + y * size);
    }
  }

  void weigh(const T* const* rows, const T* weights, T* out) const {
    for (int64_t x = 0; x < size; x += lanes) {
      V sum = {};
#pragma GCC unroll 9
      for (int k = 0; k < kTaps; ++k) sum += weights[k] * *reinterpret_cast<const Unaligned*>(rows[k] + x);
      *reinterpret_cast<Unaligned*>(out + x) = sum;
    }
  }
};

}  // namespace imc::IMC_ISA
