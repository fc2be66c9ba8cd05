// What is asked of torch and of its tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "python/dlpack.h"

namespace imc {

// Of a call: the Python error that it becomes.
struct Refusal {
  PyObject* type;
  std::string sentence;
};

// A Python error is set.
struct PythonError {};

struct Torch {
  PyTypeObject* tensor_type;
  const dlpack::ExchangeApi* api;
};

const Torch& torch();

inline bool same(dlpack::DataType a, dlpack::DataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

std::string name_of(dlpack::DataType type);
std::string name_of(dlpack::Device device);

template <typename Count, typename Text>
std::string list(Count count, const Text& text) {
  std::string joined = "[";
  for (Count i = 0; i < count; ++i) joined += (i ? ", " : "") + text(i);
  return joined + "]";
}

std::string shape_of(const dlpack::Tensor& tensor);
bool is_contiguous(const dlpack::Tensor& tensor);

// The message of the Python error that is set, up to its first line.
std::string take_error();

}  // namespace imc
