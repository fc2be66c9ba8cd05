// What the kernels of Sinkhorn-Knopp share: a problem, cut into chunks of rows, how problems are spread over threads, and
// both halves of an iteration on logarithms. In an unnamed namespace: the files are compiled once per instruction set.
#pragma once

#include <cstdint>

#include "elements.h"
#include "imc/scaling_range.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kChunkRows = 32, kMostChunks = 64, kColumnBlock = 512;

// The largest range of the scores over epsilon with which no factor or product that matters leaves the normal numbers.
inline float scaling_range(float) { return kScalingRange * 0.69314718f; }
inline double scaling_range(double) { return 340.0; }

template <typename S>
struct Problem {
  using T = Number<S>;
  const S* scores;  // [batch, prototypes]
  int64_t batch, prototypes;
  double inverse_epsilon;
  const T* marginals;  // [prototypes] or null
  int threads;
  T whole_batch = static_cast<T>(batch);  // of all processes
  int64_t chunk_rows = ceil_div(batch, kMostChunks) > kChunkRows ? ceil_div(batch, kMostChunks) : kChunkRows;
  int64_t chunks = ceil_div(batch, chunk_rows);
  T high = 0, range = 0;  // of the scores, the range divided by epsilon

  // body(first row, last row, the chunk's row of `partial`)
  template <typename Body>
  void for_chunks(T* partial, const Body& body) const {
    parallel_for(chunks, threads, [&](int64_t chunk, int) {
      const int64_t first = chunk * chunk_rows;
      body(first, batch < first + chunk_rows ? batch : first + chunk_rows, partial + chunk * prototypes);
    });
  }

  // body(first column, last column)
  template <typename Body>
  void for_column_blocks(const Body& body) const {
    parallel_for(ceil_div(prototypes, kColumnBlock), useful_threads(chunks * prototypes, threads),
                 [&](int64_t block, int) {
                   const int64_t first = block * kColumnBlock;
                   body(first, prototypes < first + kColumnBlock ? prototypes : first + kColumnBlock);
                 });
  }

  // sums[k] = the sum of column k of `partial` [chunks, prototypes]
  void add_chunks(const T* partial, T* sums) const {
    for_column_blocks([&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) sums[k] = partial[k];
      for (int64_t chunk = 1; chunk < chunks; ++chunk)
        for (int64_t k = first; k < last; ++k) sums[k] += partial[chunk * prototypes + k];
    });
  }

  void set_range(T highest, T lowest) {
    high = highest;
    range = (highest - lowest) * static_cast<T>(inverse_epsilon);
  }

  bool is_narrow() const { return range <= scaling_range(T()); }
  bool is_finite() const { return range - range == 0; }

  T share(int64_t k) const { return marginals ? marginals[k] : 1 / static_cast<T>(prototypes); }

  // S = log E
  double log_kernel(int64_t row, int64_t k) const {
    return (static_cast<double>(number(scores[row * prototypes + k])) - static_cast<double>(high)) * inverse_epsilon;
  }
};

// Many problems run side by side, one thread each; few share all threads. Of a batch spread over processes the largest
// score, minus the smallest and the number of samples are given: [3, problems].
template <typename S, typename Body>
void for_problems(const S* scores, const Number<S>* marginals, const Number<S>* extremes, int64_t problems, int64_t batch,
                  int64_t prototypes, double epsilon, int threads, const Body& body) {
  const int64_t size = batch * prototypes;
  threads = useful_threads(problems * size, threads);
  const bool side_by_side = problems >= threads;
  parallel_for(problems, side_by_side ? threads : 1, [&](int64_t problem, int) {
    Problem<S> p{scores + problem * size, batch, prototypes, 1 / epsilon, marginals, side_by_side ? 1 : threads};
    if (extremes) {
      p.set_range(extremes[problem], -extremes[problems + problem]);
      p.whole_batch = extremes[2 * problems + problem];
    }
    body(p, problem);
  });
}

// The same on logarithms, a = log u and c = log v. They may be thousands and cancel against S: sums of the three are
// taken in double, their exponentials in T. So a row or a column with all its mass in one entry is scaled to 1 there
// exactly, which the gradient needs: what it keeps of a and c is always from here. An entry of S + a or S + c may be
// -infinity, which is left out; where nothing is left, the logarithm of the sum is -infinity, as it is.

inline double above_infinity(double high) { return high < -1e300 ? -1e300 : high; }

// The logarithms of the column sums of u E, from a.
template <typename S>
void log_column_sums(const Problem<S>& p, const double* a, double* log_sums) {
  using T = Number<S>;
  const int64_t n = p.prototypes;
  Scratch<double> highs(p.chunks * n);
  Scratch<T> partial(p.chunks * n);
  p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T* sums) {
    double* high = highs.get() + (sums - partial.get());
    for (int64_t k = 0; k < n; ++k) high[k] = p.log_kernel(first, k) + a[first];
    for (int64_t row = first + 1; row < last; ++row)
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) {
        const double x = p.log_kernel(row, k) + a[row];
        high[k] = x > high[k] ? x : high[k];
      }
    for (int64_t k = 0; k < n; ++k) {
      high[k] = above_infinity(high[k]);
      sums[k] = 0;
    }
    for (int64_t row = first; row < last; ++row)
#pragma omp simd
      for (int64_t k = 0; k < n; ++k)
        sums[k] += exp_bounded(static_cast<T>(p.log_kernel(row, k) + a[row] - high[k]));
  });
  p.for_column_blocks([&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      double high = highs[k], sum = 0;
      for (int64_t chunk = 1; chunk < p.chunks; ++chunk) {
        const double x = highs[chunk * n + k];
        high = x > high ? x : high;
      }
      for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
        sum += partial[chunk * n + k] * exp_bounded(highs[chunk * n + k] - high);
      log_sums[k] = high + log_normal(sum);
    }
  });
}

// The assignments and a, from c.
template <typename S>
void log_rows(const Problem<S>& p, const double* c, S* assignments, double* a) {
  using T = Number<S>;
  const int64_t n = p.prototypes;
  const double log_batch = log_normal(static_cast<double>(p.whole_batch));
  Scratch<T> spare(kIsHalf<S> ? p.threads * n : 0);
  parallel_for(p.chunks, p.threads, [&](int64_t chunk, int worker) {
    const int64_t end = (chunk + 1) * p.chunk_rows;
    for (int64_t row = chunk * p.chunk_rows; row < end && row < p.batch; ++row) {
      T* q = numbers_for(assignments + row * n, &spare[worker * n]);
      double high = p.log_kernel(row, 0) + c[0];
#pragma omp simd reduction(max : high)
      for (int64_t k = 0; k < n; ++k) {
        const double x = p.log_kernel(row, k) + c[k];
        high = x > high ? x : high;
      }
      high = above_infinity(high);
      const double sum = sum_of<T>(
          n, [&](int64_t k) { return q[k] = exp_bounded(static_cast<T>(p.log_kernel(row, k) + c[k] - high)); });
      a[row] = -log_batch - high - log_normal(sum);
      const T inverse = static_cast<T>(sum == 0 ? 0 : 1 / sum);
      for (int64_t k = 0; k < n; ++k) q[k] *= inverse;
      finish_row(q, assignments + row * n, n);
    }
  });
}

}  // namespace

}  // namespace imc::IMC_ISA
