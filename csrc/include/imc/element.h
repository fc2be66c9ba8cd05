// The element types that Python names by number (imc_kernels/native.py, ELEMENT_CODES).
#pragma once

#include <cstdint>

namespace imc {

enum class Element : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// Half precision as it lies in memory.
struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

}  // namespace imc
