// The module imc_kernels._cpu: the kernels of cpu/kernels.h for the best instruction set of this processor.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "imc/bindings.h"
#include "imc/element.h"

#define IMC_ISA baseline
#include "cpu/kernels.h"
#undef IMC_ISA
#ifdef IMC_X86
#define IMC_ISA v3
#include "cpu/kernels.h"
#undef IMC_ISA
#define IMC_ISA v4
#include "cpu/kernels.h"
#undef IMC_ISA
#endif

namespace {

namespace py = pybind11;

enum class InstructionSet { baseline, v3, v4 };

InstructionSet instruction_set() {
#ifdef IMC_X86
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return v4 ? InstructionSet::v4 : v3 ? InstructionSet::v3 : InstructionSet::baseline;
#else
  return InstructionSet::baseline;
#endif
}

const char* instruction_set_name() {
  switch (instruction_set()) {
    case InstructionSet::v4:
      return "AVX-512";
    case InstructionSet::v3:
      return "AVX2";
    default:
      return "baseline";
  }
}

using imc::Wire;

// Defines a function that takes the element code, then the kernel's arguments, and runs without the GIL.
template <typename... Single, typename... Double>
void define(py::module_& m, const char* name, void (*single)(Single...), void (*wide)(Double...)) {
  m.def(
      name,
      [single, wide](int element, typename Wire<Single>::type... arguments) {
        switch (static_cast<imc::Element>(element)) {
          case imc::Element::float32:
            return single(Wire<Single>::read(arguments)...);
          case imc::Element::float64:
            return wide(Wire<Double>::read(arguments)...);
          default:
            throw std::invalid_argument("the CPU kernels take float32 and float64");
        }
      },
      py::call_guard<py::gil_scoped_release>());
}

// The same for a kernel that also takes half precision.
template <typename... Single, typename... Double, typename... Brain, typename... Half>
void define(py::module_& m, const char* name, void (*single)(Single...), void (*wide)(Double...),
            void (*brain)(Brain...), void (*half)(Half...)) {
  m.def(
      name,
      [single, wide, brain, half](int element, typename Wire<Single>::type... arguments) {
        switch (static_cast<imc::Element>(element)) {
          case imc::Element::float32:
            return single(Wire<Single>::read(arguments)...);
          case imc::Element::float64:
            return wide(Wire<Double>::read(arguments)...);
          case imc::Element::bfloat16:
            return brain(Wire<Brain>::read(arguments)...);
          case imc::Element::float16:
            return half(Wire<Half>::read(arguments)...);
        }
        throw std::invalid_argument("an unknown element type");
      },
      py::call_guard<py::gil_scoped_release>());
}

#ifdef IMC_X86
#define IMC_PICK(kernel, T)                                            \
  (instruction_set() == InstructionSet::v4   ? &imc::v4::kernel<T>     \
   : instruction_set() == InstructionSet::v3 ? &imc::v3::kernel<T>     \
                                             : &imc::baseline::kernel<T>)
#else
#define IMC_PICK(kernel, T) (&imc::baseline::kernel<T>)
#endif
#define IMC_DEFINE(kernel) define(m, #kernel, IMC_PICK(kernel, float), IMC_PICK(kernel, double))
#define IMC_DEFINE_WITH_HALF(kernel)                                    \
  define(m, #kernel, IMC_PICK(kernel, float), IMC_PICK(kernel, double), \
         IMC_PICK(kernel, imc::bfloat16), IMC_PICK(kernel, imc::float16))

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "C++ kernels of imc_kernels. Private: they take raw addresses; imc_kernels.native checks and calls them.";
  m.def("instruction_set", &instruction_set_name);
  IMC_DEFINE(sinkhorn);
  IMC_DEFINE(sinkhorn_backward);
  IMC_DEFINE(sinkhorn_sweep);
  IMC_DEFINE(sinkhorn_backward_sweep);
  IMC_DEFINE(prototype_scores);
  IMC_DEFINE(prototype_scores_backward);
  IMC_DEFINE(swapped_prediction_loss);
  IMC_DEFINE(mutual_information_loss);
  IMC_DEFINE(mutual_information_loss_sums);
  IMC_DEFINE(mutual_information_loss_finish);
  IMC_DEFINE(log_dot_product_loss);
  IMC_DEFINE(log_dot_product_loss_sums);
  IMC_DEFINE(log_dot_product_loss_parts);
  IMC_DEFINE(info_nce_loss);
  IMC_DEFINE(info_nce_loss_rows);
  IMC_DEFINE(info_nce_loss_gradient);
  IMC_DEFINE_WITH_HALF(multi_crop);
}
