// The two products of mutual_information_loss.cpp, J = P^T U and dP = U G, which are nearly all of its arithmetic, and
// the layouts of their operands: by vectors, and by AMX.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace imc::IMC_ISA {

namespace {

#ifdef __AMX_BF16__
constexpr int kWide = 64;
#else
// Prototypes to a panel of U: whole tiles of rows for every instruction set, whole cache lines for every element type.
constexpr int kWide = 48;
#endif

// The sizes, and the buffers that the steps hand on. Panels are filled up with zeros, so that no product has an edge.
template <typename T>
struct Problem {
  int64_t views, batch, clusters, prototypes;
  int64_t whole_batch;  // of all processes
  int threads;
  int64_t all_clusters = views * clusters, all_prototypes = views * prototypes;
  int64_t cluster_panels = ceil_div(all_clusters, kPanel<T>), prototype_panels = ceil_div(all_prototypes, kWide);
  int64_t rows = ceil_div(batch, kTileRows) * kTileRows, columns = prototype_panels * kWide;
  Scratch<T> y{batch * all_clusters};                        // P [batch, V C]
  Scratch<T> packed_y{packed_size<T>(batch, all_clusters)};  // P as an operand of J
  Scratch<T> u{columns * rows};                              // U [panel][sample][kWide]
  Scratch<T> joint{cluster_panels * columns * kPanel<T>};  // J^T [panel][prototype][kPanel] times whole_batch, then
                                                           // log(J / m)
  Scratch<T> log_y{all_clusters};  // sums of P, then the logarithms of its means

  T& joint_at(int64_t cluster, int64_t prototype) {
    return joint[(cluster / kPanel<T> * columns + prototype) * kPanel<T> + cluster % kPanel<T>];
  }

  // body(first element of the row, its address in U, how many) for the pieces in which a row of U lies.
  template <typename Body>
  void for_pieces(int64_t sample, int64_t view, const Body& body) {
    for (int64_t k = 0; k < prototypes;) {
      const int64_t column = view * prototypes + k, left = prototypes - k, room = kWide - column % kWide;
      const int64_t n = left < room ? left : room;
      body(k, &u[(column / kWide * rows + sample) * kWide + column % kWide], n);
      k += n;
    }
  }
};

// What comes next out of the last cache is asked for early: the products then run at the rate of arithmetic (1.6 and
// 2.0 ms without, 1.25 each with, of 1.2 by the library's rate).
template <typename T>
void prefetch(const T* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(x + i);
}

#ifdef __AMX_BF16__

constexpr int64_t kLine = 64 / sizeof(float);  // of a cache

// P^T by rows, [tile of clusters][step][part].
inline void pack_clusters(Problem<float>& p) {
  const TransposedSource<float> source{p.y.get(), p.all_clusters};
  const int64_t steps = ceil_div(p.batch, kTileDepth), tiles = p.cluster_panels * kPanel<float> / kTileSide;
  parallel_for(tiles, useful_threads(p.batch * p.all_clusters, p.threads), [&](int64_t tile, int) {
    const int64_t first = tile * kTileSide, left = p.all_clusters - first;
    for (int64_t step = 0; step < steps; ++step)
      source.split(first, left < kTileSide ? left : kTileSide, step * kTileDepth, p.batch - step * kTileDepth,
                   parts_in(p.packed_y.get()) + (tile * steps + step) * kParts);
  });
}

// A panel of columns of J, as P^T U, transposed.
inline void joint_panel(Problem<float>& p, int64_t panel) {
  constexpr int64_t slice = 8, width = kPanel<float>;  // steps, whose parts of U stay in the L2 cache
  const int64_t steps = ceil_div(p.batch, kTileDepth), height = p.cluster_panels * width;
  Scratch<uint16_t> right(slice * (kWide / kTileSide) * kParts);
  Scratch<float> sums(height * kWide);  // [V C, kWide]
  const TileRegisters registers;
  for (int64_t first = 0; first < steps; first += slice) {
    const int64_t count = steps - first < slice ? steps - first : slice, part = 2 * count * kParts;
    const float* u = &p.u[(panel * p.rows + first * kTileDepth) * kWide];
    for (int64_t column = 0; column < kWide; column += kTileSide)
      for (int64_t step = 0; step < count; ++step)
        split_pairs(u + step * kTileDepth * kWide + column, kWide, nullptr, kTileDepth, kTileSide,
                    &right[column / width * part + (2 * step + column / kTileSide % 2) * kParts]);
    const float* next = u + p.rows * kWide - kLine;  // of the next panel
    const int64_t lines = ceil_div(count * kTileDepth * kWide / kLine, p.cluster_panels * (kWide / width));
    for (int64_t row = 0; row < height; row += width) {
      const uint16_t* left = parts_in(p.packed_y.get()) + (row / kTileSide * steps + first) * kParts;
      for (int64_t column = 0; column < kWide; column += width)
        multiply_tiles(count, left, steps * kParts, &right[column / width * part], &sums[row * kWide + column], kWide,
                       first > 0, panel + 1 < p.prototype_panels ? lines : 0,
                       [&](int64_t) { __builtin_prefetch(next += kLine); });
    }
  }
  for (int64_t row = 0; row < height; row += kTileSide)
    for (int64_t column = 0; column < kWide; column += kTileSide) {
      Tile<float> tile;
      for (int64_t i = 0; i < kTileSide; ++i) tile.load(i, &sums[(row + i) * kWide + column]);
      tile.transpose();
      for (int64_t i = 0; i < kTileSide; ++i) tile.store(i, &p.joint_at(row, panel * kWide + column + i));
    }
}

// What J became as the right operand of P G, packed_size(V C, V K) long.
inline void pack_joint(Problem<float>& p, float* packed) {
  constexpr int64_t width = kPanel<float>;
  const int64_t depth = whole_steps(p.all_clusters);
  parallel_for(ceil_div(p.all_prototypes, width), useful_threads(depth * p.all_prototypes, p.threads),
               [&](int64_t panel, int) {
                 uint16_t* tiles = parts_in(packed + parts_size(panel * width * depth));
                 for (int64_t c = 0; c < depth; c += kTileDepth)
                   for (int64_t k = panel * width; k < (panel + 1) * width; k += kTileSide, tiles += kParts) {
                     split_rows(&p.joint_at(c, k), width, nullptr, kTileSide, kTileDepth, tiles);
                     transpose_tiles(tiles);
                   }
               });
}

// dP = U G for some rows at a time, G what J became.
template <typename T>
class LogitsProduct {
 public:
  explicit LogitsProduct(Problem<T>& p) : p_(p), packed_(packed_size<T>(p.columns, p.cluster_panels * width)) {
    parallel_for(p.prototype_panels, useful_threads(p.columns * p.cluster_panels * width, p.threads),
                 [&](int64_t panel, int) {
                   for (int64_t k = panel * kWide; k < (panel + 1) * kWide; k += kTileDepth)
                     for (int64_t c = 0; c < p.cluster_panels * width; c += kTileSide)
                       split_pairs(&p.joint_at(c, k), width, nullptr, kTileDepth, kTileSide,
                                   tiles_at(c / width, k) + c / kTileSide % 2 * kParts);
                 });
  }

  // Rows [begin, end), whole tiles of them, into dy [rows, cluster_panels * kPanel].
  void multiply(int64_t begin, int64_t end, T* dy) {
    constexpr int64_t panels = 2, steps = panels * kWide / kTileDepth;  // whose parts stay in the L1 cache
    alignas(64) uint16_t left[2 * steps * kParts];
    const TileRegisters registers;
    for (int64_t panel = 0; panel < p_.prototype_panels; panel += panels) {
      const int64_t here = p_.prototype_panels - panel < panels ? p_.prototype_panels - panel : panels;
      const int64_t count = here * kWide / kTileDepth;
      for (int64_t row = begin; row < end; row += kTileRows) {
        for (int64_t r = 0; r < kTileRows; r += kTileSide)
          for (int64_t step = 0; step < count; ++step)
            split_rows(u_at(panel + step * kTileDepth / kWide, row + r) + step * kTileDepth % kWide, kWide, nullptr,
                       kTileSide, kTileDepth, left + (r / kTileSide * count + step) * kParts);
        const int64_t left_over = p_.prototype_panels - (panel + panels), ahead = left_over < panels ? left_over : panels;
        constexpr int64_t panel_lines = kTileRows * kWide / kLine;
        const int64_t lines = ahead > 0 ? ahead * panel_lines : 0, each = ceil_div(lines, p_.cluster_panels);
        int64_t line = 0;  // of the next panels
        const auto fetch = [&](int64_t) {
          if (line < lines) __builtin_prefetch(u_at(panel + panels + line / panel_lines, row) + line % panel_lines * kLine);
          ++line;
        };
        for (int64_t clusters = 0; clusters < p_.cluster_panels; ++clusters)
          multiply_tiles(count, left, count * kParts, tiles_at(clusters, panel * kWide),
                         dy + (row * p_.cluster_panels + clusters) * width, p_.cluster_panels * width, panel > 0, each,
                         fetch);
      }
    }
  }

 private:
  static constexpr int64_t width = kPanel<T>;

  const T* u_at(int64_t panel, int64_t sample) const { return &p_.u[(panel * p_.rows + sample) * kWide]; }
  uint16_t* tiles_at(int64_t clusters, int64_t k) {
    return parts_in(&packed_[parts_size((clusters * p_.columns + k) * width)]);
  }

  Problem<T>& p_;
  Scratch<T> packed_;
};

#else

// U serves both products as their left operand where it lies: its prototypes as rows with the samples as depth, and the
// other way round.
struct PrototypeRows {
  static constexpr int kRowStride = 1, kDepthStride = kWide;
};
struct SampleRows {
  static constexpr int kRowStride = kWide, kDepthStride = 1;
};

template <typename T>
void pack_clusters(Problem<T>& p) {
  pack_rows<T>(p.y.get(), static_cast<const T*>(nullptr), p.batch, p.all_clusters, p.packed_y.get(), p.threads);
}

// A panel of columns of J.
template <typename T>
void joint_panel(Problem<T>& p, int64_t panel) {
  for (int64_t sample = 0; sample < p.batch; sample += kDepth) {
    const int64_t depth = p.batch - sample < kDepth ? p.batch - sample : kDepth;
    const T* u = &p.u[(panel * p.rows + sample) * kWide];
    for (int64_t clusters = 0; clusters < p.cluster_panels; ++clusters) {
      const T* y = &p.packed_y[(clusters * p.batch + sample) * kPanel<T>];
      T* joint = &p.joint[(clusters * p.columns + panel * kWide) * kPanel<T>];
      const int64_t part = ceil_div(depth, p.cluster_panels) * kWide;
      if (panel + 1 < p.prototype_panels) prefetch(u + p.rows * kWide + clusters * part, part);
      for (int64_t row = 0; row < kWide; row += kTileRows)
        multiply_tile<PrototypeRows>(depth, u + row, y, joint + row * kPanel<T>, kPanel<T>, sample > 0);
    }
  }
}


// What J became as the right operand of P G, packed_size(V C, V K) long.
template <typename T>
void pack_joint(Problem<T>& p, T* packed) {
  parallel_for(ceil_div(p.all_prototypes, kPanel<T>), p.threads, [&](int64_t panel, int) {
    for (int64_t c = 0; c < p.all_clusters; ++c)
      for (int64_t k = panel * kPanel<T>; k < (panel + 1) * kPanel<T>; ++k)
        packed[panel * kPanel<T> * (p.all_clusters - 1) + c * kPanel<T> + k] =
            k < p.all_prototypes ? p.joint_at(c, k) : T(0);
  });
}

// dP = U G for some rows at a time, G what J became, which lies as it is multiplied.
template <typename T>
class LogitsProduct {
 public:
  explicit LogitsProduct(Problem<T>& p) : p_(p) {}

  // Rows [begin, end), whole tiles of them, into dy [rows, cluster_panels * kPanel].
  void multiply(int64_t begin, int64_t end, T* dy) {
    constexpr int64_t slice = 4;  // panels of U, whose part of G stays in the L1 cache
    const int64_t width = p_.cluster_panels * kPanel<T>;
    for (int64_t panel = 0; panel < p_.prototype_panels; panel += slice) {
      const int64_t count = p_.prototype_panels - panel < slice ? p_.prototype_panels - panel : slice;
      for (int64_t clusters = 0; clusters < p_.cluster_panels; ++clusters) {
        const T* g = &p_.joint_at(clusters * kPanel<T>, panel * kWide);
        const int64_t next = panel + slice + clusters;
        for (int64_t row = begin; row < end; row += kTileRows) {
          if (clusters < slice && next < p_.prototype_panels)
            prefetch(&p_.u[(next * p_.rows + row) * kWide], kTileRows * kWide);
          multiply_tile<SampleRows>(kWide, &p_.u[(panel * p_.rows + row) * kWide], g,
                                    dy + row * width + clusters * kPanel<T>, width, panel > 0, count, p_.rows * kWide);
        }
      }
    }
  }

 private:
  Problem<T>& p_;
};

#endif

}  // namespace

}  // namespace imc::IMC_ISA
