// How a kernel's arguments travel from Python.
#pragma once

#include <cstdint>

namespace imc {

// A pointer travels as an address.
template <typename A>
struct Wire {
  using type = A;
  static A read(A value) { return value; }
};
template <typename T>
struct Wire<T*> {
  using type = std::uintptr_t;
  static T* read(std::uintptr_t address) { return reinterpret_cast<T*>(address); }
};

}  // namespace imc
