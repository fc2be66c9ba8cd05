// exp and log that vectorise inside an `omp simd` loop. Double uses the C library: it serves checks, not training.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

namespace imc::IMC_ISA {

// exp(x) for x <= 88, error under 1.5 ulp. Below the smallest normal number it gives 0; NaN stays NaN.
// exp(x) = 2^n exp(r), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2]; the coefficients are those of Cephes' expf.
inline float exp_bounded(float x) {
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer and leaves that in the low bits
  const float shifted = x * 1.44269504088896341f + shift;
  const float n = shifted - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 127u) << 23);
  float scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return x < -87.33654f ? 0.f : p * scale;
}

inline double exp_bounded(double x) { return __builtin_exp(x); }

// exp(x) for x <= 88, numbers below the smallest normal one too, error under 4 ulp: for a sum of products that may be of
// their size.
template <typename T>
inline T exp_gradual(T x) {
  const T root = exp_bounded(x * T(0.5));
  return root * root;
}

// log(x) for x a positive normal number, error under 1.5 ulp; NaN and infinity give NaN. Coefficients of Cephes' logf.
inline float log_normal(float x) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const int32_t offset = bits - 0x3f3504f3;  // bits of sqrt(1/2): the mantissa below lies in [sqrt(1/2), sqrt(2))
  const float e = static_cast<float>(offset >> 23);
  bits = (offset & 0x007fffff) + 0x3f3504f3;
  float m;
  __builtin_memcpy(&m, &bits, sizeof m);
  const float f = m - 1.f;
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * z - e * 2.12194440e-4f - 0.5f * z;
  return (f + p) + e * 0.693359375f + (x - x);
}

inline double log_normal(double x) { return __builtin_log(x); }

inline float smallest_normal(float) { return FLT_MIN; }
inline double smallest_normal(double) { return DBL_MIN; }
inline float lowest(float) { return -FLT_MAX; }
inline double lowest(double) { return -DBL_MAX; }

}  // namespace imc::IMC_ISA
