// Functions of a compiled module: define() makes a Python function of a kernel and its signature. What Python passes is
// checked against the signature, whatever it is; then the kernel runs without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "imc/element.h"
#include "python/dlpack.h"
#include "python/signature.h"

namespace imc {

enum class ArgumentType { pointer, integer, real, boolean };

union Slot {
  void* pointer;
  std::int64_t integer;
  double real;
};

template <typename T>
constexpr dlpack::DataType kElement{};
template <>
inline constexpr dlpack::DataType kElement<float>{dlpack::kFloat, 32, 1};
template <>
inline constexpr dlpack::DataType kElement<double>{dlpack::kFloat, 64, 1};
template <>
inline constexpr dlpack::DataType kElement<bfloat16>{dlpack::kBfloat, 16, 1};
template <>
inline constexpr dlpack::DataType kElement<float16>{dlpack::kFloat, 16, 1};
template <>
inline constexpr dlpack::DataType kElement<std::uint8_t>{dlpack::kUnsigned, 8, 1};
template <>
inline constexpr dlpack::DataType kElement<std::int64_t>{dlpack::kInt, 64, 1};

// A kernel for one element type, without its type.
struct Kernel {
  std::vector<ArgumentType> types;
  std::vector<dlpack::DataType> elements;  // where the type is a pointer
  void (*kernel)();
  void (*run)(void (*kernel)(), const Slot* slots);
};

namespace details {

template <typename A>
constexpr ArgumentType argument_type() {
  if (std::is_pointer_v<A>) return ArgumentType::pointer;
  if (std::is_floating_point_v<A>) return ArgumentType::real;
  return std::is_same_v<A, bool> ? ArgumentType::boolean : ArgumentType::integer;
}

template <typename A>
constexpr dlpack::DataType element() {
  return kElement<std::remove_cv_t<std::remove_pointer_t<A>>>;
}

template <typename A>
A read(const Slot& slot) {
  if constexpr (std::is_pointer_v<A>) {
    return static_cast<A>(slot.pointer);
  } else if constexpr (std::is_floating_point_v<A>) {
    return static_cast<A>(slot.real);
  } else {
    return static_cast<A>(slot.integer);
  }
}

template <typename... A, std::size_t... I>
void run(void (*kernel)(A...), const Slot* slots, std::index_sequence<I...>) {
  kernel(read<A>(slots[I])...);
}

}  // namespace details

template <typename... A>
Kernel make_kernel(void (*kernel)(A...)) {
  return {{details::argument_type<A>()...},
          {details::element<A>()...},
          reinterpret_cast<void (*)()>(kernel),
          [](void (*erased)(), const Slot* slots) {
            details::run(reinterpret_cast<void (*)(A...)>(erased), slots, std::index_sequence_for<A...>());
          }};
}

// What a check is given: the sizes and the arguments, in the signature's order.
struct Call {
  const Sizes& sizes;
  const Slot* slots;
};

struct Options {
  std::function<std::int64_t(const std::int64_t* sizes, int device)> workspace_bytes = {};  // of the signature's sizes
  std::function<void(const Call&)> check = {};  // throws std::invalid_argument
};

struct Place {
  std::int32_t device_type;  // of all tensors
  std::int64_t largest_size;
  const char* further;  // what every kernel takes at last: "threads", or "device, stream"
};

// The kernels are one for each element type of the first tensor. Throws std::logic_error where they do not fit the
// signature.
void define(pybind11::module_& module, const char* name, const char* signature, const Place& place,
            std::vector<Kernel> kernels, Options options = {});

}  // namespace imc
