#include "python/tensors.h"

#include <cstdint>
#include <cstring>

namespace imc {

// Asked once; torch stays loaded.
const Torch& torch() {
  static const Torch* known = nullptr;
  if (known) return *known;
  PyObject* module = PyImport_ImportModule("torch");
  PyObject* type = module ? PyObject_GetAttrString(module, "Tensor") : nullptr;
  Py_XDECREF(module);
  if (!type || !PyType_Check(type)) throw PythonError();
  PyObject* capsule = PyObject_GetAttrString(type, "__dlpack_c_exchange_api__");
  void* api = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
  Py_XDECREF(capsule);
  PyErr_Clear();
  const auto* exchange = static_cast<const dlpack::ExchangeApi*>(api);
  while (exchange && exchange->version.major > dlpack::kMajorVersion) exchange = exchange->previous;
  if (!exchange || exchange->version.major != dlpack::kMajorVersion || !exchange->tensor_from_object) {
    throw Refusal{PyExc_RuntimeError,
                  "imc_kernels: this PyTorch has no DLPack exchange interface of version 1; install torch 2.11 or later"};
  }
  known = new Torch{reinterpret_cast<PyTypeObject*>(type), exchange};
  return *known;
}

std::string name_of(dlpack::DataType type) {
  const char* names[] = {"int", "uint", "float", nullptr, "bfloat", "complex", "bool"};
  if (type.code > dlpack::kBool || !names[type.code]) return "another element type";
  return type.code == dlpack::kBool ? "bool" : names[type.code] + std::to_string(type.bits);
}

std::string name_of(dlpack::Device device) {
  if (device.type == dlpack::kCpu || device.type == dlpack::kPinned) return "cpu";
  return device.type == dlpack::kCuda ? "cuda:" + std::to_string(device.id) : "another device";
}

std::string shape_of(const dlpack::Tensor& tensor) {
  return list(tensor.rank, [&](int i) { return std::to_string(tensor.shape[i]); });
}

bool is_contiguous(const dlpack::Tensor& tensor) {
  if (!tensor.strides) return true;
  std::int64_t stride = 1;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    stride *= tensor.shape[i];
  }
  return true;
}

std::string take_error() {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyObject* text = value ? PyObject_Str(value) : nullptr;
  const char* utf8 = text ? PyUnicode_AsUTF8(text) : nullptr;
  const std::string message = utf8 ? std::string(utf8, std::strcspn(utf8, "\n")) : "it cannot be read";
  for (PyObject* object : {type, value, trace, text}) Py_XDECREF(object);
  PyErr_Clear();
  return message;
}

}  // namespace imc
