// Half precision as it lies in memory, and what kernels that read it compute in.
#pragma once

#include <cstdint>
#include <type_traits>

namespace imc {

struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

template <typename S>
constexpr bool kIsHalf = std::is_same_v<S, bfloat16> || std::is_same_v<S, float16>;

// float for half precision, otherwise the same.
template <typename S>
using Number = std::conditional_t<kIsHalf<S>, float, S>;

// Of a gradient that is still to be scaled: float16's range is too small for it.
template <typename S>
using Gradient = std::conditional_t<std::is_same_v<S, float16>, float, S>;

}  // namespace imc
