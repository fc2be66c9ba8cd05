// Sums of exponentials (to base 2), by two algebras of one interface: a kernel written over either serves both.
#pragma once

#include <cfloat>

#include "primitives.cuh"

namespace imc::cuda {

// A sum of exponentials, as itself.
struct Scaling {
  static constexpr int kUnroll = 8;  // terms in flight
  float sum = 0;

  static __device__ float one() { return 1; }
  static __device__ float element(float exponent) { return exp2f(exponent); }
  static __device__ float product(float a, float b) { return a * b; }
  static __device__ float factor(float total, float mass) { return mass / total; }
  static __device__ float value(float x) { return x; }
  static __device__ float logarithm(float x) { return log2f(x); }
  __device__ float total() const { return sum; }
  __device__ void add(float x) { sum += x; }
  __device__ void add_across_warp() {
    sum = warp_reduce(sum, [](float a, float b) { return a + b; });
  }
};

// A sum of exponentials, as its logarithm: sum * 2^high.
struct Logarithm {
  static constexpr int kUnroll = 4;  // one exponential each
  float high = -FLT_MAX;
  float sum = 0;

  static __device__ float one() { return 0; }
  static __device__ float element(float exponent) { return exponent; }
  static __device__ float product(float a, float b) { return a + b; }
  static __device__ float factor(float total, float mass) { return log2f(mass) - total; }
  static __device__ float value(float x) { return exp2f(x); }
  static __device__ float logarithm(float x) { return x; }
  __device__ float total() const { return high + log2f(sum); }
  __device__ void add(float x) {
    const float difference = x - high;
    const float smaller = exp2f(-fabsf(difference));
    sum = difference > 0 ? sum * smaller + 1 : sum + smaller;
    high = fmaxf(high, x);
  }
  __device__ void add_across_warp() {
    const float highest = warp_reduce(high, [](float a, float b) { return fmaxf(a, b); });
    sum = warp_reduce(sum * exp2f(high - highest), [](float a, float b) { return a + b; });
    high = highest;
  }
};

}  // namespace imc::cuda
