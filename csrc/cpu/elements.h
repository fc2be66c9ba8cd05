// From elements of memory to the numbers that are computed with, and back. Kernels are templates over the element type S;
// Number<S> is what they compute in.
#pragma once

#include <cstdint>

#include "imc/element.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace imc::IMC_ISA {

inline float number(float x) { return x; }
inline double number(double x) { return x; }
inline float number(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
// By integers: arithmetic on numbers below the smallest normal one takes a hundred times as long.
inline float number(float16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu, sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t half_and = 0x3f000000u | magnitude;  // 1/2 + magnitude 2^-24, where that is below 2^-14
  float small;
  __builtin_memcpy(&small, &half_and, sizeof small);
  small -= 0.5f;
  uint32_t below, bits = (magnitude << 13) + (magnitude < 0x7c00u ? 112u << 23 : 224u << 23);
  __builtin_memcpy(&below, &small, sizeof below);
  bits = (magnitude < 0x400u ? below : bits) | sign;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// Round to nearest even. Not by AVX-512's instruction for bfloat16, which takes numbers below the smallest normal one
// for 0.
inline void convert(float x, float* out) { *out = x; }
inline void convert(double x, double* out) { *out = x; }
inline void convert(float x, bfloat16* out) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  out->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline void convert(float x, float16* out) {
  uint32_t bits, fixed;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  normal = magnitude < 0x47800000u ? normal : 0x7c00u;  // from 2^16 on, as below from 65520 on: infinity
  normal = magnitude > 0x7f800000u ? 0x7e00u : normal;
  // Below 2^-14 a half is a multiple of 2^-24, the distance of floats at 1/2: adding that rounds to it.
  float shifted;
  __builtin_memcpy(&shifted, &magnitude, sizeof shifted);
  shifted += 0.5f;
  __builtin_memcpy(&fixed, &shifted, sizeof fixed);
  out->bits = static_cast<uint16_t>((magnitude < 0x38800000u ? fixed - 0x3f000000u : normal) | sign);
}

// to[i] = from[i] for [0, n).
template <typename From, typename To>
inline void copy_elements(const From* from, To* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) convert(number(from[i]), to + i);
}

// The compilers know no vectors of float16.
#if defined(__AVX512F__)
// The first n of 16 lanes.
inline __mmask16 lanes(int64_t n) { return static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffffu); }

inline void copy_elements(const float16* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 filled = lanes(n - i);
    _mm512_mask_storeu_ps(to + i, filled, _mm512_maskz_cvtph_ps(filled, _mm256_maskz_loadu_epi16(filled, from + i)));
  }
}
inline void copy_elements(const float* from, float16* to, int64_t n) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 filled = lanes(n - i);
    const __m512 x = _mm512_maskz_loadu_ps(filled, from + i);
    _mm256_mask_storeu_epi16(to + i, filled, _mm512_maskz_cvtps_ph(filled, x, kNearest));
  }
}
#elif defined(__F16C__)
inline void copy_elements(const float16* from, float* to, int64_t n) {
  for (; n >= 8; n -= 8, from += 8, to += 8)
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  for (int64_t i = 0; i < n; ++i) to[i] = number(from[i]);
}
inline void copy_elements(const float* from, float16* to, int64_t n) {
  for (; n >= 8; n -= 8, from += 8, to += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
  for (int64_t i = 0; i < n; ++i) convert(from[i], to + i);
}
#endif

// The numbers of a row: where it lies, or converted in a buffer of its length.
template <typename S>
inline const Number<S>* numbers_of(const S* row, Number<S>* buffer, int64_t n) {
  if constexpr (!kIsHalf<S>) {
    return row;
  } else {
    copy_elements(row, buffer, n);
    return buffer;
  }
}

// Where the numbers of a row are to be written, before finish_row(): where it lies, or in a buffer of its length.
template <typename S>
inline Number<S>* numbers_for(S* row, Number<S>* buffer) {
  if constexpr (kIsHalf<S>)
    return buffer;
  else
    return row;
}

template <typename S>
inline void finish_row(const Number<S>* numbers, S* row, int64_t n) {
  if constexpr (kIsHalf<S>) copy_elements(numbers, row, n);
}

}  // namespace imc::IMC_ISA
