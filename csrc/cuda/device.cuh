// The host's side of a launch: errors, the current device, and what is worth knowing of a device, asked once.
#pragma once

#include <cstdint>

namespace imc::cuda {

constexpr int kMaxDevices = 64;

struct DeviceLimits {
  int multiprocessors;
  int64_t shared_per_block;  // bytes
};

// Dynamic shared memory for one block, beside up to 1 KiB that the kernel declares itself.
inline int64_t largest_shared(const DeviceLimits& device) { return device.shared_per_block - 1024; }

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace imc::cuda

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <mutex>
#include <stdexcept>
#include <string>

namespace imc::cuda {

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

inline const DeviceLimits& device_limits(int device) {
  static DeviceLimits limits[kMaxDevices];
  static std::once_flag known[kMaxDevices];
  if (device < 0 || device >= kMaxDevices) throw std::invalid_argument("CUDA: no device " + std::to_string(device));
  std::call_once(known[device], [device] {
    auto ask = [device](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, device), "asking for a device's limits");
      return value;
    };
    limits[device].multiprocessors = ask(cudaDevAttrMultiProcessorCount);
    limits[device].shared_per_block = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  });
  return limits[device];
}

// Lets a kernel use the largest shared memory, and checks that a block a multiprocessor can then be resident, which
// cooperative launches count on.
template <auto kKernel>
void prepare_kernel(int threads, int64_t shared_bytes, int device) {
  static std::once_flag prepared[kMaxDevices];
  std::call_once(prepared[device], [&] {
    check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "raising a kernel's shared memory");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, shared_bytes),
          "asking for occupancy");
    if (blocks < 1) throw std::runtime_error("CUDA: a kernel's block does not fit on this device");
  });
}

}  // namespace imc::cuda
#endif
