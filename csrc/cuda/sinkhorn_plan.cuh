// How sinkhorn.cu divides a problem's rows among blocks, and what these need of memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device.cuh"
#include "primitives.cuh"

namespace imc::cuda::sinkhorn_plan {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDirectBlocks = 32;  // up to here every block sums all partial columns itself: one sync, not two

struct Plan {
  int64_t batch;
  int prototypes;
  int blocks;     // per problem
  int rows;       // per block; the last block may have fewer
  int tile_rows;  // rows held at a time; all of them where they fit
  bool on_chip;   // tiles and factors in shared memory, else in the workspace

  __host__ __device__ bool resident() const { return rows <= tile_rows; }

  // The workspace, in doubles: partial columns [problems, 2, blocks, prototypes] (two, as a fast block may write while
  // a slow one still reads), column sums [problems, prototypes], highest and lowest score [problems, blocks, 2 floats],
  // and off chip each block's own memory: column and row factors, then the tile of floats.
  __host__ __device__ int64_t partials() const { return int64_t(2) * blocks * prototypes; }
  __host__ __device__ int64_t factors() const { return (prototypes + int64_t(tile_rows) + 1) / 2 * 2; }
  __host__ __device__ int64_t own() const { return factors() + (int64_t(tile_rows) * prototypes + 3) / 4 * 2; }
  int64_t shared_bytes(bool cluster) const { return on_chip ? 8 * (own() + (cluster ? 2 * int64_t(prototypes) : 0)) : 0; }
  int64_t workspace_bytes(int64_t problems) const {
    return 8 * problems * (partials() + prototypes + blocks + (on_chip ? 0 : blocks * own()) + 1);
  }
};

inline Plan make_plan(int64_t problems, int64_t batch, int64_t prototypes, const DeviceLimits& device) {
  Plan plan{};
  plan.batch = batch;
  plan.prototypes = static_cast<int>(prototypes);
  int64_t blocks = ceil_divide(batch, kWarps / 2);
  if (blocks > kDirectBlocks && blocks <= 2 * kDirectBlocks) blocks = kDirectBlocks;
  blocks = std::max<int64_t>(1, std::min(blocks, device.multiprocessors / problems));
  plan.rows = static_cast<int>(ceil_divide(batch, blocks));
  plan.blocks = static_cast<int>(ceil_divide(batch, plan.rows));

  const int64_t floats = largest_shared(device) / 4;
  int64_t tile_rows = (floats - 2 * prototypes - 8) / (prototypes + 2);
  plan.on_chip = floats >= 3 * prototypes + 10;
  if (!plan.on_chip) tile_rows = kWarps;
  // Where there are several tiles, no warp should have a row more than another.
  if (tile_rows < plan.rows && tile_rows > kWarps) tile_rows -= tile_rows % kWarps;
  plan.tile_rows = static_cast<int>(std::min<int64_t>(tile_rows, plan.rows));
  return plan;
}

// For a cluster of blocks per problem, or of no blocks where that does not fit.
inline Plan make_cluster_plan(int64_t batch, int64_t prototypes, const DeviceLimits& device) {
  Plan plan{};
  plan.batch = batch;
  plan.prototypes = static_cast<int>(prototypes);
  int blocks = kLargestCluster;
  while (blocks > 1 && blocks / 2 * (kWarps / 2) >= batch) blocks /= 2;
  const int64_t rows = ceil_divide(batch, blocks);  // the last blocks may have fewer, or none
  const int64_t floats = largest_shared(device) / 4;
  if (!device.clusters || blocks == 1 || floats < (rows + 6) * prototypes + 2 * rows + 8) return plan;
  plan.blocks = blocks;
  plan.rows = plan.tile_rows = static_cast<int>(rows);
  plan.on_chip = true;
  return plan;
}

}  // namespace imc::cuda::sinkhorn_plan
