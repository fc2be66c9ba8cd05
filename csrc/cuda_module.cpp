// The module imc_kernels._cuda: the kernels of cuda/kernels.h, or their emulation on the CPU.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "cuda/kernels.h"
#include "python/crop_sizes.h"
#include "python/function.h"

#ifdef IMC_SIMT
#include "simt/executor.h"
#endif

#ifndef IMC_CUDA_ARCHITECTURES
#define IMC_CUDA_ARCHITECTURES "unknown"
#endif

template <>
inline constexpr imc::dlpack::DataType imc::kElement<__nv_bfloat16> = imc::kElement<imc::bfloat16>;
template <>
inline constexpr imc::dlpack::DataType imc::kElement<__half> = imc::kElement<imc::float16>;

namespace {

namespace py = pybind11;

constexpr int64_t kLargestSize = int64_t(1) << 30;  // kernels hold most sizes in 32 bits
#ifdef IMC_SIMT
constexpr imc::Place kPlace{imc::dlpack::kCpu, kLargestSize, "device, stream"};
#else
constexpr imc::Place kPlace{imc::dlpack::kCuda, kLargestSize, "device, stream"};
#endif

#define IMC_KERNEL(kernel, T) imc::make_kernel(&imc::cuda::kernel<T>)
#define IMC_DEFINE(kernel, signature, ...)                                                                \
  imc::define(module, #kernel, signature, kPlace,                                                   \
              {IMC_KERNEL(kernel, float), IMC_KERNEL(kernel, __nv_bfloat16), IMC_KERNEL(kernel, __half)}, \
              imc::Options{__VA_ARGS__})

// A kernel of float32 alone.
#define IMC_DEFINE_SINGLE(kernel, signature, ...) \
  imc::define(module, #kernel, signature, kPlace, {imc::make_kernel(&imc::cuda::kernel)}, imc::Options{__VA_ARGS__})

// Asks for the sizes in a signature's workspace(...).
auto workspace(int64_t (*bytes)(int64_t, int64_t, int)) {
  return [bytes](const int64_t* n, int device) { return bytes(n[0], n[1], device); };
}
auto workspace(int64_t (*bytes)(int64_t, int64_t, int64_t, int)) {
  return [bytes](const int64_t* n, int device) { return bytes(n[0], n[1], n[2], device); };
}
auto workspace(int64_t (*bytes)(int64_t, int64_t, int64_t, int64_t, int)) {
  return [bytes](const int64_t* n, int device) { return bytes(n[0], n[1], n[2], n[3], device); };
}

void check_in(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string(name) + " must lie in [" + std::to_string(low) + ", " + std::to_string(high) +
                              "], got " + std::to_string(value));
}

// The workspace of mutual_information_loss lives from its first part to its second: it is a tensor.
int64_t mutual_information_workspace(int64_t views, int64_t batch, int64_t clusters, int64_t prototypes) {
  check_in("views", views, 1, 1 << 15);
  check_in("batch", batch, 1, kLargestSize);
  check_in("clusters", clusters, 1, kLargestSize);
  check_in("prototypes", prototypes, 1, kLargestSize);
  return imc::cuda::mutual_information_loss_workspace_bytes(views, batch, clusters, prototypes, 0) / 4;
}

void check_workspace(const imc::Call& call) {
  const imc::Sizes& n = call.sizes;
  const int64_t needed = mutual_information_workspace(n['v'], n['b'], n['c'], n['k']);
  if (n['n'] < needed) {
    throw std::invalid_argument("mutual_information_loss: workspace must have " + std::to_string(needed) +
                                " elements, got " + std::to_string(n['n']));
  }
}

void check_crops(const imc::Call& call) {
  const imc::Sizes& n = call.sizes;
  imc::check_crop_sizes(n['c'], n['h'], n['w'], n['s']);
  constexpr int kParameters = 3, kSamples = 4;  // in the signature
  if (!call.slots[kParameters].pointer && !call.slots[kSamples].pointer) {
    throw std::invalid_argument("multi_crop: parameters must be given, or samples and a law to draw them by");
  }
}

#ifdef IMC_SIMT
// Changes the emulated device; returns how many kernels were launched so far.
int64_t emulate(int multiprocessors, int64_t shared_per_block, int largest_cluster, bool run) {
  check_in("multiprocessors", multiprocessors, 1, 1024);
  check_in("shared_per_block", shared_per_block, 1024, 1 << 20);
  check_in("largest_cluster", largest_cluster, 1, 16);
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
  using namespace imc::cuda;
  module.doc() = "CUDA kernels of imc_kernels, private: a function's docstring is its signature (csrc/python/signature.h).";
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
  IMC_DEFINE(sinkhorn,
             "scores[p.. b k], marginals[k]?, assignments[p.. b k], rows[p i b]?, columns[p i k]?rows, "
             "workspace(p b k), p, b, k, epsilon, iterations i; 1 <= i",
             workspace(sinkhorn_workspace_bytes));
  IMC_DEFINE(sinkhorn_backward,
             "scores[p.. b k], marginals[k]?, rows[p i b], columns[p i k], grad_output[p.. b k], gradient[p.. b k], "
             "workspace(p b k), p, b, k, epsilon, i",
             workspace(sinkhorn_backward_workspace_bytes));
  IMC_DEFINE_SINGLE(sinkhorn_sweep,
                    "scores[p.. b k], extremes[3 p], assignments[p.. b k], columns[p k], rows[p b], log_sums[p k], p, "
                    "b, k, epsilon, iteration, last");
  IMC_DEFINE_SINGLE(sinkhorn_backward_sweep,
                    "scores[p.. b k], extremes[3 p], marginals[k]?, assignments[p.. b k], grad_output[p.. b k], "
                    "columns[p k], earlier_rows[p b]?, earlier_columns[p k]?earlier_rows, columns_gradient[p k]?, "
                    "gradient[p.. b k], sums[p k], workspace(p b), p, b, k, epsilon",
                    workspace(sinkhorn_backward_sweep_workspace_bytes));
  IMC_DEFINE(swapped_prediction_loss,
             "scores[v b k], assignments[a b k], loss[], gradient[v b k]?, workspace(v b k), v, a, b, k, temperature; "
             "a <= v; 2 <= v",
             workspace(swapped_prediction_loss_workspace_bytes));
  IMC_DEFINE(log_dot_product_loss,
             "logits[h 2 b c], loss[h], gradient[h 2 b c]?, workspace(h b c), h, b, c, smoothing, entropy_weight, "
             "logit_limit",
             workspace(log_dot_product_loss_workspace_bytes));
  IMC_DEFINE_SINGLE(log_dot_product_loss_sums, "logits[h 2 b c], sums[h c 4], workspace(h b c), h, b, c, smoothing",
                    workspace(log_dot_product_loss_phase_workspace_bytes));
  IMC_DEFINE_SINGLE(log_dot_product_loss_parts,
                    "logits[h 2 b c], sums[h c 4], samples[], whole_quotients[h c 2]?, losses[h], quotients[h c 2], "
                    "gradient[h 2 b c]?whole_quotients, workspace(h b c), h, b, c, smoothing, entropy_weight, "
                    "logit_limit",
                    workspace(log_dot_product_loss_phase_workspace_bytes));
  module.def("mutual_information_loss_workspace", &mutual_information_workspace, "The length of its workspace.");
  IMC_DEFINE(mutual_information_loss_softmaxes,
             "logits[v b c], scores[v b k], y[b vc], u[b w], guard_and_samples[2]?, workspace[n], v, b, c, k, w, "
             "temperature, logit_limit, symmetric s; vk < w; c = k if s",
             {}, check_workspace);
  IMC_DEFINE_SINGLE(mutual_information_loss_entropies,
                    "joint[vc w], guard_and_samples[2]?, loss[], workspace[n], views v, batch b, clusters c, prototypes k, w, "
                    "entropy_weight, symmetric s; vk < w; c = k if s",
                    {}, check_workspace);
  IMC_DEFINE(mutual_information_loss_gradients,
             "logits[v b c], y[b vc], u[b w], dy[b vc]?, du[b w]?, guard_and_samples[2]?, "
             "logits_gradient[v b c]?dy, scores_gradient[v b k]?du, v, b, c, prototypes k, w, temperature, logit_limit; vk < w; 1 <= k");
  IMC_DEFINE(multi_crop,
             "crops[v b ssc..], images[m h w c], indices[b], parameters[v b 13]?, samples[b]?, step[]?, law[20]?samples, "
             "workspace(vb w c s), m, v, b, h, w, c, size s, channels_last, red_factor, green_factor, blue_factor, "
             "red_offset, green_offset, blue_offset, key_high, key_low, view_high, view_low",
             workspace(multi_crop_workspace_bytes), check_crops);
}
