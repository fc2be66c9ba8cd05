// Sums of exponentials (to base 2) of scores, by two algebras of one interface: a kernel written over either serves both.
#pragma once

#include <cfloat>

#include "primitives.cuh"

namespace imc::cuda {

// Exponentials and their factors, as themselves.
struct Scaling {
  using Factor = float;
  static constexpr int kUnroll = 8;  // terms in flight

  struct Sum {
    float sum = 0;
    __device__ float total() const { return sum; }
    __device__ void add(float x) { sum += x; }
    __device__ void add_across_warp() {
      sum = warp_reduce(sum, [](float a, float b) { return a + b; });
    }
  };

  float shift, scale;

  __device__ Scaling(float shift, double scale) : shift(shift), scale(float(scale)) {}
  static __device__ float one() { return 1; }
  static __device__ float factor(float total, float mass) { return mass / total; }
  __device__ float element(float score) const { return exp2_normal((score - shift) * scale); }  // what a tile holds
  __device__ float product(float element, float factor) const { return element * factor; }
  __device__ float value(float product, float factor) const { return product * factor; }
  // Of a column's factor for exponentials of the scores themselves, without the shift; and of a row's.
  __device__ double column_logarithm(float factor) const { return log2(double(factor)) - double(shift) * scale; }
  __device__ double row_logarithm(float factor) const { return log2(double(factor)); }
};

// Logarithms. They may be thousands and cancel: all is taken in double but the exponentials.
struct Logarithm {
  using Factor = double;
  static constexpr int kUnroll = 4;  // one exponential each

  // sum * 2^high
  struct Sum {
    double high = -DBL_MAX, sum = 0;
    __device__ double total() const { return high + log2(sum); }
    __device__ void add(double x) {
      const float difference = float(x - high);
      const float smaller = exp2f(-fabsf(difference));
      sum = difference > 0 ? sum * double(smaller) + 1 : sum + double(smaller);
      high = fmax(high, x);
    }
    __device__ void add_across_warp() {
      const double highest = warp_reduce(high, [](double a, double b) { return fmax(a, b); });
      sum = warp_reduce(sum * double(exp2f(float(high - highest))), [](double a, double b) { return a + b; });
      high = highest;
    }
  };

  double shift, scale;

  __device__ Logarithm(float shift, double scale) : shift(shift), scale(scale) {}
  static __device__ double one() { return 0; }
  static __device__ double factor(double total, float mass) { return log2(double(mass)) - total; }
  __device__ float element(float score) const { return score; }
  __device__ double product(float element, double factor) const { return (double(element) - shift) * scale + factor; }
  __device__ float value(double product, double factor) const { return exp2f(float(product + factor)); }
  __device__ double column_logarithm(double factor) const { return factor - shift * scale; }
  __device__ double row_logarithm(double factor) const { return factor; }
};

}  // namespace imc::cuda
