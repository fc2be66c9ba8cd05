// Half precision as it lies in memory.
#pragma once

#include <cstdint>

namespace imc {

struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

}  // namespace imc
