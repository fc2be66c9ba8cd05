#include "fibers.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "the executor switches fibers in x86-64 assembly"
#endif

// Saves what a call must preserve and the stack pointer, and goes on where `to` was saved.
extern "C" void imc_simt_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl imc_simt_switch
.hidden imc_simt_switch
.type imc_simt_switch, @function
imc_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size imc_simt_switch, .-imc_simt_switch
)");

namespace simt {
namespace fibers {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStackBytes = 256 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif
constexpr std::uint64_t kCanary = 0x5a17c0de5a17c0deull;  // at the end of each stack

struct Stacks {
  char* base = nullptr;
  std::size_t bytes = 0;

  void reserve(std::size_t wanted) {
    if (wanted <= bytes) return;
    if (base) munmap(base, bytes);
    void* mapped = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
      base = nullptr;
      bytes = 0;
      throw std::runtime_error("simt: no memory for the stacks of a launch's threads");
    }
    base = static_cast<char*>(mapped);
    bytes = wanted;
  }
};

Stacks stacks;  // of one launch at a time

struct Running {
  const std::function<void()>* body = nullptr;
  void* stack_pointer = nullptr;  // the scheduler's
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
  std::string failure;
};
thread_local Running running;

void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack, [[maybe_unused]] std::size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
}

void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** stack, [[maybe_unused]] std::size_t* bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(saved, stack, bytes);
#endif
}

void enter() {
  after_switch(nullptr, &running.stack, &running.stack_bytes);
  (*running.body)();
  suspend(Wait::done);
  std::abort();
}

}  // namespace

Range begin(const std::function<void()>& body, std::size_t together) {
  stacks.reserve(together * kStackBytes);
  running = {};
  running.body = &body;
  return {stacks.base, stacks.bytes};
}

void prepare(Thread& thread, std::size_t number) {
  char* stack = stacks.base + number * kStackBytes;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, kStackBytes);  // of an earlier thread that failed
#endif
  std::memcpy(stack, &kCanary, sizeof kCanary);
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;  // enter() does not return; and a called function finds the stack 8 bytes off 16
  *--top = reinterpret_cast<void*>(&enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
  thread.stack = stack;
}

void resume(Thread& thread) {
  self = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  before_switch(&running.fake_stack, thread.stack, kStackBytes);
  imc_simt_switch(&running.stack_pointer, thread.stack_pointer);
  after_switch(running.fake_stack, nullptr, nullptr);
  self = nullptr;
  std::uint64_t canary;
  std::memcpy(&canary, thread.stack, sizeof canary);
  if (canary != kCanary) running.failure = name(thread) + " overflowed its stack";
  if (!running.failure.empty()) throw std::runtime_error("simt: " + running.failure);
}

void suspend(Wait wait) {
  Thread* thread = self;
  thread->wait = wait;
  const bool last = wait == Wait::done || wait == Wait::failed;
  before_switch(last ? nullptr : &thread->fake_stack, running.stack, running.stack_bytes);
  imc_simt_switch(&thread->stack_pointer, running.stack_pointer);
  after_switch(thread->fake_stack, nullptr, nullptr);
}

}  // namespace fibers

void fail(const std::string& sentence) {
  fibers::running.failure = sentence;
  fibers::suspend(Wait::failed);
  std::abort();
}

}  // namespace simt
