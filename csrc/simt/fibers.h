// One fiber per CUDA thread, all on the calling OS thread.
#pragma once

#include <cstddef>
#include <functional>

#include "state.h"

namespace simt::fibers {

struct Range {
  const char* data;
  std::size_t bytes;
};

// Before a launch of threads that run `body`, so many of them together. Returns where their stacks lie.
Range begin(const std::function<void()>& body, std::size_t together);
// The thread's stack is the one with this number.
void prepare(Thread& thread, std::size_t number);
// Runs a thread up to its next suspend. Throws what it failed with.
void resume(Thread& thread);
// Of the running thread, which now waits.
void suspend(Wait wait);

}  // namespace simt::fibers
