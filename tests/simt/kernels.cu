// Kernels that use everything the executor offers, and kernels that are wrong in one way each. Run by test_executor.py:
// prints "ok", "wrong result", or what the executor found.
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/primitives.cuh"

using namespace imc::cuda;

namespace {

constexpr int kThreads = 128, kBlocks = 4, kCount = kThreads * kBlocks;

__device__ int rank() { return int(blockIdx.x) * kThreads + int(threadIdx.x); }

__global__ void shuffles_and_votes(float* out) {
  const int lane = threadIdx.x % kWarp;
  float x = float(lane);
  x = __shfl_down_sync(kAllLanes, x, 1) + __shfl_up_sync(kAllLanes, x, 1) + __shfl_sync(kAllLanes, x, 5);
  const float sum = warp_reduce(x, [](float a, float b) { return a + b; });
  const unsigned odd = __ballot_sync(kAllLanes, lane % 2);
  const bool votes = odd == 0xaaaaaaaau && __any_sync(kAllLanes, lane == 7) && !__all_sync(kAllLanes, lane == 7);
  out[rank()] = votes ? sum : -1;  // 496 + 31, 496 - 31 and 32 times 5
}

__global__ void static_shared(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  out[rank()] = row[kThreads - 1 - threadIdx.x];
}

__global__ void dynamic_memory(float* out) {
  float* row = dynamic_shared();
  row[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  out[rank()] = row[kThreads - 1 - threadIdx.x];
}

__global__ void warps_pass_on(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = float(threadIdx.x);
  __syncwarp();
  out[rank()] = row[threadIdx.x ^ 1];
}

__global__ void grid_passes_on(float* out) {
  out[rank()] = float(rank());
  grid_sync();
  const float other = out[kCount - 1 - rank()];
  grid_sync();
  out[rank()] = other;
}

__global__ void cluster_passes_on(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = float(rank());
  cluster_sync();
  const int other = blockIdx.x ^ 1;
  const float value = cluster_peer(row, other % 2)[threadIdx.x];
  cluster_sync();
  out[rank()] = value;
}

__global__ void half_precision(float* out) {
  __nv_bfloat16 b;
  __half h;
  from_float(1.00390625f, b);  // halfway between two: to even
  from_float(65519.f, h);
  out[rank()] = to_float(b) == 1.f && to_float(h) == 65504.f ? 1.f : 0.f;
}

unsigned finished;  // blocks

enum class Fault { none, release, acquire, barrier, order };

template <Fault kFault>
__device__ void last_block_adds(float* out) {
  IMC_SHARED(bool, last, 1);
  if (kFault != Fault::order) out[rank()] = 1;
  if (kFault != Fault::barrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (kFault != Fault::release) __threadfence();
    if (kFault == Fault::order) out[rank()] = 1;
    last[0] = atomicInc(&finished, kBlocks - 1) == kBlocks - 1;
    if (kFault != Fault::acquire) __threadfence();
  }
  __syncthreads();
  if (!last[0]) return;
  float sum = 0;
  for (int block = 0; block < kBlocks; ++block) sum += out[block * kThreads + threadIdx.x];
  for (int block = 0; block < kBlocks; ++block) out[block * kThreads + threadIdx.x] = sum;
}

__global__ void the_last_block_adds(float* out) { last_block_adds<Fault::none>(out); }

// As imprecise as the table of csrc/simt/include/coarse_math.h says, and exact where they must be.
__global__ void coarse_functions(float* out) {
  namespace device = imc::cuda;
  const float x = 0.01f * float(rank() + 1);
  const float coarse = device::exp2f(-x), fine = std::exp2(-x), log_coarse = device::logf(x), log_fine = std::log(x);
  const bool near = fabsf(coarse / fine - 1) < 4e-7f && fabsf(log_coarse - log_fine) <= 2e-7f * fabsf(log_fine);
  const bool exact = device::exp2f(0) == 1 && device::expf(0) == 1 && device::logf(1) == 0;
  const bool limits = device::exp2f(-200) == 0 && device::expf(200) == INFINITY && device::expf(-INFINITY) == 0;
  out[rank()] = near && exact && limits && coarse != fine ? 1.f : 0.f;
}

// What is wrong with each says its name.

__global__ void no_fence_before_the_count(float* out) { last_block_adds<Fault::release>(out); }
__global__ void no_fence_after_the_count(float* out) { last_block_adds<Fault::acquire>(out); }
__global__ void no_barrier_before_the_fence(float* out) { last_block_adds<Fault::barrier>(out); }
__global__ void written_after_the_fence(float* out) { last_block_adds<Fault::order>(out); }

__global__ void barrier_in_a_branch(float* out) {
  if (threadIdx.x < 16) __syncthreads();
  out[rank()] = 0;
}

__global__ void shuffle_in_a_branch(float* out) {
  if (threadIdx.x < 16) out[rank()] = __shfl_xor_sync(kAllLanes, 1.f, 1);
}

__global__ void barriers_of_two_kinds(float* out) {
  if (threadIdx.x < 64) __syncthreads();
  grid_sync();
  out[rank()] = 0;
}

__global__ void one_block_leaves_early(float* out) {
  if (blockIdx.x == 3) return;
  grid_sync();
  out[rank()] = 0;
}

__global__ void never_written(float* out) {
  IMC_SHARED(float, row, kThreads);
  if (threadIdx.x != 17) row[threadIdx.x] = 1;
  __syncthreads();
  out[rank()] = row[threadIdx.x];
}

__global__ void read_without_a_barrier(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = 1;
  out[rank()] = row[threadIdx.x & ~1u];
}

__global__ void read_with_a_barrier_too_narrow(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = 1;
  __syncwarp();
  out[rank()] = row[threadIdx.x % kWarp];
}

__global__ void written_twice(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x / 2] = 1;
  __syncthreads();
  out[rank()] = row[0];
}

__global__ void overwritten_while_read(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  const float next = row[(threadIdx.x + 1) % kThreads];
  row[threadIdx.x] = next;
  out[rank()] = next;
}

__global__ void blocks_race_in_global_memory(float* out) {
  out[rank()] = 1;
  out[(rank() + kThreads) % kCount] += 1;
}

__global__ void no_barrier_before_a_peer_is_read(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = 1;
  __syncthreads();
  out[rank()] = cluster_peer(row, 0)[threadIdx.x];
  cluster_sync();
}

__global__ void no_barrier_before_the_peer_ends(float* out) {
  IMC_SHARED(float, row, kThreads);
  row[threadIdx.x] = 1;
  cluster_sync();
  out[rank()] = cluster_peer(row, 0)[threadIdx.x];
}

__global__ void past_the_end_of_shared(float* out) {
  dynamic_shared()[threadIdx.x + 1] = 1;
  out[rank()] = 0;
}

__global__ void part_of_a_warp(float* out) {
  out[rank()] = __shfl_xor_sync(0xffffu, 1.f, 1);
}

using Expected = float (*)(int);

struct Case {
  const char* name;
  void (*run)(const Shape&, float*);
  Shape shape;
  Expected expected;
};

template <auto kKernel>
void run(const Shape& shape, float* out) {
  launch<kKernel>("launching a test", shape, {0, nullptr}, out);
}

#define CASE(kernel, shape, ...) {#kernel, run<kernel>, shape, [](int i) -> float { return __VA_ARGS__; }}
const Shape kAlone{kBlocks, kThreads}, kDynamic{kBlocks, kThreads, 4 * kThreads};
const Shape kGrid{kBlocks, kThreads, 0, Together::grid}, kClusters{kBlocks, kThreads, 0, Together::clusters, 2};
const Shape kTooManyBlocks{1000, kThreads, 0, Together::grid}, kTooMuchShared{1, kThreads, 1 << 20};
const Shape kHugeClusters{64, kThreads, 0, Together::clusters, 32};

const Case kCases[] = {
    CASE(shuffles_and_votes, kAlone, i * 0 + 1152.f),
    CASE(static_shared, kAlone, kThreads - 1 - i % kThreads),
    CASE(dynamic_memory, kDynamic, kThreads - 1 - i % kThreads),
    CASE(warps_pass_on, kAlone, (i % kThreads) ^ 1),
    CASE(grid_passes_on, kGrid, kCount - 1 - i),
    CASE(cluster_passes_on, kClusters, i ^ kThreads),
    CASE(half_precision, kAlone, i * 0 + 1.f),
    CASE(the_last_block_adds, kAlone, i * 0 + float(kBlocks)),
    CASE(coarse_functions, kAlone, i * 0 + 1.f),
    CASE(no_fence_before_the_count, kAlone, i),
    CASE(no_fence_after_the_count, kAlone, i),
    CASE(no_barrier_before_the_fence, kAlone, i),
    CASE(written_after_the_fence, kAlone, i),
    CASE(barrier_in_a_branch, kAlone, i),
    CASE(shuffle_in_a_branch, kAlone, i),
    CASE(barriers_of_two_kinds, kGrid, i),
    CASE(one_block_leaves_early, kGrid, i),
    CASE(never_written, kAlone, i),
    CASE(read_without_a_barrier, kAlone, i),
    CASE(read_with_a_barrier_too_narrow, kAlone, i),
    CASE(written_twice, kAlone, i),
    CASE(overwritten_while_read, kAlone, i),
    CASE(blocks_race_in_global_memory, kAlone, i),
    CASE(no_barrier_before_a_peer_is_read, kClusters, i),
    CASE(no_barrier_before_the_peer_ends, kClusters, i),
    CASE(past_the_end_of_shared, kDynamic, i),
    CASE(part_of_a_warp, kAlone, i),
    {"grid_sync_of_independent_blocks", run<grid_passes_on>, kAlone, [](int) { return 0.f; }},
    {"a_grid_that_does_not_fit", run<grid_passes_on>, kTooManyBlocks, [](int) { return 0.f; }},
    {"too_much_shared_memory", run<dynamic_memory>, kTooMuchShared, [](int) { return 0.f; }},
    {"clusters_too_large", run<cluster_passes_on>, kHugeClusters, [](int) { return 0.f; }},
};

const char* outcome(const Case& test) {
  static char message[512];
  std::vector<float> out(kCount);
  try {
    test.run(test.shape, out.data());
  } catch (const std::exception& error) {
    std::snprintf(message, sizeof message, "%s", error.what());
    return message;
  }
  for (int i = 0; i < kCount; ++i)
    if (out[i] != test.expected(i)) return "wrong result";
  return "ok";
}

}  // namespace

int main(int count, char** arguments) {
  for (const Case& test : kCases)
    if (count < 2 || !std::strcmp(arguments[1], test.name)) std::printf("%s: %s\n", test.name, outcome(test));
}
