// Python module imc_kernels._cuda: bindings only. Tensors arrive as addresses; imc_kernels/native.py checks them.

#include <pybind11/pybind11.h>

#include "cuda/sinkhorn.h"

#ifndef IMC_CUDA_ARCHITECTURES
#define IMC_CUDA_ARCHITECTURES "unknown"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_cuda, module) {
  using py::arg;
  module.doc() = "CUDA kernels of imc_kernels";
  module.def("architectures", [] { return IMC_CUDA_ARCHITECTURES; });
  module.def("emulated", [] { return false; });
  module.def("sinkhorn_workspace_bytes", &imc::cuda::sinkhorn_workspace_bytes, arg("problems"), arg("batch"),
             arg("prototypes"), arg("device"));
  module.def("sinkhorn", &imc::cuda::sinkhorn, arg("element"), arg("scores"), arg("assignments"), arg("workspace"),
             arg("problems"), arg("batch"), arg("prototypes"), arg("epsilon"), arg("iterations"), arg("device"),
             arg("stream"), py::call_guard<py::gil_scoped_release>());
}
