// InfoNCE without the N x N matrix S = Z Z^T / temperature: a block of rows of Z is multiplied with one block of
// columns of Z^T after the other, in a buffer that stays in the L2 cache. Forward: an online softmax keeps each row's
// maximum and its sum of exponentials. Backward: the products are computed again and become, in place, the weights W of
//   dZ_i = sum_{j != i} W_ij z_j / (N temperature),  W_ij = exp(S_ij - lse_i) + exp(S_ij - lse_j) - 2 [j = pair(i)],
// whose product with Z is added up block by block. Norms are applied where Z is copied for the products.
//
// A batch spread over processes: each has all rows as columns and only its own as rows; between forward and backward the
// maxima and sums are exchanged (imc_kernels/ops/distributed/info_nce_loss.py).
#include <cstdint>

#include "gemm.h"
#include "instantiate.h"
#include "kernels.h"
#include "normalise.h"

namespace imc::IMC_ISA {

namespace {

template <typename T>
constexpr int64_t kBlockColumns = kBlockPanels * kPanel<T>;

template <typename S>
struct Problem {
  using T = Number<S>;
  const S* embeddings;  // Z before it is normalised
  int64_t batch, dim, rows;
  const T* scale;  // [rows]: 1 / norm; null for Z as it is given
  T inverse_temperature;
  const T* columns;       // Z^T, packed
  T *high, *inverse_sum;  // [rows] of Z Z^T without its diagonal: the maximum, and 1 / the sum of exponentials

  int64_t pair(int64_t row) const { return row < batch ? row + batch : row - batch; }
};

// A block of rows, and the buffers of its thread.
template <typename S>
struct RowBlock {
  using T = Number<S>;
  const Problem<S>& problem;
  int64_t first, rows;
  T* products;  // [kBlockRows, kBlockColumns]
  T* tile;      // [kTileSize]

  // visit(first column, columns) for each block of columns, when its products of rows of Z are there.
  template <typename Visit>
  void for_column_blocks(const Visit& visit) const {
    const RowSource<S> source{problem.embeddings, problem.dim, problem.scale};
    for (int64_t column = 0; column < problem.rows; column += kBlockColumns<T>) {
      const int64_t left = problem.rows - column, columns = left < kBlockColumns<T> ? left : kBlockColumns<T>;
      multiply_block(source, first, rows, panel_at(problem.columns, problem.dim, column), problem.dim, columns,
                     problem.dim, products, kBlockColumns<T>, false, tile);
      visit(column, columns);
    }
  }
};

// Takes n products of a row into its maximum and its sum of exponentials.
template <typename T>
void online_softmax(const T* x, int64_t n, T inverse_temperature, T& high, double& sum) {
  const T peak = row_max(x, n);
  if (peak > high) {
    sum *= static_cast<double>(exp_bounded((high - peak) * inverse_temperature));
    high = peak;
  }
  const T shift = high;
  T added = 0;
#pragma omp simd reduction(+ : added)
  for (int64_t j = 0; j < n; ++j) added += exp_bounded((x[j] - shift) * inverse_temperature);
  sum += static_cast<double>(added);
}

// Writes the losses of the rows.
template <typename S>
void contrast(const RowBlock<S>& block, double* losses) {
  using T = Number<S>;
  const Problem<S>& p = block.problem;
  T high[kBlockRows], positive[kBlockRows];
  double sum[kBlockRows];
  for (int64_t r = 0; r < block.rows; ++r) {
    high[r] = lowest(T());
    sum[r] = 0;
  }
  block.for_column_blocks([&](int64_t column, int64_t columns) {
    for (int64_t r = 0; r < block.rows; ++r) {
      T* x = block.products + r * kBlockColumns<T>;
      const int64_t itself = block.first + r - column, pair = p.pair(block.first + r) - column;
      if (itself >= 0 && itself < columns) x[itself] = static_cast<T>(-__builtin_inf());
      if (pair >= 0 && pair < columns) positive[r] = x[pair];
      online_softmax(x, columns, p.inverse_temperature, high[r], sum[r]);
    }
  });
  for (int64_t r = 0; r < block.rows; ++r) {
    p.high[block.first + r] = high[r];
    p.inverse_sum[block.first + r] = static_cast<T>(1 / sum[r]);
    losses[r] = static_cast<double>((high[r] - positive[r]) * p.inverse_temperature) + __builtin_log(sum[r]);
  }
}

// Writes the gradients of the rows of Z; packed_rows is Z packed as the right side of W Z. spare: memory for them.
template <typename S, typename T = Number<S>>
void differentiate(const RowBlock<S>& block, const T* packed_rows, T* spare, Gradient<S>* result) {
  const Problem<S>& p = block.problem;
  T* gradient = numbers_for(result, spare);
  block.for_column_blocks([&](int64_t column, int64_t columns) {
    const T *high = p.high + column, *inverse_sum = p.inverse_sum + column;
    for (int64_t r = 0; r < block.rows; ++r) {
      T* x = block.products + r * kBlockColumns<T>;
      const T row_high = p.high[block.first + r], row_inverse_sum = p.inverse_sum[block.first + r];
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j)
        x[j] = exp_bounded((x[j] - row_high) * p.inverse_temperature) * row_inverse_sum +
               exp_bounded((x[j] - high[j]) * p.inverse_temperature) * inverse_sum[j];
      const int64_t itself = block.first + r - column, pair = p.pair(block.first + r) - column;
      if (pair >= 0 && pair < columns) x[pair] -= 2;
      if (itself >= 0 && itself < columns) x[itself] = 0;
    }
    multiply_block(RowSource<T>{block.products, kBlockColumns<T>, nullptr}, 0, block.rows,
                   panel_at(packed_rows, p.rows, 0, column), p.rows, p.dim, columns, gradient, p.dim, column > 0,
                   block.tile);
  });
  const T weight = p.inverse_temperature / static_cast<T>(p.rows);
  for (int64_t i = 0; i < block.rows * p.dim; ++i) gradient[i] *= weight;
  const int64_t offset = block.first * p.dim;
  if (p.scale)
    project(p.embeddings + offset, p.scale + block.first, gradient, result, block.rows, p.dim, 1);
  else
    finish_row(gradient, result, block.rows * p.dim);
}

// The products' operands, and the blocks of the rows of some samples, in both views.
template <typename S>
class Contrast {
  using T = Number<S>;

 public:
  Contrast(const S* embeddings, int64_t batch, int64_t dim, int64_t first, int64_t samples, T* statistics,
           double temperature, bool normalise, int threads)
      : first_(first), samples_(samples), scale_(2 * batch), columns_(packed_size<T>(dim, 2 * batch)),
        workers_(useful_threads(2 * samples * 2 * batch * dim / 16, threads)), threads_(threads),
        products_(workers_ * kProducts), tiles_(workers_ * kTileSize),
        problem_{embeddings, batch, dim, 2 * batch, normalise ? scale_.get() : nullptr, static_cast<T>(1 / temperature),
                 columns_.get(), statistics, statistics + 2 * batch} {
    if (normalise) inverse_norms(embeddings, scale_.get(), 2 * batch, dim, threads);
    pack_columns(embeddings, problem_.scale, dim, 2 * batch, columns_.get(), threads);
    for (int64_t i = 0; i < workers_ * kTileSize; ++i) tiles_[i] = 0;
  }

  // The sum of the losses of the rows, whose statistics are written.
  double forward() {
    Scratch<double> losses(2 * samples_);
    for_blocks([&](const RowBlock<S>& block, int64_t out, int) { contrast(block, &losses[out]); });
    double total = 0;
    for (int64_t i = 0; i < 2 * samples_; ++i) total += losses[i];
    return total;
  }

  // From the statistics of all rows. gradient: [2, samples, dim]
  void backward(Gradient<S>* gradient) {
    const int64_t rows = problem_.rows, dim = problem_.dim, spare = kIsHalf<Gradient<S>> ? kBlockRows * dim : 0;
    Scratch<T> packed(packed_size<T>(rows, dim)), spares(workers_ * spare);
    pack_rows(problem_.embeddings, problem_.scale, rows, dim, packed.get(), threads_);
    for_blocks([&](const RowBlock<S>& block, int64_t out, int worker) {
      differentiate(block, packed.get(), &spares[worker * spare], gradient + out * dim);
    });
  }

 private:
  static constexpr int64_t kProducts = kBlockRows * kBlockColumns<T>;

  // body(block, number of its first row among those of the samples, worker)
  template <typename Body>
  void for_blocks(const Body& body) {
    // Few rows are cut into smaller blocks, so that there is work for several threads.
    const int64_t height = 2 * samples_ < 8 * kBlockRows ? kBlockRows / 4 : kBlockRows;
    const int64_t blocks = ceil_div(samples_, height);
    parallel_for(2 * blocks, workers_, [&](int64_t item, int worker) {
      const int64_t view = item / blocks, sample = item % blocks * height;
      body(RowBlock<S>{problem_, view * problem_.batch + first_ + sample,
                       samples_ - sample < height ? samples_ - sample : height, &products_[worker * kProducts],
                       &tiles_[worker * kTileSize]},
           view * samples_ + sample, worker);
    });
  }

  int64_t first_, samples_;
  Scratch<T> scale_, columns_;
  int workers_, threads_;
  Scratch<T> products_, tiles_;
  Problem<S> problem_;
};

}  // namespace

template <typename S>
void info_nce_loss(const S* embeddings, Number<S>* loss, Gradient<S>* gradient, int64_t batch, int64_t dim,
                   double temperature, bool normalise, int threads) {
  using T = Number<S>;
  Scratch<T> statistics(4 * batch);
  Contrast<S> contrast(embeddings, batch, dim, 0, batch, statistics.get(), temperature, normalise, threads);
  *loss = static_cast<T>(contrast.forward() / static_cast<double>(2 * batch));
  if (gradient) contrast.backward(gradient);
}

template <typename S>
void info_nce_loss_rows(const S* embeddings, double* loss, Number<S>* statistics, int64_t batch, int64_t dim,
                        int64_t first_sample, int64_t samples, double temperature, bool normalise, int threads) {
  Scratch<Number<S>> all(4 * batch);
  Contrast<S> contrast(embeddings, batch, dim, first_sample, samples, all.get(), temperature, normalise, threads);
  *loss = contrast.forward();
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < samples; ++j) statistics[i * samples + j] = all[i * batch + first_sample + j];
}

template <typename S>
void info_nce_loss_gradient(const S* embeddings, const Number<S>* statistics, Gradient<S>* gradient, int64_t batch,
                            int64_t dim, int64_t first_sample, int64_t samples, double temperature, bool normalise,
                            int threads) {
  Scratch<Number<S>> all(4 * batch);
  for (int64_t i = 0; i < 4 * batch; ++i) all[i] = statistics[i];
  Contrast<S> contrast(embeddings, batch, dim, first_sample, samples, all.get(), temperature, normalise, threads);
  contrast.backward(gradient);
}

IMC_INSTANTIATE(info_nce_loss)
IMC_INSTANTIATE_HALF(info_nce_loss)
IMC_INSTANTIATE(info_nce_loss_rows)
IMC_INSTANTIATE(info_nce_loss_gradient)

}  // namespace imc::IMC_ISA
