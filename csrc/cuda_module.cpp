// Python module imc_kernels._cuda: bindings only. Tensors arrive as addresses; imc_kernels/native.py checks them.

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cuda/kernels.h"
#include "imc/bindings.h"
#include "imc/element.h"

#ifdef IMC_SIMT
#include "simt/executor.h"
#endif

#ifndef IMC_CUDA_ARCHITECTURES
#define IMC_CUDA_ARCHITECTURES "unknown"
#endif

namespace {

namespace py = pybind11;
using imc::Wire;

// Defines a function that takes the element code, then the kernel's arguments, and runs without the GIL.
template <typename... Single, typename... Brain, typename... Half>
void define(py::module_& module, const char* name, void (*single)(Single...), void (*brain)(Brain...),
            void (*half)(Half...)) {
  module.def(
      name,
      [single, brain, half](int element, typename Wire<Single>::type... arguments) {
        switch (static_cast<imc::Element>(element)) {
          case imc::Element::float32:
            return single(Wire<Single>::read(arguments)...);
          case imc::Element::bfloat16:
            return brain(Wire<Brain>::read(arguments)...);
          case imc::Element::float16:
            return half(Wire<Half>::read(arguments)...);
          default:
            throw std::invalid_argument("the CUDA kernels take float32, bfloat16 and float16");
        }
      },
      py::call_guard<py::gil_scoped_release>());
}

// The same for a kernel of what others left in float32.
template <typename... Single>
void define(py::module_& module, const char* name, void (*single)(Single...)) {
  module.def(
      name, [single](int, typename Wire<Single>::type... arguments) { single(Wire<Single>::read(arguments)...); },
      py::call_guard<py::gil_scoped_release>());
}

#define IMC_DEFINE(kernel)                                                             \
  define(module, #kernel, &imc::cuda::kernel<float>, &imc::cuda::kernel<__nv_bfloat16>, \
         &imc::cuda::kernel<__half>)

#ifdef IMC_SIMT
// Changes the emulated device; returns how many kernels were launched so far.
int64_t emulate(int multiprocessors, int64_t shared_per_block, int largest_cluster, bool run) {
  simt::Limits& limits = simt::limits();
  limits.multiprocessors = multiprocessors;
  limits.shared_per_block = shared_per_block;
  limits.largest_cluster = largest_cluster;
  limits.run = run;
  return limits.launches;
}
#endif

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of imc_kernels. Private: they take raw addresses; imc_kernels.native calls them.";
  module.def("architectures", [] { return IMC_CUDA_ARCHITECTURES; });
#ifdef IMC_SIMT
  using py::arg;
  const simt::Limits limits;
  module.def("emulated", [] { return true; });
  module.def("emulate", &emulate, arg("multiprocessors") = limits.multiprocessors,
             arg("shared_per_block") = limits.shared_per_block, arg("largest_cluster") = limits.largest_cluster,
             arg("run") = true);
#else
  module.def("emulated", [] { return false; });
#endif
  module.def("sinkhorn_workspace_bytes", &imc::cuda::sinkhorn_workspace_bytes);
  module.def("sinkhorn_backward_workspace_bytes", &imc::cuda::sinkhorn_backward_workspace_bytes);
  module.def("swapped_prediction_loss_workspace_bytes", &imc::cuda::swapped_prediction_loss_workspace_bytes);
  module.def("log_dot_product_loss_workspace_bytes", &imc::cuda::log_dot_product_loss_workspace_bytes);
  module.def("mutual_information_loss_workspace_bytes", &imc::cuda::mutual_information_loss_workspace_bytes);
  module.def("multi_crop_workspace_bytes", &imc::cuda::multi_crop_workspace_bytes);
  IMC_DEFINE(sinkhorn);
  IMC_DEFINE(sinkhorn_backward);
  IMC_DEFINE(swapped_prediction_loss);
  IMC_DEFINE(log_dot_product_loss);
  IMC_DEFINE(mutual_information_loss_softmaxes);
  define(module, "mutual_information_loss_entropies", &imc::cuda::mutual_information_loss_entropies);
  IMC_DEFINE(mutual_information_loss_gradients);
  IMC_DEFINE(multi_crop);
}
