// What the scheduler (executor.cpp) and the checks of memory accesses (checks.cpp) know of a running launch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "executor.h"

namespace simt {

enum class Wait { ready, exchange, warp, block, cluster, grid, done, failed };
enum Scope { kWarpScope, kBlockScope, kClusterScope, kGridScope, kScopes };

constexpr unsigned kWarpSize = 32;

struct Block;

struct Thread {
  Block* block;
  Index index;
  unsigned rank;  // in the block
  Wait wait = Wait::ready;
  void* stack_pointer;
  char* stack;
  void* fake_stack = nullptr;      // AddressSanitizer's
  unsigned exchanges = 0;          // so far
  std::uint32_t epochs[kScopes]{};  // barriers passed of each scope; one of a wider scope counts in the narrower too
  std::uint32_t stamp = 0;         // checks.cpp's name for this thread in these epochs; 0: none yet
  std::uint32_t fences = 0;        // __threadfence so far
  std::uint32_t fence_epoch = 0;   // of the block at the last of them
};

struct SharedMemory {
  const void* key;  // null: the dynamic memory
  char* data;
  std::size_t bytes;
};

struct Block {
  Index index;
  unsigned rank;  // in the grid
  std::vector<Thread> threads;
  struct Warp {
    std::uint64_t slots[2][kWarpSize];
  };
  std::vector<Warp> warps;
  std::vector<SharedMemory> shared;
  Block* cluster;  // its first block
};

inline thread_local Thread* self = nullptr;

[[noreturn]] void fail(const std::string& sentence);  // of the running thread
std::string name(const Thread& thread);

// checks.cpp: nothing where the kernels are not instrumented.
namespace checks {
void begin(const Launch& launch, const char* stacks, std::size_t bytes);
void end();
char* allocate_shared(std::size_t bytes);
void retire_shared(char* data, std::size_t bytes);  // its block has ended, others of the cluster may go on
void release_shared(char* data, std::size_t bytes);
void fence();
void exchange_with(const void* address);  // an atomic operation
}  // namespace checks

}  // namespace simt
