// The element types that Python names by number (imc_kernels/native.py, ELEMENT_CODES).
#pragma once

namespace imc {

enum class Element : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

}  // namespace imc
