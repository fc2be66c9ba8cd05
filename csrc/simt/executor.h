// Runs CUDA kernels on the CPU, for tests: what the headers in include/ stand on.
//
// One fiber per CUDA thread, all on the calling OS thread. Every thread of a warp runs up to its next warp operation or
// barrier, then every warp of the block, every block of the cluster, every cluster of a cooperative launch: threads that
// wait at different places there are a divergent barrier. A launch that fails a check throws std::runtime_error.
//
// Where the kernels are compiled with -fsanitize=thread, the compiler reports every access to checks.cpp, which finds
// races and reads of shared memory never written. What a block writes to global memory is late: another block may read it
// only after a common barrier, or where a __threadfence stands between the write and an atomic operation, and another
// between an atomic operation on the same place and the read. Not modelled: masks of part of a warp, a block that waits
// for a later one without a barrier (it would wait for ever), atomic beside plain accesses of one place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

struct Index {
  unsigned x, y, z;
};

// The emulated device. Tests change it to reach other grids and tiles.
struct Limits {
  int multiprocessors = 4;
  std::int64_t shared_per_block = 64 << 10;  // bytes, also of a multiprocessor
  int largest_cluster = 8;                   // 1: a device without clusters
  bool run = true;                           // false: launches are checked, and their kernels not run
  std::int64_t launches = 0;                 // so far
};
Limits& limits();

struct Launch {
  Index grid, block;
  unsigned cluster = 1;  // blocks, along x
  bool cooperative = false;
  std::size_t shared_bytes = 0;  // dynamic
};

void launch(const Launch& launch, const std::function<void()>& body);

// How many blocks of a kernel a multiprocessor holds.
int occupancy(unsigned threads, std::size_t shared_bytes);

// For the running thread.
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;
unsigned lane();
unsigned cluster_rank();
unsigned cluster_size();
void sync_warp(unsigned mask);
void sync_block();
void sync_cluster();
void sync_grid();
std::uint64_t exchange(unsigned mask, std::uint64_t value, unsigned source_lane);
unsigned ballot(unsigned mask, bool vote);
void fence();  // of the device
// The bytes at an address, at most 8, become what `update` makes of them.
void atomically(void* address, std::size_t bytes, const std::function<void(void*)>& update);

// The block's shared variable named by `key`, and its dynamic shared memory.
void* shared_variable(const void* key, std::size_t bytes);
void* dynamic_shared();
// The same place in the shared memory of another block of the cluster.
void* cluster_peer(const void* address, unsigned rank);

}  // namespace simt
