// Random crops, a block each, in one launch. The crop stays in the block's memory as planes of floats from the resize
// to the finished result: shared memory while it fits, else a part of the workspace for each of as many blocks as run
// at a time, which then take several crops in turn. A row of the result is the weighted sum of the box's rows, read as
// bytes from the first-level cache but for their first reading, then of that sum's columns.

#include <cmath>
#include <cstring>

#include "crop_colour.cuh"
#include "crop_draw.cuh"
#include "crop_resize.cuh"
#include "device.cuh"
#include "imc/crop_parameters.h"
#include "kernels.h"
#include "primitives.cuh"

namespace imc::cuda {
namespace {

// Off chip a multiprocessor holds one block, so that the workspace stays small: the largest with 80 registers a thread.
template <bool kOnChip>
constexpr int kThreads = kOnChip ? 256 : 768;

// On chip, of a multiprocessor. With four the draw of a crop would spill on sm_80 where there is one channel.
template <int kChannels>
constexpr int kBlocks = kChannels == 1 ? 3 : 4;

struct Images {
  const uint8_t* pixels;   // [count, height, width, channels]
  const int64_t* indices;  // [batch]
  int64_t count, batch;
  int height, width;
};

// value * factor + offset, per channel.
struct Affine {
  float factors[3], offsets[3];
};

struct Plan {
  int size;
  unsigned stride, plane;  // in floats, of rows and of channels. Rows are odd: a column lies in different banks
  int64_t own;             // floats of a block: the planes, and for each warp the sum of a box's rows
  int64_t blocks;
  bool on_chip;

  int64_t workspace_bytes() const { return on_chip ? 0 : 4 * own * blocks; }
};

Plan make_plan(int64_t crops, int64_t width, int64_t channels, int64_t size, const DeviceLimits& device) {
  const auto stride = static_cast<unsigned>(size | 1), plane = static_cast<unsigned>(size) * stride;
  const auto own = [&](int threads) { return channels * (int64_t(plane) + int64_t(threads / kWarp) * width); };
  Plan plan{static_cast<int>(size), stride, plane, own(kThreads<true>), crops, true};
  if (4 * plan.own <= largest_shared(device)) return plan;
  plan.own = ceil_divide(own(kThreads<false>), 4) * 4;
  plan.blocks = std::min<int64_t>(crops, device.multiprocessors);
  plan.on_chip = false;
  return plan;
}

__device__ __forceinline__ bool inside(float start, float length, int64_t total) {
  constexpr float kMost = 2147483648.f;  // beyond every side: what is below it can be made an integer
  return start >= 0 && start < kMost && length >= 1 && length < kMost && int64_t(start) + int64_t(length) <= total;
}

// Values cannot be refused here: a crop that would read outside the images, or whose order is none, becomes NaN.
__device__ __forceinline__ bool usable(const float* __restrict__ p, int64_t index, const Images& images) {
  return index >= 0 && index < images.count && inside(p[kTop], p[kHeight], images.height) &&
         inside(p[kLeft], p[kWidth], images.width) && p[kOrder] >= 0 && p[kOrder] < 24;
}

template <int kChannels, bool kOnChip>
struct Crop {
  static constexpr int kBlock = kThreads<kOnChip>;
  float *planes, *narrow;
  const Plan& plan;

  __device__ void fill(float value) const {
    for (unsigned i = threadIdx.x; i < kChannels * plan.plane; i += kBlock) planes[i] = value;
  }

  // What is spare at the end of a row becomes 0.
  __device__ void resize(const uint8_t* __restrict__ image, const float* __restrict__ p, int width) const {
    const Axis down{unsigned(p[kHeight]), unsigned(plan.size)}, along{unsigned(p[kWidth]), unsigned(plan.size)};
    const int64_t row_bytes = int64_t(width) * kChannels;
    const uint8_t* box = image + int64_t(p[kTop]) * row_bytes + int64_t(p[kLeft]) * kChannels;
    const unsigned warp = threadIdx.x / kWarp;
    for (unsigned y = warp; y < down.size; y += kBlock / kWarp) {
      resize_row<kChannels>(box, row_bytes, down, along, p[kFlip] > 0, y, narrow + warp * row_bytes, planes,
                            plan.stride, plan.plane);
      if (plan.stride > along.size && threadIdx.x % kWarp < kChannels) {
        planes[threadIdx.x % kWarp * plan.plane + y * plan.stride + along.size] = 0;
      }
    }
  }

  // Each thread's own pixels, up to the contrast, which waits for the mean of all, and from there on. No operation
  // before the contrast makes a spare 0 anything else.
  __device__ void colour(const float* __restrict__ p) const {
    const bool jittered = p[kJitter] > 0, gray = kChannels == 3 && p[kGrayscale] > 0;
    if (!jittered && !gray) return;
    const Jitter jitter(p + kFactors, unsigned(p[kOrder]));
    float mean = 0;
    if (jittered) {
      for_own_pixels([&](Pixel<kChannels>& pixel) {
        jitter.apply(pixel, 0, jitter.contrast_turn, 0.f);
        mean += pixel.luma();
      });
      mean = block_sum<kBlock / kWarp>(mean) / (float(plan.size) * float(plan.size));
    }
    for_own_pixels([&](Pixel<kChannels>& pixel) {
      if (jittered) jitter.apply(pixel, jitter.contrast_turn, 4, mean);
      if (!gray) return;
      const float luma = pixel.luma();
#pragma unroll
      for (int c = 0; c < kChannels; ++c) pixel.v[c] = luma;
    });
  }

  __device__ void blur(float sigma) const {
    const Blur along(sigma);
    const unsigned size = unsigned(plan.size), lines = kChannels * size;
    for (unsigned line = threadIdx.x; line < lines; line += kBlock) {
      along(planes + line / size * plan.plane + line % size * plan.stride, 1, plan.size);
    }
    __syncthreads();
    for (unsigned line = threadIdx.x; line < lines; line += kBlock) {
      along(planes + line / size * plan.plane + line % size, plan.stride, plan.size);
    }
  }

  template <typename T>
  __device__ void store_to(T* __restrict__ out, const Affine& affine, bool channels_last) const {
    constexpr unsigned kPixels = 8 / sizeof(T);
    const unsigned pixels = unsigned(plan.size) * unsigned(plan.size);
    const bool even = pixels % kPixels == 0 && reinterpret_cast<uintptr_t>(out) % 8 == 0;
    if (kChannels == 3 && channels_last && even) return store_pixels(out, affine, pixels);
    store_elements(out, affine, channels_last);
  }

 private:
  // kPixels neighbours of a thread, whose channels are as many accesses of 8 bytes.
  template <typename T>
  __device__ void store_pixels(T* __restrict__ out, const Affine& affine, unsigned pixels) const {
    constexpr unsigned kPixels = 8 / sizeof(T);
    for (unsigned i = threadIdx.x * kPixels; i < pixels; i += kBlock * kPixels) {
      const unsigned y = i / unsigned(plan.size);
      unsigned x = i - y * unsigned(plan.size), at = y * plan.stride + x;
      Pack<T, kPixels> packs[kChannels];
#pragma unroll
      for (unsigned k = 0; k < kPixels; ++k) {
#pragma unroll
        for (unsigned c = 0; c < kChannels; ++c) {
          const unsigned element = k * kChannels + c;
          from_float(planes[c * plan.plane + at] * affine.factors[c] + affine.offsets[c],
                     packs[element / kPixels].v[element % kPixels]);
        }
        const bool wraps = ++x == unsigned(plan.size);
        at += wraps ? 1 + plan.stride - unsigned(plan.size) : 1;
        x = wraps ? 0 : x;
      }
#pragma unroll
      for (unsigned c = 0; c < kChannels; ++c) {
        Pack<unsigned, 2> words;  // or nvcc stores the halves one by one
        memcpy(&words, &packs[c], sizeof(words));
        store(reinterpret_cast<unsigned*>(out + i * kChannels + c * kPixels), words);
      }
    }
  }

  // In the result's order, in accesses of 16 bytes but for the ends of a crop that is not aligned to them.
  template <typename T>
  __device__ void store_elements(T* __restrict__ out, const Affine& affine, bool channels_last) const {
    constexpr unsigned kPack = 16 / sizeof(T);
    const unsigned count = unsigned(plan.size) * unsigned(plan.size) * kChannels;
    const auto beyond = static_cast<unsigned>(reinterpret_cast<uintptr_t>(out) % 16 / sizeof(T));
    const unsigned head = min(count, (kPack - beyond) % kPack), packed = (count - head) / kPack * kPack;
    for (unsigned i = threadIdx.x; i < count - packed; i += kBlock) {
      const unsigned at = i < head ? i : i + packed;
      from_float(value(Element(at, plan.size, channels_last), affine), out[at]);
    }
    for (unsigned i = threadIdx.x; i < packed / kPack; i += kBlock) {
      Element element(head + i * kPack, plan.size, channels_last);
      Pack<T, kPack> pack;
#pragma unroll
      for (unsigned k = 0; k < kPack; ++k, element.advance(plan.size, channels_last)) {
        from_float(value(element, affine), pack.v[k]);
      }
      store(out + head + i * kPack, pack);
    }
  }

  // The place of an element of the result.
  struct Element {
    unsigned c, y, x;

    __device__ Element(unsigned at, unsigned size, bool channels_last) {
      const unsigned pixel = channels_last ? at / kChannels : at % (size * size);
      c = channels_last ? at % kChannels : at / (size * size);
      y = pixel / size;
      x = pixel % size;
    }
    __device__ void advance(unsigned size, bool channels_last) {
      if (channels_last && ++c < kChannels) return;
      if (channels_last) c = 0;
      if (++x < size) return;
      x = 0;
      if (++y < size) return;
      y = 0;
      ++c;
    }
  };

  __device__ float value(const Element& element, const Affine& affine) const {
    const bool red = kChannels == 1 || element.c == 0, green = element.c == 1;
    const float factor = red ? affine.factors[0] : green ? affine.factors[1] : affine.factors[2];
    const float offset = red ? affine.offsets[0] : green ? affine.offsets[1] : affine.offsets[2];
    return planes[element.c * plan.plane + element.y * plan.stride + element.x] * factor + offset;
  }

  template <typename Visit>
  __device__ void for_own_pixels(Visit visit) const {
    for (unsigned i = threadIdx.x; i < plan.plane; i += kBlock) {
      Pixel<kChannels> pixel;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) pixel.v[c] = planes[c * plan.plane + i];
      visit(pixel);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) planes[c * plan.plane + i] = pixel.v[c];
    }
  }
};

template <typename T, int kChannels, bool kOnChip>
__global__ void __launch_bounds__(kThreads<kOnChip>, kOnChip ? kBlocks<kChannels> : 1)
    multi_crop_kernel(T* __restrict__ crops, Images images, const float* __restrict__ parameters, Draw draw,
                      float* workspace, int64_t count, Plan plan, Affine affine, bool channels_last) {
  IMC_SHARED(float, drawn, kParameters);
  float* own = kOnChip ? dynamic_shared() : workspace + blockIdx.x * plan.own;
  const Crop<kChannels, kOnChip> crop{own, own + kChannels * plan.plane, plan};
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
    const float* p = parameters ? parameters + i * kParameters : drawn;
    if (!parameters) {
      if (threadIdx.x < kWarp) {
        draw_parameters(draw, i / images.batch, draw.samples[i % images.batch], images.height, images.width, drawn);
      }
      __syncthreads();
    }
    const int64_t index = images.indices[i % images.batch];
    if (usable(p, index, images)) {
      crop.resize(images.pixels + index * images.height * images.width * kChannels, p, images.width);
      __syncthreads();
      crop.colour(p);
      if (p[kBlur] > 0) {
        __syncthreads();
        crop.blur(p[kBlur]);
      }
    } else {
      crop.fill(NAN);
    }
    __syncthreads();
    crop.store_to(crops + i * plan.size * plan.size * kChannels, affine, channels_last);
    if (!kOnChip) __syncthreads();  // the next crop goes to the same place
  }
}

}  // namespace

int64_t multi_crop_workspace_bytes(int64_t crops, int64_t width, int64_t channels, int64_t size, int device) {
  return make_plan(crops, width, channels, size, device_limits(device)).workspace_bytes();
}

template <typename T>
void multi_crop(T* crops, const uint8_t* images, const int64_t* indices, const float* parameters,
                const int64_t* samples, const int64_t* step, const double* law, float* workspace, int64_t count,
                int64_t views, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t size,
                bool channels_last, double red_factor, double green_factor, double blue_factor, double red_offset,
                double green_offset, double blue_offset, double key_high, double key_low, double view_high,
                double view_low, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Plan plan = make_plan(views * batch, width, channels, size, device_limits(device));
  const Images source{images, indices, count, batch, static_cast<int>(height), static_cast<int>(width)};
  const Affine affine{{float(red_factor), float(green_factor), float(blue_factor)},
                      {float(red_offset), float(green_offset), float(blue_offset)}};
  const auto half = [](double x) { return static_cast<uint64_t>(std::min(std::max(x, 0.0), 4294967295.0)); };
  const auto whole = [&](double high, double low) { return half(high) << 32 | half(low); };
  const Draw draw{samples, step, law, whole(key_high, key_low), whole(view_high, view_low)};
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const auto run = [&](auto rgb, auto on_chip) {
    constexpr bool kOnChip = decltype(on_chip)::value;
    const Shape shape{plan.blocks, kThreads<kOnChip>, kOnChip ? 4 * plan.own : 0};
    launch<multi_crop_kernel<T, decltype(rgb)::value ? 3 : 1, kOnChip>>(
        "launching multi_crop", shape, place, crops, source, parameters, draw, workspace, views * batch, plan,
        affine, channels_last);
  };
  const auto choose = [&](auto rgb) { plan.on_chip ? run(rgb, std::true_type()) : run(rgb, std::false_type()); };
  channels == 3 ? choose(std::true_type()) : choose(std::false_type());
}

IMC_INSTANTIATE_CUDA(multi_crop)

}  // namespace imc::cuda
