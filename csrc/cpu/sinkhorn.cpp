// Sinkhorn-Knopp as scaling vectors: Q = diag(u) E diag(v), E = exp((scores - one of them) / epsilon); only u and v
// iterate. A sweep over the rows does two steps at once: with the column scaling v a row's sum gives its u, and u E goes
// into the next column sums while the row is in the L1 cache. So there is one sweep for the exponentials, and one per
// iteration.
//
// Where a problem's scores span more than scaling_range(), exponentials or their products could underflow, and the same
// iteration runs on logarithms. Column sums are partial sums over fixed chunks of rows, added in order: bitwise the
// same for any number of threads.
//
// A batch spread over processes runs the sweeps on logarithms one call at a time: between them the callers add up their
// column sums (imc_kernels/ops/distributed/sinkhorn.py).
#include <cstdint>

#include "instantiate.h"
#include "kernels.h"
#include "sinkhorn.h"

namespace imc::IMC_ISA {

namespace {

template <typename T>
void add_row(const T* row, T* sums, int64_t n, T scale) {
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) sums[k] += row[k] * scale;
}

template <typename T>
struct Extremes {
  T high, low;
};

// out = exp((s - reference) / epsilon) of a row, where s may lie in out, added to sums; and its extremes. A function of its
// own: g++ 12 does not vectorise the loop behind the conversion of float16.
template <typename T>
[[gnu::noinline]] void exponentials_of_row(const T* s, T* out, T* sums, int64_t n, T reference, T inverse_epsilon,
                                           T& highest, T& lowest) {
  T high = highest, low = lowest;
#pragma omp simd reduction(max : high) reduction(min : low)
  for (int64_t k = 0; k < n; ++k) {
    const T score = s[k];
    high = score > high ? score : high;
    low = score < low ? score : low;
    out[k] = exp_bounded((score - reference) * inverse_epsilon);
    sums[k] += out[k];
  }
  highest = high;
  lowest = low;
}

// The scaling form. First sweep: e = E, its column sums into partial; returns the extremes of the scores. The reference
// may be any score: u and v take up a constant, and where the range is narrow no factor leaves exp(+-scaling_range()).
template <typename S, typename T = Number<S>>
Extremes<T> exponentials(const Problem<S>& p, T reference, T* e, T* partial) {
  const int64_t n = p.prototypes;
  const T inverse_epsilon = static_cast<T>(p.inverse_epsilon);
  Scratch<T> highs(p.chunks), lows(p.chunks);
  p.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
    T high = number(p.scores[first * n]), low = high;
    for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    for (int64_t row = first; row < last; ++row) {
      T* out = e + row * n;
      const T* s = numbers_of(p.scores + row * n, out, n);
      exponentials_of_row(s, out, sums, n, reference, inverse_epsilon, high, low);
    }
    highs[first / p.chunk_rows] = high;
    lows[first / p.chunk_rows] = low;
  });
  Extremes<T> all{highs[0], lows[0]};
  for (int64_t chunk = 1; chunk < p.chunks; ++chunk) {
    all.high = highs[chunk] > all.high ? highs[chunk] : all.high;
    all.low = lows[chunk] < all.low ? lows[chunk] : all.low;
  }
  return all;
}

// out = u E v of a row. In pieces: converted out of the L1 cache, and E is not written.
template <typename S, typename T>
void scaled(const T* e, const T* v, T u, int64_t n, S* out) {
  constexpr int64_t kPiece = 256;
  T buffer[kPiece];
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t count = n - first < kPiece ? n - first : kPiece;
    T* q = numbers_for(out + first, buffer);
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) q[k] = e[first + k] * v[first + k] * u;
    finish_row(q, out + first, count);
  }
}

// One iteration, from the column scaling v: the column sums of u E into partial, or at last E becomes Q, the assignments.
template <typename S, typename T = Number<S>>
void scaling_sweep(const Problem<S>& p, const T* v, T* e, S* assignments, T* partial, bool last_iteration) {
  const int64_t n = p.prototypes;
  p.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
    for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    for (int64_t row = first; row < last; ++row) {
      const T* q = e + row * n;
      const T inverse = static_cast<T>(1 / dot(q, v, n));
      if (!last_iteration) {
        add_row(q, sums, n, inverse / p.whole_batch);
      } else {
        scaled(q, v, inverse, n, assignments + row * n);
      }
    }
  });
}

// From E and its column sums.
template <typename S, typename T = Number<S>>
void scale(const Problem<S>& p, T* e, S* assignments, T* partial, int64_t iterations) {
  const int64_t n = p.prototypes;
  Scratch<T> v(n);
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    p.add_chunks(partial, v.get());
    for (int64_t k = 0; k < n; ++k) v[k] = p.share(k) / v[k];
    scaling_sweep(p, v.get(), e, assignments, partial, iteration + 1 == iterations);
  }
}

// rows and columns [iterations, batch | prototypes], a and c of each iteration, may be null.
template <typename S>
void scale_logarithms(const Problem<S>& p, S* assignments, double* rows, double* columns, int64_t iterations) {
  const int64_t n = p.prototypes;
  Scratch<double> a(p.batch), c(n);
  for (int64_t row = 0; row < p.batch; ++row) a[row] = 0;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    log_column_sums(p, a.get(), c.get());
    for (int64_t k = 0; k < n; ++k) c[k] = log_normal(static_cast<double>(p.share(k))) - c[k];
    log_rows(p, c.get(), assignments, a.get());
    if (rows) {
      for (int64_t row = 0; row < p.batch; ++row) rows[iteration * p.batch + row] = a[row];
      for (int64_t k = 0; k < n; ++k) columns[iteration * n + k] = c[k];
    }
  }
}

}  // namespace

template <typename S>
void sinkhorn(const S* scores, const Number<S>* marginals, S* assignments, double* rows, double* columns,
              int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int threads) {
  using T = Number<S>;
  const int64_t size = batch * prototypes;
  const auto solve = [&](Problem<S>& p, int64_t problem) {
    S* out = assignments + problem * size;
    Scratch<T> spare(kIsHalf<S> ? size : 0);
    T* e = numbers_for(out, spare.get());
    double* a = rows ? rows + problem * iterations * batch : nullptr;
    double* c = columns ? columns + problem * iterations * prototypes : nullptr;
    Scratch<T> partial(p.chunks * prototypes);
    const T reference = number(p.scores[0]);
    const Extremes<T> found = exponentials(p, reference, e, partial.get());
    p.set_range(found.high, found.low);
    if (p.is_narrow()) {
      if (a) {
        scale_logarithms(p, out, a, c, iterations);
        exponentials(p, reference, e, partial.get());
      }
      scale(p, e, out, partial.get(), iterations);
    } else if (p.is_finite()) {
      scale_logarithms(p, out, a, c, iterations);
    } else {  // an infinity among the scores
      for (int64_t i = 0; i < size; ++i) convert(p.range - p.range, out + i);
    }
  };
  for_problems<S>(scores, marginals, nullptr, problems, batch, prototypes, epsilon, threads, solve);
}

template <typename T>
void sinkhorn_sweep(const T* scores, const T* extremes, T* assignments, const double* columns, double* rows,
                    double* log_sums, int64_t problems, int64_t batch, int64_t prototypes, double epsilon,
                    int64_t iteration, bool last, int threads) {
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    const int64_t n = prototypes;
    T* out = assignments + problem * batch * n;
    double *a = rows + problem * batch, *sums = log_sums + problem * n;
    const double* c = columns + problem * n;
    if (p.is_finite()) {
      if (iteration > 0)
        log_rows(p, c, out, a);
      else
        for (int64_t row = 0; row < batch; ++row) a[row] = 0;
      if (!last) log_column_sums(p, a, sums);
    } else {
      for (int64_t i = 0; i < batch * n; ++i) out[i] = p.range - p.range;
      for (int64_t row = 0; row < batch; ++row) a[row] = 0;
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    }
  };
  for_problems<T>(scores, nullptr, extremes, problems, batch, prototypes, epsilon, threads, solve);
}

IMC_INSTANTIATE(sinkhorn)
IMC_INSTANTIATE_HALF(sinkhorn)
IMC_INSTANTIATE(sinkhorn_sweep)

}  // namespace imc::IMC_ISA
