// Threads and scratch memory. What runs in parallel never depends on how many threads there are, so neither do results.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

// ThreadSanitizer does not know the barriers of GCC's OpenMP library: where it looks on (make sanitize-threads), the
// same items are handed to threads that it does know.
#ifdef __SANITIZE_THREAD__
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

#include "scratch.h"

namespace imc::IMC_ISA {

// Below this many elements a second thread costs more (2 to 5 us) than it saves.
constexpr int64_t kElementsPerThread = 16384;

inline int useful_threads(int64_t elements, int threads) {
  const int64_t useful = 1 + elements / kElementsPerThread;
  return static_cast<int>(useful < threads ? useful : threads);
}

// The first exception of several threads, kept until they have met again: one that leaves a thread ends the process.
class FirstFailure {
 public:
  template <typename Body>
  void guard(const Body& body) {
    try {
      body();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr failure_;
};

// body(item, worker) for each item in [0, count), worker in [0, threads).
template <typename Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  if (threads > count) threads = static_cast<int>(count);
#ifdef __SANITIZE_THREAD__
  FirstFailure failure;
  const auto work = [&](int worker) {  // items in turn: every thread has some, neighbours never meet in one
    failure.guard([&] {
      for (int64_t item = worker; item < count; item += threads) body(item, worker);
    });
  };
  std::vector<std::thread> workers;
  for (int worker = 1; worker < threads; ++worker) workers.emplace_back(work, worker);
  work(0);
  for (std::thread& worker : workers) worker.join();
  return failure.rethrow();
#elif defined(_OPENMP)
  if (threads > 1) {
    FirstFailure failure;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < count; ++item) failure.guard([&] { body(item, omp_get_thread_num()); });
    return failure.rethrow();
  }
#endif
  for (int64_t item = 0; item < count; ++item) body(item, 0);
}

// Uninitialised, aligned memory of `count` elements for the length of a call.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : block_(take_block(bytes_of(count))) {}
  ~Scratch() { return_block(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() { return static_cast<T*>(block_.data); }
  T& operator[](int64_t i) { return get()[i]; }

 private:
  static std::size_t bytes_of(int64_t count) {
    if (count > PTRDIFF_MAX / static_cast<int64_t>(sizeof(T))) throw std::bad_alloc();
    return static_cast<std::size_t>(count) * sizeof(T);
  }

  Block block_;
};

}  // namespace imc::IMC_ISA
