// Random crops, one at a time and within the L1 cache: the resize reads 8-bit pixels, all colour operations run on one
// plane of size * size numbers per channel, and the last stage normalises, converts and writes the crop.
#include <cstdint>

#include "crop_colour.h"
#include "crop_resize.h"
#include "elements.h"
#include "imc/crop_parameters.h"
#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"

namespace imc::IMC_ISA {

namespace {

template <int Channels, typename T, typename Out>
void store(const T* red, const T* green, const T* blue, int64_t count, const T* factor, const T* offset,
           bool channels_last, Out* out) {
  if (Channels == 3 && channels_last) {
    const T f0 = factor[0], f1 = factor[1], f2 = factor[2], o0 = offset[0], o1 = offset[1], o2 = offset[2];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      convert(red[i] * f0 + o0, out + 3 * i);
      convert(green[i] * f1 + o1, out + 3 * i + 1);
      convert(blue[i] * f2 + o2, out + 3 * i + 2);
    }
    return;
  }
  const T* const planes[3] = {red, green, blue};
  for (int c = 0; c < Channels; ++c) {
    const T *x = planes[c], f = factor[c], o = offset[c];
    Out* to = out + c * count;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) convert(x[i] * f + o, to + i);
  }
}

// The problem, and the scratch memory of each thread.
template <int Channels, typename T>
struct Sizes {
  static constexpr int64_t lanes = Vector<T>::lanes;
  int64_t height, width, size, count, plane, stride, row_weights, column_weights, numbers, indices;

  Sizes(int64_t height, int64_t width, int64_t size)
      : height(height), width(width), size(size), count(size * size) {
    plane = round_up(count) + lanes;
    stride = round_up(width * Channels);
    row_weights = Axis<T>::weight_count(height, size);
    column_weights = Axis<T>::weight_count(width, size);
    numbers = row_weights + column_weights + size * stride + Channels * plane + Blur<T>::number_count(size);
    indices = ceil_div(2 * Axis<T>::index_count(size) + Blur<T>::index_count(size), 16) * 16;
  }

  static int64_t round_up(int64_t n) { return ceil_div(n, lanes) * lanes; }
};

template <int Channels, typename T>
struct Cropper {
  const Sizes<Channels, T>& sizes;
  Axis<T> rows, columns;
  Blur<T> blur;
  T *narrow, *red, *green, *blue;

  Cropper(const Sizes<Channels, T>& s, T* numbers, int32_t* indices)
      : sizes(s),
        rows(s.size, numbers, indices),
        columns(s.size, numbers + s.row_weights, indices + Axis<T>::index_count(s.size)),
        blur(s.size, numbers + s.numbers - Blur<T>::number_count(s.size), indices + 2 * Axis<T>::index_count(s.size)),
        narrow(numbers + s.row_weights + s.column_weights),
        red(narrow + s.size * s.stride),
        green(red + (Channels == 3 ? s.plane : 0)),
        blue(red + (Channels - 1) * s.plane) {
    blur.fold();
  }

  void operator()(const uint8_t* image, const float* p) const {
    const int64_t size = sizes.size, row_bytes = sizes.width * Channels;
    const auto pixels = [p](CropParameter column) { return static_cast<int32_t>(p[column]); };
    const uint8_t* box = image + pixels(kTop) * row_bytes + pixels(kLeft) * Channels;
    rows.build(pixels(kHeight), static_cast<int32_t>(size), false, T(1) / 255);
    columns.build(pixels(kWidth), static_cast<int32_t>(size), p[kFlip] > 0, T(1));
    resize_rows(box, row_bytes, pixels(kWidth) * Channels, rows, size, narrow, sizes.stride);
    resize_columns<Channels>(narrow, sizes.stride, columns, size, red, sizes.plane);
    for (int c = 0; c < Channels; ++c)
      for (int64_t i = sizes.count; i < sizes.plane; ++i) red[c * sizes.plane + i] = 0;
    const Colour<Channels, T> colour(red, green, blue, sizes.count);
    if (p[kJitter] > 0) colour.jitter(p + kFactors, static_cast<int>(p[kOrder]));
    if (p[kGrayscale] > 0) colour.grayscale();
    if (p[kBlur] > 0)
      for (int c = 0; c < Channels; ++c) blur(red + c * sizes.plane, static_cast<T>(p[kBlur]));
  }
};

template <int Channels, typename Out>
void make_crops(Out* crops, const uint8_t* images, const int64_t* indices, const float* parameters,
                const double* affine, int64_t views, int64_t batch, int64_t height, int64_t width, int64_t size,
                bool channels_last, int threads) {
  using T = Number<Out>;
  const Sizes<Channels, T> sizes(height, width, size);
  const int64_t elements = sizes.count * Channels;
  threads = useful_threads(views * batch * elements, threads);
  Scratch<T> numbers(threads * sizes.numbers);
  Scratch<int32_t> integers(threads * sizes.indices);
  T factor[Channels], offset[Channels];
  for (int c = 0; c < Channels; ++c) {
    factor[c] = static_cast<T>(affine[c]);
    offset[c] = static_cast<T>(affine[Channels + c]);
  }
  // The views of one image follow each other: it stays in the cache.
  parallel_for(batch * views, threads, [&](int64_t item, int worker) {
    const int64_t sample = item / views, crop = item % views * batch + sample;
    const Cropper<Channels, T> cropper(sizes, &numbers[worker * sizes.numbers], &integers[worker * sizes.indices]);
    cropper(images + indices[sample] * height * width * Channels, parameters + crop * kParameters);
    store<Channels>(cropper.red, cropper.green, cropper.blue, sizes.count, factor, offset, channels_last,
                    crops + crop * elements);
  });
}

}  // namespace

template <typename Out>
void multi_crop(Out* crops, const uint8_t* images, const int64_t* indices, const float* parameters,
                const double* affine, int64_t views, int64_t batch, int64_t height, int64_t width, int64_t channels,
                int64_t size, bool channels_last, int threads) {
  const auto make = channels == 3 ? make_crops<3, Out> : make_crops<1, Out>;
  make(crops, images, indices, parameters, affine, views, batch, height, width, size, channels_last, threads);
}

IMC_INSTANTIATE(multi_crop)
IMC_INSTANTIATE_HALF(multi_crop)

}  // namespace imc::IMC_ISA
