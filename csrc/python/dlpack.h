// The part of DLPack's C exchange API that reads PyTorch's tensors: structures laid out by the DLPack standard, major
// version 1 (https://dmlc.github.io/dlpack/latest/c_api.html). PyTorch offers it as Tensor.__dlpack_c_exchange_api__, so
// that the modules need none of its headers and one build serves every version.
#pragma once

#include <cstdint>

namespace imc::dlpack {

constexpr std::uint32_t kMajorVersion = 1;

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kPinned = 3 };
enum TypeCode : std::uint8_t { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Version {
  std::uint32_t major, minor;
};

struct Device {
  std::int32_t type, id;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  DataType element;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null where contiguous
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* manager;
  void (*release)(ManagedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};

struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*allocate)(Tensor* prototype, ManagedTensor** made, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** made);
  int (*object_from_managed)(ManagedTensor* tensor, void** object);
  int (*tensor_from_object)(void* object, Tensor* tensor);  // which stays the object's
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** stream);
};

}  // namespace imc::dlpack
