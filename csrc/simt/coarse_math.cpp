#include "coarse_math.h"

#include <cstring>

namespace simt {

float off_by(std::int32_t ulp, float result, float argument) {
  if (!std::isfinite(result) || result == 0) return result;
  std::uint32_t seed;
  std::int32_t bits;
  std::memcpy(&seed, &argument, sizeof seed);
  std::memcpy(&bits, &result, sizeof bits);
  const std::int32_t magnitude = bits & 0x7fffffff;
  const bool up = (seed * 2654435761u >> 16 & 1) || magnitude <= ulp;
  bits += up && magnitude + ulp < 0x7f800000 ? ulp : -ulp;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace simt
