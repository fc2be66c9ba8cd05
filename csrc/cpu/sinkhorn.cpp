// Sinkhorn-Knopp as scaling vectors: Q = diag(u) E diag(v), E = exp((scores - max) / epsilon); only u and v iterate.
// A sweep over the rows does two steps at once: with the column scaling v a row's sum gives its u, and u E goes into the
// next column sums while the row is in the L1 cache. So there is one sweep for the exponentials, and one per iteration.
//
// Where a problem's scores span more than scaling_range(), exponentials or their products could underflow, and the same
// iteration runs on logarithms. Column sums are partial sums over fixed chunks of rows, added in order: bitwise the same
// for any number of threads.
#include <cstdint>

#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kChunkRows = 32, kMostChunks = 64, kColumnBlock = 512;

// With E >= exp(-range), u and v lie within exp(+-range) times small powers of the sizes, so that no product u E v
// that matters is below exp(-2 range): it must stay a normal number.
inline float scaling_range(float) { return 40.f; }
inline double scaling_range(double) { return 340.0; }

template <typename T>
struct Problem {
  const T* scores;  // [batch, prototypes]
  int64_t batch, prototypes;
  double inverse_epsilon;
  const T* marginals;  // [prototypes] or null
  int threads;
  int64_t chunk_rows = ceil_div(batch, kMostChunks) > kChunkRows ? ceil_div(batch, kMostChunks) : kChunkRows;
  int64_t chunks = ceil_div(batch, chunk_rows);
  T high = 0, range = 0;

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

  // The maximum, and the range divided by epsilon.
  void measure() {
    Scratch<T> highs(chunks), lows(chunks);
    parallel_for(chunks, threads, [&](int64_t chunk, int) {
      const int64_t first = chunk * chunk_rows * prototypes;
      const int64_t last = batch * prototypes < first + chunk_rows * prototypes ? batch * prototypes
                                                                                 : first + chunk_rows * prototypes;
      T chunk_high = scores[first], chunk_low = scores[first];
#pragma omp simd reduction(max : chunk_high) reduction(min : chunk_low)
      for (int64_t i = first; i < last; ++i) {
        chunk_high = scores[i] > chunk_high ? scores[i] : chunk_high;
        chunk_low = scores[i] < chunk_low ? scores[i] : chunk_low;
      }
      highs[chunk] = chunk_high;
      lows[chunk] = chunk_low;
    });
    high = highs[0];
    T low = lows[0];
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      high = highs[chunk] > high ? highs[chunk] : high;
      low = lows[chunk] < low ? lows[chunk] : low;
    }
    range = (high - low) * static_cast<T>(inverse_epsilon);
  }

  T share(int64_t k) const { return marginals ? marginals[k] : 1 / static_cast<T>(prototypes); }

  // S = log E
  double log_kernel(int64_t row, int64_t k) const {
    return (static_cast<double>(scores[row * prototypes + k]) - static_cast<double>(high)) * inverse_epsilon;
  }
};

template <typename T>
void add_row(const T* row, T* sums, int64_t n, T scale) {
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) sums[k] += row[k] * scale;
}

template <typename T>
void store_logs(const T* x, double* logs, int64_t n) {
  for (int64_t i = 0; i < n; ++i) logs[i] = log_normal(static_cast<double>(x[i]));
}

// The scaling form. rows and columns [iterations, batch | prototypes] may be null.
template <typename T>
void scale(const Problem<T>& p, T* assignments, double* rows, double* columns, int64_t iterations) {
  const int64_t n = p.prototypes;
  const T inverse_epsilon = static_cast<T>(p.inverse_epsilon);
  Scratch<T> partial(p.chunks * n), v(n), u(p.batch);
  p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T* sums) {
    for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    for (int64_t row = first; row < last; ++row) {
      const T* s = p.scores + row * n;
      T* e = assignments + row * n;
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) {
        e[k] = exp_bounded((s[k] - p.high) * inverse_epsilon);
        sums[k] += e[k];
      }
    }
  });
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const bool last_iteration = iteration + 1 == iterations;
    p.add_chunks(partial.get(), v.get());
    for (int64_t k = 0; k < n; ++k) v[k] = p.share(k) / v[k];
    p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row) {
        T* e = assignments + row * n;
        const T inverse = static_cast<T>(1 / dot(e, v.get(), n));
        u[row] = inverse / static_cast<T>(p.batch);
        if (!last_iteration) {
          add_row(e, sums, n, u[row]);
        } else {
#pragma omp simd
          for (int64_t k = 0; k < n; ++k) e[k] *= v[k] * inverse;
        }
      }
    });
    if (rows) {
      store_logs(u.get(), rows + iteration * p.batch, p.batch);
      store_logs(v.get(), columns + iteration * n, n);
    }
  }
}

// The same on logarithms, a = log u and c = log v. They may be thousands and cancel against S: sums of the three are
// taken in double, their exponentials in T.
template <typename T>
void scale_logarithms(const Problem<T>& p, T* assignments, double* rows, double* columns, int64_t iterations) {
  const int64_t n = p.prototypes;
  const double log_batch = log_normal(static_cast<double>(p.batch));
  Scratch<double> highs(p.chunks * n), a(p.batch), c(n);
  Scratch<T> partial(p.chunks * n);
  for (int64_t row = 0; row < p.batch; ++row) a[row] = 0;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T* sums) {
      double* high = highs.get() + (sums - partial.get());
      for (int64_t k = 0; k < n; ++k) high[k] = p.log_kernel(first, k) + a[first];
      for (int64_t row = first + 1; row < last; ++row)
#pragma omp simd
        for (int64_t k = 0; k < n; ++k) {
          const double x = p.log_kernel(row, k) + a[row];
          high[k] = x > high[k] ? x : high[k];
        }
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
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
        c[k] = log_normal(static_cast<double>(p.share(k))) - high - log_normal(sum);
      }
    });
    p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T*) {
      for (int64_t row = first; row < last; ++row) {
        T* q = assignments + row * n;
        double high = p.log_kernel(row, 0) + c[0];
#pragma omp simd reduction(max : high)
        for (int64_t k = 0; k < n; ++k) {
          const double x = p.log_kernel(row, k) + c[k];
          high = x > high ? x : high;
        }
        const double sum = sum_of<T>(
            n, [&](int64_t k) { return q[k] = exp_bounded(static_cast<T>(p.log_kernel(row, k) + c[k] - high)); });
        a[row] = -log_batch - high - log_normal(sum);
        const T inverse = static_cast<T>(1 / sum);
        for (int64_t k = 0; k < n; ++k) q[k] *= inverse;
      }
    });
    if (rows) {
      for (int64_t row = 0; row < p.batch; ++row) rows[iteration * p.batch + row] = a[row];
      for (int64_t k = 0; k < n; ++k) columns[iteration * n + k] = c[k];
    }
  }
}

// With r the marginals, R_t = batch diag(u_t) E diag(v_t) (rows sum to 1) and P_t = diag(u_t-1) E diag(v_t / r) (columns
// sum to 1), the steps a_t = -log batch - LSE_k(S + c_t) and c_t = log r - LSE_b(S + a_t-1), taken backwards:
//   dc_t -= R_t^T da_t,  dS -= R_t da_t;    da_t-1 = -P_t dc_t,  dS -= P_t dc_t.
// R and P come from the saved logarithms: never above 1, at any range of scores.
template <typename T>
void backward(const Problem<T>& p, const T* assignments, const double* rows, const double* columns,
              const T* grad_output, T* gradient, int64_t iterations) {
  const int64_t n = p.prototypes;
  const double log_batch = log_normal(static_cast<double>(p.batch));
  const T inverse_epsilon = static_cast<T>(p.inverse_epsilon);
  Scratch<T> partial(p.chunks * n), dc(n);
  Scratch<double> log_r(n);
  for (int64_t k = 0; k < n; ++k) log_r[k] = log_normal(static_cast<double>(p.share(k)));
  // From da of iteration t: R_t's part of the gradient and of the column sums.
  const auto push = [&](int64_t row, int64_t t, T da, T* sums) {
    const double *c = columns + t * n, a = rows[t * p.batch + row] + log_batch;
    T* d = gradient + row * n;
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      const T r = exp_bounded(static_cast<T>(p.log_kernel(row, k) + a + c[k])) * da;
      d[k] -= r;
      sums[k] -= r;
    }
  };
  p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T* sums) {
    for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    for (int64_t row = first; row < last; ++row) {
      const T *q = assignments + row * n, *g = grad_output + row * n;
      T* d = gradient + row * n;
      const double da = sum_of<T>(n, [=](int64_t k) {
        d[k] = q[k] * g[k];
        sums[k] += d[k];
        return d[k];
      });
      push(row, iterations - 1, static_cast<T>(da), sums);
    }
  });
  for (int64_t t = iterations - 1; t >= 0; --t) {
    p.add_chunks(partial.get(), dc.get());
    p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row) {
        const double *c = columns + t * n, *r = log_r.get(), a = t > 0 ? rows[(t - 1) * p.batch + row] : 0.0;
        T* d = gradient + row * n;
        const double da = sum_of<T>(n, [&](int64_t k) {
          const T step = exp_bounded(static_cast<T>(p.log_kernel(row, k) + a + c[k] - r[k])) * dc[k];
          d[k] -= step;
          return -step;
        });
        if (t > 0)
          push(row, t - 1, static_cast<T>(da), sums);
        else
          for (int64_t k = 0; k < n; ++k) d[k] *= inverse_epsilon;
      }
    });
  }
}

// Many problems run side by side, one thread each; few share all threads.
template <typename T, typename Body>
void for_problems(const T* scores, const T* marginals, int64_t problems, int64_t batch, int64_t prototypes,
                  double epsilon, int threads, const Body& body) {
  const int64_t size = batch * prototypes;
  threads = useful_threads(problems * size, threads);
  const bool side_by_side = problems >= threads;
  parallel_for(problems, side_by_side ? threads : 1, [&](int64_t problem, int) {
    Problem<T> p{scores + problem * size, batch, prototypes, 1 / epsilon, marginals, side_by_side ? 1 : threads};
    p.measure();
    body(p, problem);
  });
}

}  // namespace

template <typename T>
void sinkhorn(const T* scores, const T* marginals, T* assignments, double* rows, double* columns, int64_t problems,
              int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int threads) {
  const int64_t size = batch * prototypes;
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    T* out = assignments + problem * size;
    double* a = rows ? rows + problem * iterations * batch : nullptr;
    double* c = columns ? columns + problem * iterations * prototypes : nullptr;
    if (p.range <= scaling_range(T())) {
      scale(p, out, a, c, iterations);
    } else if (p.range - p.range == 0) {
      scale_logarithms(p, out, a, c, iterations);
    } else {  // an infinity among the scores
      for (int64_t i = 0; i < size; ++i) out[i] = p.range - p.range;
    }
  };
  for_problems(scores, marginals, problems, batch, prototypes, epsilon, threads, solve);
}

template <typename T>
void sinkhorn_backward(const T* scores, const T* marginals, const T* assignments, const double* rows,
                       const double* columns, const T* grad_output, T* gradient, int64_t problems, int64_t batch,
                       int64_t prototypes, double epsilon, int64_t iterations, int threads) {
  const int64_t size = batch * prototypes;
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    backward(p, assignments + problem * size, rows + problem * iterations * batch,
             columns + problem * iterations * prototypes, grad_output + problem * size, gradient + problem * size,
             iterations);
  };
  for_problems(scores, marginals, problems, batch, prototypes, epsilon, threads, solve);
}

IMC_INSTANTIATE(sinkhorn)
IMC_INSTANTIATE(sinkhorn_backward)

}  // namespace imc::IMC_ISA
