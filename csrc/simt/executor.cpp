#include "executor.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "fibers.h"
#include "state.h"

namespace simt {
namespace {

constexpr unsigned kMostThreads = 1024;  // in a block

const char* describe(Wait wait) {
  switch (wait) {
    case Wait::exchange:
      return "a shuffle or vote";
    case Wait::warp:
      return "__syncwarp";
    case Wait::block:
      return "__syncthreads";
    case Wait::cluster:
      return "cluster.sync";
    case Wait::grid:
      return "grid.sync";
    case Wait::done:
      return "its end";
    default:
      return "nothing";
  }
}

std::mutex one_launch;  // at a time
thread_local const Launch* running = nullptr;

[[noreturn]] void diverged(const Thread& one, const Thread& other) {
  throw std::runtime_error("simt: divergent barrier: " + name(one) + " waits at " + describe(one.wait) + ", " +
                           name(other) + " has come to " + describe(other.wait));
}

void release(Thread& thread, Scope widest) {
  thread.wait = Wait::ready;
  thread.stamp = 0;
  for (int scope = 0; scope <= widest; ++scope) ++thread.epochs[scope];
}

// Each runs its part up to a barrier that is not its own, where all its threads wait, and says which.

Wait run_warp(Block& block, unsigned warp) {
  Thread* threads = &block.threads[warp * kWarpSize];
  for (;;) {
    for (unsigned lane = 0; lane < kWarpSize; ++lane) fibers::resume(threads[lane]);
    const Wait wait = threads[0].wait;
    for (unsigned lane = 1; lane < kWarpSize; ++lane)
      if (threads[lane].wait != wait) diverged(threads[0], threads[lane]);
    if (wait != Wait::exchange && wait != Wait::warp) return wait;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (wait == Wait::warp) release(threads[lane], kWarpScope);  // a shuffle orders no memory
      threads[lane].wait = Wait::ready;
    }
  }
}

Wait run_block(Block& block) {
  for (;;) {
    for (unsigned warp = 0; warp < block.warps.size(); ++warp) {
      run_warp(block, warp);
      const Thread& thread = block.threads[warp * kWarpSize];
      if (thread.wait != block.threads[0].wait) diverged(block.threads[0], thread);
    }
    const Wait wait = block.threads[0].wait;
    if (wait == Wait::done)
      for (SharedMemory& memory : block.shared) checks::retire_shared(memory.data, memory.bytes);
    if (wait != Wait::block) return wait;
    for (Thread& thread : block.threads) release(thread, kBlockScope);
  }
}

// Blocks of one scope, `step` of which make one of the scope below.
Wait run_blocks(Block* first, unsigned count, Wait own, Scope scope, unsigned step) {
  for (;;) {
    for (unsigned i = 0; i < count; i += step) {
      if (step == 1)
        run_block(first[i]);
      else
        run_blocks(first + i, step, Wait::cluster, kClusterScope, 1);
      if (first[i].threads[0].wait != first[0].threads[0].wait) diverged(first[0].threads[0], first[i].threads[0]);
    }
    const Wait wait = first[0].threads[0].wait;
    if (wait != own) return wait;
    for (unsigned i = 0; i < count; ++i)
      for (Thread& thread : first[i].threads) release(thread, scope);
  }
}

char* allocate(std::size_t bytes) {
  char* data = checks::allocate_shared(bytes);
  std::memset(data, 0xff, bytes);  // NaN
  return data;
}

// Blocks that are on the device together.
struct Resident {
  std::vector<Block> blocks;

  Resident(const Launch& launch, unsigned first, unsigned count) : blocks(count) {
    const Index &size = launch.block, &grid = launch.grid;
    const unsigned threads = size.x * size.y * size.z;
    for (unsigned i = 0; i < count; ++i) {
      Block& block = blocks[i];
      block.rank = first + i;
      block.index = {block.rank % grid.x, block.rank / grid.x % grid.y, block.rank / (grid.x * grid.y)};
      block.cluster = &blocks[i - i % launch.cluster];
      block.warps.resize(threads / kWarpSize);
      block.threads.resize(threads);
      for (unsigned rank = 0; rank < threads; ++rank) {
        Thread& thread = block.threads[rank];
        thread.block = &block;
        thread.rank = rank;
        thread.index = {rank % size.x, rank / size.x % size.y, rank / (size.x * size.y)};
        fibers::prepare(thread, std::size_t(i) * threads + rank);
      }
      if (launch.shared_bytes) block.shared.push_back({nullptr, allocate(launch.shared_bytes), launch.shared_bytes});
    }
  }

  ~Resident() {
    for (Block& block : blocks)
      for (SharedMemory& memory : block.shared) checks::release_shared(memory.data, memory.bytes);
  }

  void run(const Launch& launch) {
    const unsigned count = static_cast<unsigned>(blocks.size());
    const Wait wait = launch.cooperative
                          ? run_blocks(blocks.data(), count, Wait::grid, kGridScope, launch.cluster)
                          : run_blocks(blocks.data(), count, Wait::cluster, kClusterScope, 1);
    if (wait != Wait::done)
      throw std::runtime_error(std::string("simt: ") + describe(wait) + " is not for this kind of launch");
  }
};

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error("simt: launch refused: " + why); }

// Makes no sentence that is not needed: launches without their kernels are timed.
void check(const Launch& launch) {
  const Limits& device = limits();
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const std::uint64_t blocks = std::uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > kMostThreads || threads % kWarpSize != 0) {
    refuse("a block must have whole warps and at most 1024 threads, not " + std::to_string(threads));
  }
  if (blocks == 0 || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535) {
    refuse("a grid is at most 2^31 - 1 by 65535 by 65535 blocks, and not empty");
  }
  if (static_cast<std::int64_t>(launch.shared_bytes) > device.shared_per_block) {
    refuse(std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory");
  }
  if (launch.cluster < 1 || static_cast<int>(launch.cluster) > device.largest_cluster ||
      launch.grid.x % launch.cluster != 0) {
    refuse("clusters of " + std::to_string(launch.cluster) + " blocks");
  }
  const std::uint64_t most = std::uint64_t(device.multiprocessors) * occupancy(threads, launch.shared_bytes);
  if (launch.cooperative && blocks > most) {
    refuse("a cooperative grid of " + std::to_string(blocks) + " blocks where " + std::to_string(most) + " fit");
  }
}

SharedMemory& find_shared(Block& block, const void* key, std::size_t bytes) {
  std::size_t used = 0;
  for (SharedMemory& memory : block.shared) {
    if (memory.key == key) return memory;
    used += memory.bytes;
  }
  if (static_cast<std::int64_t>(used + bytes) > limits().shared_per_block)
    fail("the block needs more shared memory than the device has");
  block.shared.push_back({key, allocate(bytes), bytes});
  return block.shared.back();
}

void whole_warp(unsigned mask) {
  if (mask != ~0u) fail(name(*self) + " names part of a warp in a mask, which this executor does not model");
}

}  // namespace

Limits& limits() {
  static Limits device;
  return device;
}

int occupancy(unsigned threads, std::size_t shared_bytes) {
  const auto by_threads = 2048 / static_cast<std::int64_t>(threads);
  if (shared_bytes == 0) return static_cast<int>(by_threads);
  const std::int64_t by_shared = limits().shared_per_block / static_cast<std::int64_t>(shared_bytes);
  return static_cast<int>(by_threads < by_shared ? by_threads : by_shared);
}

void launch(const Launch& launch, const std::function<void()>& body) {
  check(launch);
  ++limits().launches;
  if (!limits().run) return;
  const std::lock_guard<std::mutex> lock(one_launch);
  const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  const unsigned together = launch.cooperative ? blocks : launch.cluster;
  running = &launch;
  const fibers::Range stacks =
      fibers::begin(body, std::size_t(together) * launch.block.x * launch.block.y * launch.block.z);
  blockDim = launch.block;
  gridDim = launch.grid;
  checks::begin(launch, stacks.data, stacks.bytes);
  struct End {
    ~End() {
      self = nullptr;
      checks::end();
    }
  } end;
  for (unsigned first = 0; first < blocks; first += together) Resident(launch, first, together).run(launch);
}

std::string name(const Thread& thread) {
  return "thread " + std::to_string(thread.rank) + " of block " + std::to_string(thread.block->rank);
}

unsigned lane() { return self->rank % kWarpSize; }
unsigned cluster_rank() { return static_cast<unsigned>(self->block - self->block->cluster); }
unsigned cluster_size() { return running->cluster; }

void sync_warp(unsigned mask) {
  whole_warp(mask);
  fibers::suspend(Wait::warp);
}
void sync_block() { fibers::suspend(Wait::block); }
void sync_cluster() { fibers::suspend(Wait::cluster); }
void sync_grid() { fibers::suspend(Wait::grid); }

namespace {
// Two sets of slots in turn: a lane writes into the next one while others still read from the last.
std::uint64_t* deposit(unsigned mask, std::uint64_t value) {
  whole_warp(mask);
  std::uint64_t* slots = self->block->warps[self->rank / kWarpSize].slots[self->exchanges++ % 2];
  slots[lane()] = value;
  fibers::suspend(Wait::exchange);
  return slots;
}
}  // namespace

std::uint64_t exchange(unsigned mask, std::uint64_t value, unsigned source_lane) {
  return deposit(mask, value)[source_lane % kWarpSize];
}

unsigned ballot(unsigned mask, bool vote) {
  const std::uint64_t* slots = deposit(mask, vote);
  unsigned votes = 0;
  for (unsigned i = 0; i < kWarpSize; ++i) votes |= static_cast<unsigned>(slots[i]) << i;
  return votes;
}

void fence() { checks::fence(); }

void atomically(void* address, std::size_t bytes, const std::function<void(void*)>& update) {
  checks::exchange_with(address);
  std::uint64_t value = 0;
  std::memcpy(&value, address, bytes);
  update(&value);
  std::memcpy(address, &value, bytes);
}

void* shared_variable(const void* key, std::size_t bytes) { return find_shared(*self->block, key, bytes).data; }

void* dynamic_shared() { return running->shared_bytes ? find_shared(*self->block, nullptr, 0).data : nullptr; }

void* cluster_peer(const void* address, unsigned rank) {
  const char* place = static_cast<const char*>(address);
  if (rank >= cluster_size()) fail(name(*self) + " asks for a block outside its cluster");
  for (const SharedMemory& memory : self->block->shared)
    if (place >= memory.data && place < memory.data + memory.bytes)
      return find_shared(self->block->cluster[rank], memory.key, memory.bytes).data + (place - memory.data);
  fail(name(*self) + " maps an address that is not in its shared memory to another block");
}

}  // namespace simt
