// The host's side of a launch: errors, the current device, what is worth knowing of a device, asked once, and the launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

namespace imc::cuda {

constexpr int kMaxDevices = 64;
constexpr int kLargestCluster = 8;  // blocks, that every device with clusters has

struct DeviceLimits {
  int multiprocessors;
  int64_t shared_per_block;  // bytes
  bool clusters;
};

// Dynamic shared memory for one block, beside up to 1 KiB that the kernel declares itself.
inline int64_t largest_shared(const DeviceLimits& device) { return device.shared_per_block - 1024; }

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next caller would be told of this error too
  throw std::runtime_error(std::string("CUDA failed at ") + doing + ": " + cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "asking for the current device");
    if (previous_ == device) return;
    check(cudaSetDevice(device), "choosing the device");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Runs `question` once for each device; on the executor, whose device the tests change, every time.
template <typename Question>
void once_per_device([[maybe_unused]] std::once_flag (&known)[kMaxDevices], int device, const Question& question) {
  if (device < 0 || device >= kMaxDevices) throw std::invalid_argument("CUDA: no device " + std::to_string(device));
#ifdef __CUDACC__
  std::call_once(known[device], question);
#else
  question();
#endif
}

inline DeviceLimits device_limits(int device) {
  static DeviceLimits limits[kMaxDevices];
  static std::once_flag known[kMaxDevices];
  once_per_device(known, device, [device] {
    auto ask = [device](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device's limits");
      return value;
    };
    limits[device] = {ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                      ask(cudaDevAttrComputeCapabilityMajor) >= 9};
  });
  return limits[device];
}

// Lets a kernel use the largest shared memory, and checks that a block a multiprocessor can then be resident, which
// cooperative launches count on.
template <auto kKernel>
void prepare_kernel(int threads, int device) {
  static std::once_flag prepared[kMaxDevices];
  once_per_device(prepared, device, [&] {
    const int64_t shared_bytes = largest_shared(device_limits(device));
    check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "raising a kernel's shared memory");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, shared_bytes),
          "asking for occupancy");
    if (blocks < 1) throw std::runtime_error("CUDA: a kernel's block does not fit on this device");
  });
}

// Where a kernel runs, and on which device and stream.
struct Place {
  int device;
  cudaStream_t stream;
};

enum class Together { blocks, grid, clusters };  // what may wait for each other

struct Shape {
  int64_t blocks;
  int threads;
  int64_t shared_bytes = 0;
  Together together = Together::blocks;
  int cluster = 1;  // blocks
};

template <auto kKernel, typename... Arguments>
void launch(const char* doing, const Shape& shape, const Place& place, Arguments... arguments) {
  if (shape.blocks > INT32_MAX) throw std::invalid_argument(std::string(doing) + ": the input needs too many blocks");
  if (shape.shared_bytes > 0 || shape.together == Together::grid) prepare_kernel<kKernel>(shape.threads, place.device);
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = place.stream;
  config.attrs = &attribute;
  if (shape.together == Together::grid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
  } else if (shape.together == Together::clusters) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    config.numAttrs = 1;
  }
  check(cudaLaunchKernelEx(&config, kKernel, arguments...), doing);
}

}  // namespace imc::cuda
