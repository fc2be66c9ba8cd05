// Batch normalisation of V views of N rows and C channels, x[v][n][c], with each view's mean m and variance s:
//   y = a (x - m) + b (+ r),  a = w / sqrt(s + eps),  or max(y, 0)
// where r is a residual. Backward, with g = dL/dy, 0 where max(y, 0) held y back, and sums over the rows of a view:
//   dL/dx = a (g - sum g / N - (x - m) sum g (x - m) / (N (s + eps)))       dL/dr = g
//   dL/dw = sum over views of sum g (x - m) / sqrt(s + eps)           dL/db = sum over views of sum g
// The rows of a view are cut into blocks whose height depends on C alone, and the sums of blocks are added in order, so
// no result depends on the number of threads. A block stays in the L2 cache: its variance is taken about its own mean.
#include <cstdint>

#include "elements.h"
#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {
namespace {

constexpr int64_t kBlockElements = 16384, kFewestRows = 32, kMostRows = 256;
constexpr int64_t kWidth = 32;  // channels whose sums stay in registers

// A block of rows as the sweeps over it see it; what is not there is null.
template <typename S>
struct Block {
  int64_t rows, channels;
  const S *input, *residual;
};

// The blocks of all views, view by view.
struct Blocks {
  int64_t views, rows, channels, height, per_view, count;

  Blocks(int64_t views, int64_t rows, int64_t channels) : views(views), rows(rows), channels(channels) {
    const int64_t fitting = kBlockElements / channels;
    height = fitting < kFewestRows ? kFewestRows : fitting > kMostRows ? kMostRows : fitting;
    per_view = ceil_div(rows, height);
    count = views * per_view;
  }
  int64_t view(int64_t block) const { return block / per_view; }
  int64_t first(int64_t block) const { return block % per_view * height; }
  int64_t filled(int64_t block) const { return rows - first(block) < height ? rows - first(block) : height; }
  int64_t offset(int64_t block) const { return (view(block) * rows + first(block)) * channels; }
  template <typename S>
  Block<S> part(int64_t block, const S* input, const S* residual) const {
    return {filled(block), channels, input + offset(block), residual ? residual + offset(block) : nullptr};
  }
};

// body(channel, width) for neighbouring channels, at most kWidth and mostly a constant number of them.
template <typename Body>
inline __attribute__((always_inline)) void for_channels(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kWidth <= channels; c += kWidth) body(c, kWidth);
  if (c < channels) body(c, channels - c);
}

template <typename T>
T inverse_deviation(T variance, double eps) {
  return static_cast<T>(1 / __builtin_sqrt(static_cast<double>(variance) + eps));
}

// The mean of each channel of a block, and the sum of squared differences from it.
template <typename S, typename T = Number<S>>
void block_moments(const S* x, int64_t rows, int64_t channels, double* mean, double* squares) {
  for_channels(channels, [&](int64_t channel, int64_t width) __attribute__((always_inline)) {
    T buffer[kWidth], sum[kWidth] = {}, middle[kWidth];
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = numbers_of(x + r * channels + channel, buffer, width);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) sum[j] += row[j];
    }
    for (int64_t j = 0; j < width; ++j) middle[j] = sum[j] / static_cast<T>(rows);
    T beside[kWidth] = {}, squared[kWidth] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = numbers_of(x + r * channels + channel, buffer, width);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const T difference = row[j] - middle[j];
        beside[j] += difference;
        squared[j] += difference * difference;
      }
    }
    for (int64_t j = 0; j < width; ++j) {  // `middle` is the mean but for its rounding
      const double rest = static_cast<double>(beside[j]) / static_cast<double>(rows);
      mean[channel + j] = middle[j] + rest;
      squares[channel + j] = squared[j] - rest * beside[j];
    }
  });
}

// The same of the whole view, from those of its blocks: [per_view][2][channels].
template <typename T>
void view_moments(const Blocks& blocks, const double* parts, double* total, T* mean, T* variance) {
  const int64_t channels = blocks.channels, step = 2 * channels;
  for (int64_t c = 0; c < channels; ++c) total[c] = 0;
  for (int64_t i = 0; i < blocks.per_view; ++i)
    for (int64_t c = 0; c < channels; ++c) total[c] += parts[i * step + c] * blocks.filled(i);
  double* squares = total + channels;
  for (int64_t c = 0; c < channels; ++c) {
    total[c] /= blocks.rows;
    squares[c] = 0;
  }
  for (int64_t i = 0; i < blocks.per_view; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      const double apart = parts[i * step + c] - total[c];
      squares[c] += parts[i * step + channels + c] + apart * apart * blocks.filled(i);
    }
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = static_cast<T>(total[c]);
    variance[c] = static_cast<T>(squares[c] / blocks.rows);
  }
}

// What of one view is the same for all rows, each [channels].
template <typename T>
struct Channels {
  const T *mean, *scale, *bias;

  T operator()(T x, int64_t c) const { return scale[c] * (x - mean[c]) + bias[c]; }
};

// Scale and bias of all views, [views][channels] and [channels], whatever is given.
template <typename T>
class Affine {
 public:
  Affine(const Blocks& blocks, const T* weight, const T* bias, const T* mean, const T* variance, double eps)
      : channels_(blocks.channels), mean_(mean), scale_(blocks.views * channels_), bias_(channels_) {
    for (int64_t c = 0; c < channels_; ++c) {
      bias_[c] = bias ? bias[c] : T(0);
      if (weight) bias_[c] += weight[c] - weight[c];  // NaN for an infinite weight, whose products relu would let pass as 0
    }
    for (int64_t i = 0; i < blocks.views * channels_; ++i)
      scale_[i] = inverse_deviation(variance[i], eps) * (weight ? weight[i % channels_] : T(1));
  }
  Channels<T> operator()(int64_t view) {
    return {mean_ + view * channels_, &scale_[view * channels_], bias_.get()};
  }

 private:
  int64_t channels_;
  const T* mean_;
  Scratch<T> scale_, bias_;
};

// y of `width` channels of a row, before max(y, 0).
template <bool kResidual, typename T>
inline T value_of(const Channels<T>& affine, const T* x, const T* residual, int64_t channel, int64_t j) {
  const T value = affine(x[j], channel + j);
  return kResidual ? value + residual[j] : value;
}

template <bool kRelu, bool kResidual, typename S, typename T = Number<S>>
void normalise_block(const Block<S>& block, Channels<T> affine, S* output) {
  for (int64_t r = 0; r < block.rows; ++r)
    for_channels(block.channels, [&](int64_t channel, int64_t width) __attribute__((always_inline)) {
      const int64_t at = r * block.channels + channel;
      T buffer[kWidth], beside[kWidth], out[kWidth];
      const T* x = numbers_of(block.input + at, buffer, width);
      const T* residual = kResidual ? numbers_of(block.residual + at, beside, width) : x;
      T* y = numbers_for(output + at, out);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const T value = value_of<kResidual>(affine, x, residual, channel, j);
        y[j] = kRelu && value < 0 ? T(0) : value;
      }
      finish_row(y, output + at, width);
    });
}

// sum g, sum g (x - m) and sum (x - m) of each channel of a block. The last is 0 but for the rounding of m, which the
// second must not carry times sum g. kept, where not null, receives g.
template <bool kRelu, bool kResidual, typename S, typename T = Number<S>>
void block_sums(const Block<S>& block, Channels<T> affine, const S* grad_output, S* kept, double* sums) {
  const int64_t channels = block.channels;
  for_channels(channels, [&](int64_t channel, int64_t width) __attribute__((always_inline)) {
    T buffer[kWidth], beside[kWidth], gradients[kWidth], gated[kWidth];
    T sum[kWidth] = {}, product[kWidth] = {}, centre[kWidth] = {};
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t at = r * channels + channel;
      const T* x = numbers_of(block.input + at, buffer, width);
      const T* residual = kResidual ? numbers_of(block.residual + at, beside, width) : x;
      const T* given = numbers_of(grad_output + at, gradients, width);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const T g = kRelu && value_of<kResidual>(affine, x, residual, channel, j) <= 0 ? T(0) : given[j];
        const T centred = x[j] - affine.mean[channel + j];
        gated[j] = g;
        sum[j] += g;
        product[j] += g * centred;
        centre[j] += centred;
      }
      if (kept) copy_elements(gated, kept + at, width);
    }
    for (int64_t j = 0; j < width; ++j) {
      sums[channel + j] = sum[j];
      sums[channels + channel + j] = product[j];
      sums[2 * channels + channel + j] = centre[j];
    }
  });
}

// mean_gradient is sum g / N; along is sum g (x - m) / (N (s + eps)).
template <bool kRelu, bool kResidual, typename S, typename T = Number<S>>
void gradient_block(const Block<S>& block, Channels<T> affine, const S* grad_output, S* gradient,
                    const T* mean_gradient, const T* along) {
  for (int64_t r = 0; r < block.rows; ++r)
    for_channels(block.channels, [&](int64_t channel, int64_t width) __attribute__((always_inline)) {
      const int64_t at = r * block.channels + channel;
      T buffer[kWidth], beside[kWidth], gradients[kWidth], out[kWidth];
      const T* x = numbers_of(block.input + at, buffer, width);
      const T* residual = kResidual ? numbers_of(block.residual + at, beside, width) : x;
      const T* given = numbers_of(grad_output + at, gradients, width);
      T* to = numbers_for(gradient + at, out);
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        const int64_t c = channel + j;
        const T g = kRelu && value_of<kResidual>(affine, x, residual, channel, j) <= 0 ? T(0) : given[j];
        to[j] = affine.scale[c] * (g - mean_gradient[c] - (x[j] - affine.mean[c]) * along[c]);
      }
      finish_row(to, gradient + at, width);
    });
}

}  // namespace

template <typename S>
void per_view_batch_norm(const S* input, const Number<S>* weight, const Number<S>* bias, const S* residual, S* output,
                         Number<S>* mean, Number<S>* variance, int64_t views, int64_t rows, int64_t channels,
                         double eps, bool relu, int threads) {
  using T = Number<S>;
  const Blocks blocks(views, rows, channels);
  threads = useful_threads(views * rows * channels, threads);
  Scratch<double> moments(blocks.count * 2 * channels), total(2 * channels);
  parallel_for(blocks.count, threads, [&](int64_t block, int) {
    double* out = &moments[block * 2 * channels];
    block_moments(input + blocks.offset(block), blocks.filled(block), channels, out, out + channels);
  });
  for (int64_t view = 0; view < views; ++view)
    view_moments(blocks, &moments[view * blocks.per_view * 2 * channels], total.get(), mean + view * channels,
                 variance + view * channels);
  Affine<T> affine(blocks, weight, bias, mean, variance, eps);
  const auto normalise = relu ? (residual ? &normalise_block<true, true, S> : &normalise_block<true, false, S>)
                              : (residual ? &normalise_block<false, true, S> : &normalise_block<false, false, S>);
  parallel_for(blocks.count, threads, [&](int64_t block, int) {
    normalise(blocks.part(block, input, residual), affine(blocks.view(block)), output + blocks.offset(block));
  });
}

template <typename S>
void per_view_batch_norm_backward(const S* input, const Number<S>* weight, const Number<S>* bias, const S* residual,
                                  const Number<S>* mean, const Number<S>* variance, const S* grad_output,
                                  S* input_gradient, Number<S>* weight_gradient, Number<S>* bias_gradient,
                                  S* residual_gradient, int64_t views, int64_t rows, int64_t channels, double eps,
                                  bool relu, int threads) {
  using T = Number<S>;
  const Blocks blocks(views, rows, channels);
  threads = useful_threads(views * rows * channels, threads);
  Affine<T> affine(blocks, weight, bias, mean, variance, eps);
  Scratch<double> parts(blocks.count * 3 * channels), total(5 * channels);
  const auto add_up = relu ? (residual ? &block_sums<true, true, S> : &block_sums<true, false, S>)
                           : &block_sums<false, false, S>;
  parallel_for(blocks.count, threads, [&](int64_t block, int) {
    const int64_t from = blocks.offset(block);
    add_up(blocks.part(block, input, residual), affine(blocks.view(block)), grad_output + from,
           residual_gradient ? residual_gradient + from : nullptr, &parts[block * 3 * channels]);
  });
  Scratch<T> mean_gradient(views * channels), along(views * channels);
  double *sum = total.get(), *product = sum + channels, *beside = sum + 2 * channels;
  double *of_bias = sum + 3 * channels, *of_weight = sum + 4 * channels;
  for (int64_t c = 0; c < channels; ++c) of_bias[c] = of_weight[c] = 0;
  for (int64_t view = 0; view < views; ++view) {
    for (int64_t c = 0; c < 3 * channels; ++c) sum[c] = 0;
    for (int64_t i = view * blocks.per_view; i < (view + 1) * blocks.per_view; ++i)
      for (int64_t c = 0; c < 3 * channels; ++c) sum[c] += parts[i * 3 * channels + c];
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = view * channels + c;
      const double inverse = inverse_deviation<double>(variance[at], eps);
      product[c] -= beside[c] / rows * sum[c];
      of_bias[c] += sum[c];
      of_weight[c] += product[c] * inverse;
      mean_gradient[at] = static_cast<T>(sum[c] / rows);
      along[at] = static_cast<T>(product[c] * inverse * inverse / rows);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    if (bias_gradient) bias_gradient[c] = static_cast<T>(of_bias[c]);
    if (weight_gradient) weight_gradient[c] = static_cast<T>(of_weight[c]);
  }
  if (!input_gradient) return;
  const S* given = residual_gradient ? residual_gradient : grad_output;  // the first is what max(y, 0) has left
  const auto differentiate = !relu || residual_gradient ? &gradient_block<false, false, S>
                             : residual                 ? &gradient_block<true, true, S>
                                                        : &gradient_block<true, false, S>;
  parallel_for(blocks.count, threads, [&](int64_t block, int) {
    const int64_t from = blocks.offset(block), view = blocks.view(block) * channels;
    differentiate(blocks.part(block, input, residual), affine(blocks.view(block)), given + from, input_gradient + from,
                  &mean_gradient[view], &along[view]);
  });
}

IMC_INSTANTIATE(per_view_batch_norm)
IMC_INSTANTIATE_HALF(per_view_batch_norm)
IMC_INSTANTIATE(per_view_batch_norm_backward)
IMC_INSTANTIATE_HALF(per_view_batch_norm_backward)

}  // namespace imc::IMC_ISA
