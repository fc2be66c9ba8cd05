// Colour jitter, grayscale and blur of a crop's pixels in [0, 1].
#pragma once

#include "imc/crop_parameters.h"
#include "primitives.cuh"

namespace imc::cuda {

enum class Operation { brightness, contrast, saturation, hue };

__device__ __forceinline__ float clamp01(float x) { return min_or_nan(max_or_nan(x, 0.f), 1.f); }

template <int kChannels>
struct Pixel {
  float v[kChannels];

  __device__ float luma() const {
    if constexpr (kChannels == 1) return v[0];
    else return 0.299f * v[0] + 0.587f * v[1] + 0.114f * v[2];
  }

  __device__ void blend(float factor, float shift) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) v[c] = clamp01(v[c] * factor + shift);
  }

  // With h the hue in sixths of a turn, in [0, 6), each channel of HSV is low + chroma * f(h) where f is a trapezium.
  __device__ void turn(float turns) {
    if constexpr (kChannels == 3) {
      const float r = v[0], g = v[1], b = v[2];
      const float high = fmaxf(fmaxf(r, g), b), low = fminf(fminf(r, g), b), chroma = high - low;
      const float difference = high == r ? g - b : high == g ? b - r : r - g;
      const float sector = high == r ? 0 : high == g ? 2 : 4;
      float h = difference / (chroma > 0 ? chroma : 1.f) + (sector + 6 * turns);
      h = h < 0 ? h + 6 : h;
      h = h >= 6 ? h - 6 : h;
      v[0] = low + chroma * clamp01(fabsf(h - 3) - 1);
      v[1] = low + chroma * clamp01(2 - fabsf(h - 2));
      v[2] = low + chroma * clamp01(2 - fabsf(h - 4));
    }
  }
};

// The operations of one crop, in the permutation of lexicographic rank `order`, 4 bits each.
struct Jitter {
  unsigned operations = 0;
  int contrast_turn = 0;
  float brightness, contrast, saturation, hue;

  __device__ Jitter(const float* __restrict__ factors, unsigned order)
      : brightness(factors[0]), contrast(factors[1]), saturation(factors[2]), hue(factors[3]) {
    unsigned left = 0x3210;
#pragma unroll
    for (int turn = 0; turn < 4; ++turn) {
      const unsigned rank = turn == 0 ? 6 : turn == 1 ? 2 : 1;
      const unsigned shift = order / rank * 4, operation = left >> shift & 15;
      order %= rank;
      left = (left & ((1u << shift) - 1)) | (left >> (shift + 4) << shift);
      operations |= operation << 4 * turn;
      if (operation == unsigned(Operation::contrast)) contrast_turn = turn;
    }
  }

  // `mean` is needed where `first` to `last` hold the contrast.
  template <int kChannels>
  __device__ void apply(Pixel<kChannels>& pixel, int first, int last, float mean) const {
    for (int turn = first; turn < last; ++turn) {
      switch (static_cast<Operation>(operations >> 4 * turn & 15)) {
        case Operation::brightness:
          pixel.blend(brightness, 0);
          break;
        case Operation::contrast:
          pixel.blend(contrast, mean * (1 - contrast));
          break;
        case Operation::saturation:
          if (kChannels == 3) pixel.blend(saturation, pixel.luma() * (1 - saturation));
          break;
        case Operation::hue:
          pixel.turn(hue);
      }
    }
  }
};

// A Gaussian of 9 pixels along lines that continue by reflection at their ends.
struct Blur {
  static constexpr int kRadius = 4, kTaps = 2 * kRadius + 1;
  float weights[kRadius + 1];  // by distance

  __device__ explicit Blur(float sigma) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k <= kRadius; ++k) {
      const float z = float(k) / sigma;
      weights[k] = expf(-0.5f * z * z);
      sum += k == 0 ? weights[k] : 2 * weights[k];
    }
#pragma unroll
    for (int k = 0; k <= kRadius; ++k) weights[k] /= sum;
  }

  __device__ static unsigned reflect(int at, int size) {
    const int period = max(2 * (size - 1), 1);
    const int folded = (at + kRadius * period) % period;
    return unsigned(min(folded, period - folded));
  }

  // In place, by one thread, which keeps the neighbours' old values: each is read once.
  __device__ void operator()(float* line, unsigned step, int size) const {
    float window[kTaps], tail[kRadius];
#pragma unroll
    for (int k = 0; k < kTaps - 1; ++k) window[k + 1] = line[reflect(k - kRadius, size) * step];
#pragma unroll
    for (int k = 0; k < kRadius; ++k) tail[k] = line[reflect(size + k, size) * step];
#pragma unroll 9
    for (int x = 0; x < size - kRadius; ++x) line[x * step] = slide(window, line[(x + kRadius) * step]);
#pragma unroll
    for (int k = 0; k < kRadius; ++k) {
      const int x = size - kRadius + k;
      if (x >= 0) line[x * step] = slide(window, tail[k]);
    }
  }

 private:
  __device__ float slide(float (&window)[kTaps], float next) const {
#pragma unroll
    for (int k = 0; k < kTaps - 1; ++k) window[k] = window[k + 1];
    window[kTaps - 1] = next;
    float sum = weights[0] * window[kRadius];
#pragma unroll
    for (int k = 1; k <= kRadius; ++k) sum += weights[k] * (window[kRadius - k] + window[kRadius + k]);
    return sum;
  }
};

}  // namespace imc::cuda
