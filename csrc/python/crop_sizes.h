#pragma once

#include <cstdint>
#include <stdexcept>

namespace imc {

// What both multi_crop kernels take: their weights' integers have 32 bits.
inline void check_crop_sizes(std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t size) {
  if (channels != 1 && channels != 3) throw std::invalid_argument("multi_crop: images must have 1 or 3 channels");
  const std::int64_t side = height > width ? height : width;
  if (size > INT32_MAX || side > INT32_MAX || 2 * (size > 2 ? size : 2) * (side + size) > INT32_MAX) {
    throw std::invalid_argument("multi_crop: the crops or the images are too large");
  }
}

}  // namespace imc
