// Races, and reads of shared memory never written.
//
// Kernels compiled with -fsanitize=thread call the functions __tsan_* at every access of memory. They stand here instead
// of in the compiler's library, and keep for each kGranule bytes who wrote them last and who has read them since. Two
// accesses by different threads, one of them a write, need a barrier between them that both threads took part in: as
// all barriers are of a whole warp, block, cluster or grid, that is so where the count of barriers that the first thread
// had passed at its access, of the narrowest scope that holds both threads, is no longer the second's.
//
// Without one, blocks pass on global memory by atomic operations between fences. A thread's fence covers its own accesses
// before it, and those of its block before the last barrier. Its atomic operations after it publish that. A thread of
// another block that then has an atomic operation on the same place, and after it a fence, has taken it over, and so has
// its block after the next barrier.
#include <cstdlib>
#include <new>

#include "state.h"

#ifndef IMC_SIMT_CHECKS

namespace simt::checks {

void begin(const Launch&, const char*, std::size_t) {}
void end() {}
void fence() {}
void exchange_with(const void*) {}
// Of the exact size, so that AddressSanitizer sees what lies beyond.
char* allocate_shared(std::size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, 128, bytes)) throw std::bad_alloc();
  return static_cast<char*>(data);
}
void retire_shared(char*, std::size_t) {}
void release_shared(char* data, std::size_t) { std::free(data); }

}  // namespace simt::checks

#else

#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <unordered_map>

namespace simt::checks {
namespace {

constexpr std::size_t kGranule = 2;  // bytes: the smallest element that different threads write
constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kReaders = 3;  // the latest, the latest of another warp, and of another block

struct Stamp {
  unsigned thread, warp, block, cluster;
  std::uint32_t epochs[kScopes], fences;
};

// What an atomic operation publishes: the accesses before a thread's fence.
struct Published {
  unsigned thread, block;
  std::uint32_t fences, block_epoch;
};
using Place = std::vector<Published>;  // atomic operations come to

// What a thread's fence after an atomic operation takes over: the first `count` that were published at a place.
struct Taken {
  unsigned thread;
  std::uint32_t block_epoch;
  const Place* place;
  std::size_t count;
};

struct Granule {
  std::uint32_t writer = 0, readers[kReaders] = {};  // stamps; 0: none
};

enum class Kind { global, shared, gone };

struct Page {
  Kind kind = Kind::global;
  std::size_t used = kPageBytes;  // shared: bytes that belong to the variable
  Granule granules[kPageBytes / kGranule];
};

const Launch* running = nullptr;
const char *stacks_begin, *stacks_end;
std::vector<Stamp> stamps;
std::unordered_map<std::uintptr_t, std::unique_ptr<Page>> pages;
std::unordered_map<const void*, Place> places;
std::unordered_map<unsigned, std::vector<Taken>> seen;  // by a thread, and not yet behind a fence
std::unordered_map<unsigned, std::vector<Taken>> taken;  // by a block

struct Cached {
  std::uintptr_t number = 0;
  Page* page = nullptr;
} cache[64];

Page& find(std::uintptr_t number) {
  Cached& cached = cache[number % std::size(cache)];
  if (cached.number != number || !cached.page) {
    std::unique_ptr<Page>& page = pages[number];
    if (!page) page = std::make_unique<Page>();
    cached = {number, page.get()};
  }
  return *cached.page;
}

unsigned number(const Thread& thread) {
  return thread.block->rank * running->block.x * running->block.y * running->block.z + thread.rank;
}

std::uint32_t stamp(Thread& thread) {
  if (thread.stamp == 0) {
    const unsigned id = number(thread);
    Stamp next{id, id / kWarpSize, thread.block->rank, thread.block->rank / running->cluster, {}, thread.fences};
    for (int scope = 0; scope < kScopes; ++scope) next.epochs[scope] = thread.epochs[scope];
    thread.stamp = static_cast<std::uint32_t>(stamps.size());
    stamps.push_back(next);
  }
  return thread.stamp;
}

bool passed_on(const Stamp& a, const Stamp& b) {
  const auto found = taken.find(b.block);
  if (found == taken.end()) return false;
  for (const Taken& t : found->second) {
    if (t.thread != b.thread && t.block_epoch == b.epochs[kBlockScope]) continue;
    for (std::size_t i = 0; i < t.count; ++i) {
      const Published& p = (*t.place)[i];
      if (p.block != a.block) continue;
      if (p.thread == a.thread ? a.fences < p.fences : a.epochs[kBlockScope] < p.block_epoch) return true;
    }
  }
  return false;
}

bool ordered(std::uint32_t before, std::uint32_t after) {
  if (before == 0 || before == after) return true;
  const Stamp &a = stamps[before], &b = stamps[after];
  if (a.thread == b.thread) return true;
  const Scope scope = a.warp == b.warp         ? kWarpScope
                      : a.block == b.block     ? kBlockScope
                      : a.cluster == b.cluster ? kClusterScope
                                               : kGridScope;
  return a.epochs[scope] != b.epochs[scope] || (a.block != b.block && !taken.empty() && passed_on(a, b));
}

// Where in the kernel, for addr2line.
std::string place(const void* caller) {
  Dl_info info;
  if (!dladdr(caller, &info) || !info.dli_fname) return "";
  char offset[32];
  std::snprintf(offset, sizeof offset, " %#zx", static_cast<std::size_t>(static_cast<const char*>(caller) -
                                                                         static_cast<const char*>(info.dli_fbase)));
  return std::string(" (addr2line -e ") + info.dli_fname + offset + ")";
}

[[noreturn]] void race(Kind kind, const char* doing, std::uint32_t other, const char* did, const void* caller) {
  const Stamp& stamp = stamps[other];
  const unsigned threads = running->block.x * running->block.y * running->block.z;
  fail("race: " + name(*self) + " " + doing + (kind == Kind::global ? " global" : " shared") + " memory that thread " +
       std::to_string(stamp.thread % threads) + " of block " + std::to_string(stamp.block) + " " + did +
       ", with neither a barrier nor fences between" + place(caller));
}

void add_reader(Granule& granule, std::uint32_t reader) {
  const Stamp& now = stamps[reader];
  std::uint32_t* readers = granule.readers;
  // Before the latest is replaced it takes the place of the latest of another warp, or of another block.
  if (readers[0]) {
    const Stamp& last = stamps[readers[0]];
    if (last.block != now.block) readers[2] = readers[0];
    if (last.warp != now.warp) readers[1] = readers[0];
  }
  readers[0] = reader;
}

void access(const void* address, std::size_t bytes, bool write, const void* caller) {
  if (!self) return;
  const char* from = static_cast<const char*>(address);
  if (from >= stacks_begin && from < stacks_end) return;
  const std::uint32_t now = stamp(*self);
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(address) / kGranule;
  const std::uintptr_t last = (reinterpret_cast<std::uintptr_t>(address) + bytes - 1) / kGranule;
  for (std::uintptr_t at = first; at <= last; ++at) {
    const std::uintptr_t number = at * kGranule / kPageBytes, offset = at * kGranule % kPageBytes;
    Page& page = find(number);
    if (page.kind == Kind::gone) fail(name(*self) + " uses shared memory of a block that has ended" + place(caller));
    if (offset >= page.used) fail(name(*self) + " goes past the end of a shared variable" + place(caller));
    Granule& granule = page.granules[offset / kGranule];
    if (granule.writer == now && granule.readers[0] == 0) continue;
    if (!ordered(granule.writer, now))
      race(page.kind, write ? "writes" : "reads", granule.writer, "wrote", caller);
    if (write) {
      for (std::uint32_t reader : granule.readers)
        if (!ordered(reader, now)) race(page.kind, "writes", reader, "read", caller);
      granule = {now, {}};
    } else {
      if (page.kind == Kind::shared && granule.writer == 0)
        fail(name(*self) + " reads shared memory that was never written" + place(caller));
      if (granule.readers[0] != now) add_reader(granule, now);
    }
  }
}

std::size_t whole_pages(std::size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes; }

void mark(char* data, std::size_t bytes, Kind kind) {
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(data) / kPageBytes;
  for (std::size_t i = 0; i < whole_pages(bytes); ++i) {
    Page& page = find(first + i);
    page = {};
    page.kind = kind;
    page.used = bytes - i * kPageBytes < kPageBytes ? bytes - i * kPageBytes : kPageBytes;
  }
}

}  // namespace

void begin(const Launch& launch, const char* stacks, std::size_t bytes) {
  running = &launch;
  stacks_begin = stacks;
  stacks_end = stacks + bytes;
  stamps.assign(1, {});
}

void end() {
  pages.clear();
  places.clear();
  seen.clear();
  taken.clear();
  for (Cached& cached : cache) cached = {};
}

void fence() {
  Thread& thread = *self;
  thread.stamp = 0;
  ++thread.fences;
  thread.fence_epoch = thread.epochs[kBlockScope];
  const auto found = seen.find(number(thread));
  if (found == seen.end()) return;
  for (Taken& t : found->second) {
    t.block_epoch = thread.epochs[kBlockScope];
    taken[thread.block->rank].push_back(t);
  }
  seen.erase(found);
}

void exchange_with(const void* address) {
  const Thread& thread = *self;
  const unsigned id = number(thread);
  Place& there = places[address];
  if (!there.empty()) seen[id].push_back({id, 0, &there, there.size()});
  const Published now{id, thread.block->rank, thread.fences, thread.fence_epoch};
  if (thread.fences == 0) return;
  if (there.empty() || there.back().thread != id || there.back().fences != now.fences) there.push_back(now);
}

char* allocate_shared(std::size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, kPageBytes, whole_pages(bytes) * kPageBytes)) throw std::bad_alloc();
  mark(static_cast<char*>(data), bytes, Kind::shared);
  return static_cast<char*>(data);
}

void retire_shared(char* data, std::size_t bytes) { mark(data, bytes, Kind::gone); }

void release_shared(char* data, std::size_t bytes) {
  mark(data, whole_pages(bytes) * kPageBytes, Kind::global);
  std::free(data);
}

}  // namespace simt::checks

#define ACCESS(name, bytes, write) \
  void __tsan_##name(void* address) { simt::checks::access(address, bytes, write, __builtin_return_address(0)); }
#define ACCESSES(bytes)                        \
  ACCESS(read##bytes, bytes, false)            \
  ACCESS(write##bytes, bytes, true)            \
  ACCESS(unaligned_read##bytes, bytes, false)  \
  ACCESS(unaligned_write##bytes, bytes, true)  \
  ACCESS(volatile_read##bytes, bytes, false)   \
  ACCESS(volatile_write##bytes, bytes, true)

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* address, std::size_t bytes) {
  simt::checks::access(address, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  simt::checks::access(address, bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}

#endif
