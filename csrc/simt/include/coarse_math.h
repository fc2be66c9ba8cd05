// The functions of float that kernels take from CUDA's library, as far off as it allows itself to be.
//
// Most ulp of error, from the table of single-precision functions in the CUDA C++ Programming Guide: expf and exp2f 2,
// logf and log2f 1, rsqrtf 2; without -use_fast_math, which the kernels are not built with. Here the C library's results,
// correct to 0.51 ulp, are moved by so many, up or down by a hash of the argument. Exact as on the device: the values at
// arguments of 0 and 1 that are whole numbers, 0, infinities and NaN.
#pragma once

#include <cmath>
#include <cstdint>

namespace simt {

float off_by(std::int32_t ulp, float result, float argument);

}  // namespace simt

// Where the kernels' own names are looked up, before the C library's.
namespace imc::cuda {

inline float exp2f(float x) { return x == 0 ? 1.f : simt::off_by(2, ::exp2f(x), x); }
inline float expf(float x) { return x == 0 ? 1.f : simt::off_by(2, ::expf(x), x); }
inline float logf(float x) { return simt::off_by(1, ::logf(x), x); }
inline float log2f(float x) { return simt::off_by(1, ::log2f(x), x); }
inline float rsqrtf(float x) { return x == 1 ? 1.f : simt::off_by(2, 1 / std::sqrt(x), x); }

}  // namespace imc::cuda
