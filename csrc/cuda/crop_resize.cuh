// Antialiased bilinear resize of a box of 8-bit interleaved pixels to planes of floats.
#pragma once

#include <cstdint>

#include "primitives.cuh"

namespace imc::cuda {

// Weights of an axis of `size` results: the triangle filter of half-width max(1, length / size) pixels of the box. In
// units of 1 / (2 size) pixels all distances are integers, and the weights but for their sum exact. Unsigned, since
// sums of three of them reach beyond 2^31.
struct Axis {
  unsigned length, size;

  __device__ unsigned reach() const { return 2 * max(length, size); }
  __device__ unsigned centre(unsigned result) const { return (2 * result + 1) * length; }
  // The pixels that weigh in a result: [first, last).
  __device__ unsigned first(unsigned result) const {
    const unsigned end = centre(result) + size;
    return end > reach() ? (end - reach()) / (2 * size) : 0;
  }
  __device__ unsigned last(unsigned result) const {
    return min((centre(result) + reach() + size - 1) / (2 * size), length);
  }
  __device__ float weight(unsigned pixel, unsigned centre) const {
    const unsigned position = (2 * pixel + 1) * size;
    return float(reach() - (position > centre ? position - centre : centre - position));
  }
};

// One row of the result, by a warp. `narrow`, [box_width * kChannels] floats of the warp's own, first receives the
// weighted sum of the box's rows, whose bytes are read as they lie: neighbouring lanes read neighbouring bytes.
template <int kChannels>
__device__ __forceinline__ void resize_row(const uint8_t* __restrict__ box, int64_t row_bytes, const Axis& down,
                                           const Axis& along, bool mirrored, unsigned y, float* narrow, float* planes,
                                           unsigned stride, unsigned plane) {
  constexpr unsigned kLoads = 4;  // in flight
  const unsigned lane = threadIdx.x % kWarp, bytes = along.length * kChannels, centre = down.centre(y);
  const unsigned first = down.first(y), last = down.last(y);
  for (unsigned start = lane; start < bytes; start += kLoads * kWarp) {
    float sums[kLoads] = {}, total = 0;
    const uint8_t* row = box + first * row_bytes + start;
    for (unsigned pixel = first; pixel < last; ++pixel, row += row_bytes) {
      const float weight = down.weight(pixel, centre);
      total += weight;
#pragma unroll
      for (unsigned i = 0; i < kLoads; ++i) {
        if (start + i * kWarp < bytes) sums[i] += weight * float(row[i * kWarp]);
      }
    }
    const float scale = 1 / (255 * total);
#pragma unroll
    for (unsigned i = 0; i < kLoads; ++i) {
      if (start + i * kWarp < bytes) narrow[start + i * kWarp] = scale * sums[i];
    }
  }
  __syncwarp();
  for (unsigned x = lane; x < along.size; x += kWarp) {
    float sums[kChannels] = {}, total = 0;
    for (unsigned pixel = along.first(x), end = along.last(x); pixel < end; ++pixel) {
      const float weight = along.weight(pixel, along.centre(x));
      total += weight;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums[c] += weight * narrow[pixel * kChannels + c];
    }
    const unsigned at = y * stride + (mirrored ? along.size - 1 - x : x);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) planes[c * plane + at] = sums[c] / total;
  }
  __syncwarp();  // the next row's sums go to the same place
}

}  // namespace imc::cuda
