// The random numbers of a crop: imc_kernels/ops/crop_parameters.py says how they follow from seed, step, sample and view.
#pragma once

#include <cmath>
#include <cstdint>

#include "imc/crop_parameters.h"
#include "primitives.cuh"

namespace imc::cuda {

// Of a CropDraw.
struct Draw {
  const int64_t* samples;  // [batch]; null: the parameters are given
  const int64_t* step;     // [], or null: it is in the key
  const double* law;       // [20]
  uint64_t key, first_view;
};

// SplitMix64's output function.
__device__ __forceinline__ uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// By one warp. Each of a crop's 16 words is two numbers; the first 10 of all low halves, then of all high ones, are the
// attempts' areas, the next 10 their ratios.
__device__ inline void draw_parameters(const Draw& draw, int64_t view, int64_t sample, int height, int width, float* p) {
  constexpr int kWords = 16, kAttempts = 10, kRest = 2 * kAttempts - kWords;  // the lane with the first number behind them
  const int lane = threadIdx.x % kWarp;
  const double* law = draw.law;
  uint64_t key = draw.key;
  if (draw.step) key = mixed(key + uint64_t(*draw.step));
  key = mixed(mixed(key + draw.first_view + uint64_t(view)) + uint64_t(sample));
  const uint64_t word = mixed(key + uint64_t(lane % kWords + 1) * 0x9E3779B97F4A7C15u);
  const double low = double(word & 0xFFFFFF) * 0x1p-24, high = double(word >> 40) * 0x1p-24;
  const auto from = [](double x, int source) { return __shfl_sync(kAllLanes, x, source); };

  const int second = lane % kWords + kAttempts;
  const double of_low = from(low, second % kWords), of_high = from(high, second % kWords);
  const double area = sqrt(low * law[0] + law[1]);
  const double root = exp((second < kWords ? of_low : of_high) * law[2] + law[3]);
  const double tall = rint(area / root), wide = rint(area * root);
  const bool fits = lane < kAttempts && tall >= 1 && tall <= height && wide >= 1 && wide <= width;
  const unsigned fitting = __ballot_sync(kAllLanes, fits);
  int first = 0;
  while (fitting && !(fitting >> first & 1)) ++first;
  const double box_height = fitting ? from(tall, first) : law[4], box_width = fitting ? from(wide, first) : law[5];
  const double free_height = height - box_height, free_width = width - box_width;
  const double down = from(high, kRest), along = from(high, kRest + 1);
  const bool blurred = from(high, kRest + 10) < law[19];
  if (lane == 0) {
    p[kTop] = float(floor(fitting ? down * (free_height + 1) : free_height / 2));
    p[kLeft] = float(floor(fitting ? along * (free_width + 1) : free_width / 2));
    p[kHeight] = float(box_height);
    p[kWidth] = float(box_width);
  }
  const int number = lane - kRest;  // what this lane's high half is among those behind the attempts
  if (number >= 2 && number < 7) {
    const int factor = number - 2;
    p[kFactors + factor] = kFactors + factor == kBlur && !blurred ? 0.f : float(law[6 + 2 * factor] + high * law[7 + 2 * factor]);
  } else if (number >= 7 && number < 10) {
    p[kFlip + number - 7] = high < law[16 + number - 7];
  } else if (number == 11) {
    p[kOrder] = float(floor(high * 24));
  }
}

}  // namespace imc::cuda
