// The module imc_kernels._cpu: the kernels of cpu/kernels.h, for the best instruction set of this processor or one that
// the user named.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "imc/crop_parameters.h"
#include "python/crop_sizes.h"
#include "python/function.h"

#ifdef IMC_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
#ifdef IMC_AMX
#define IMC_ISA amx
#include "cpu/kernels.h"
#undef IMC_ISA
#endif

namespace {

enum class InstructionSet { baseline, v3, v4, amx };

constexpr const char* kNames[] = {"default", "avx2", "avx512", "amx"};  // the first three as ATEN_CPU_CAPABILITY has them

#ifdef IMC_AMX
// Whether the processor has its tiles and the system lets this process use them, which has to be asked for.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBfloat16) == 0 || (d & kTiles) == 0) {
    return false;
  }
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: Linux 5.16
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#else
bool has_amx() { return false; }
#endif

InstructionSet best() {
#ifdef IMC_X86
  __builtin_cpu_init();
  const bool v3 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (v4 && has_amx()) {
    return InstructionSet::amx;
  }
  return v4 ? InstructionSet::v4 : v3 ? InstructionSet::v3 : InstructionSet::baseline;
#else
  return InstructionSet::baseline;
#endif
}

// Those that this processor has, the best last.
std::vector<std::string> instruction_sets() {
  return {std::begin(kNames), std::begin(kNames) + static_cast<int>(best()) + 1};
}

// What IMC_CPU_CAPABILITY names, or the best. To be called while the module loads: its exception is an ImportError.
InstructionSet wanted() {
  const char* variable = std::getenv("IMC_CPU_CAPABILITY");
  if (variable == nullptr || *variable == '\0') {
    return best();
  }
  std::string name = variable, known;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  const std::vector<std::string> here = instruction_sets();
  for (std::size_t i = 0; i < here.size(); ++i) {
    if (here[i] == name) {
      return static_cast<InstructionSet>(i);
    }
    known += (i > 0 ? ", " : "") + here[i];
  }
  throw std::invalid_argument("the environment variable IMC_CPU_CAPABILITY names no instruction set of this processor: '" +
                              std::string(variable) + "'; it has " + known);
}

#ifdef IMC_X86
#define IMC_PICK(kernel, T)                               \
  (chosen >= InstructionSet::v4   ? &imc::v4::kernel<T>   \
   : chosen == InstructionSet::v3 ? &imc::v3::kernel<T>   \
                                  : &imc::baseline::kernel<T>)
#else
#define IMC_PICK(kernel, T) (&imc::baseline::kernel<T>)
#endif
#ifdef IMC_AMX
#define IMC_PICK_PRODUCT(kernel, T) (chosen == InstructionSet::amx ? &imc::amx::kernel<T> : IMC_PICK(kernel, T))
#else
#define IMC_PICK_PRODUCT IMC_PICK
#endif
// The element types of a kernel; those made of matrix products have a form of their own for AMX, but for double.
#define IMC_KERNELS(kernel) imc::make_kernel(IMC_PICK(kernel, float)), imc::make_kernel(IMC_PICK(kernel, double))
#define IMC_HALF_KERNELS(kernel) \
  imc::make_kernel(IMC_PICK(kernel, imc::bfloat16)), imc::make_kernel(IMC_PICK(kernel, imc::float16))
#define IMC_PRODUCT_KERNELS(kernel) \
  imc::make_kernel(IMC_PICK_PRODUCT(kernel, float)), imc::make_kernel(IMC_PICK(kernel, double))
#define IMC_PRODUCT_HALF_KERNELS(kernel)                        \
  imc::make_kernel(IMC_PICK_PRODUCT(kernel, imc::bfloat16)), \
      imc::make_kernel(IMC_PICK_PRODUCT(kernel, imc::float16))
#define IMC_DEFINE(kernel, signature, ...) \
  imc::define(module, #kernel, signature, kPlace, {IMC_KERNELS(kernel)}, imc::Options{__VA_ARGS__})
#define IMC_DEFINE_WITH_HALF(kernel, signature, ...)                                                 \
  imc::define(module, #kernel, signature, kPlace, {IMC_KERNELS(kernel), IMC_HALF_KERNELS(kernel)}, \
              imc::Options{__VA_ARGS__})
#define IMC_DEFINE_PRODUCT(kernel, signature) \
  imc::define(module, #kernel, signature, kPlace, {IMC_PRODUCT_KERNELS(kernel)})
#define IMC_DEFINE_PRODUCT_WITH_HALF(kernel, signature) \
  imc::define(module, #kernel, signature, kPlace, {IMC_PRODUCT_KERNELS(kernel), IMC_PRODUCT_HALF_KERNELS(kernel)})

constexpr imc::Place kPlace{imc::dlpack::kCpu, INT64_MAX, "threads"};

// The kernel reads where indices and parameters say.
void check_crops(const imc::Call& call) {
  const imc::Sizes& sizes = call.sizes;
  enum { kIndices = 2, kParameters = 3 };
  imc::check_crop_sizes(sizes['c'], sizes['h'], sizes['w'], sizes['s']);
  const auto* indices = static_cast<const std::int64_t*>(call.slots[kIndices].pointer);
  const auto* parameters = static_cast<const float*>(call.slots[kParameters].pointer);
  for (std::int64_t i = 0; i < sizes['b']; ++i) {
    if (indices[i] < 0 || indices[i] >= sizes['m']) {
      throw std::invalid_argument("multi_crop: indices must lie in [0, " + std::to_string(sizes['m']) + "), got " +
                                  std::to_string(indices[i]));
    }
  }
  const auto height = static_cast<float>(sizes['h']), width = static_cast<float>(sizes['w']);
  for (std::int64_t i = 0; i < sizes['v'] * sizes['b']; ++i) {
    const float* p = parameters + i * imc::kParameters;
    const bool inside = p[imc::kTop] >= 0 && p[imc::kLeft] >= 0 && p[imc::kHeight] >= 1 && p[imc::kWidth] >= 1 &&
                        p[imc::kTop] + p[imc::kHeight] <= height && p[imc::kLeft] + p[imc::kWidth] <= width;
    if (!inside || !(p[imc::kOrder] >= 0 && p[imc::kOrder] < 24)) {
      throw std::invalid_argument("multi_crop: the boxes of parameters must lie inside the images, and their orders in "
                                  "[0, 24); those of crop " + std::to_string(i) + " do not");
    }
  }
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "C++ kernels of imc_kernels, private: a function's docstring is its signature (csrc/python/signature.h).";
  const InstructionSet chosen = wanted();
  module.def("instruction_sets", [] { return pybind11::tuple(pybind11::cast(instruction_sets())); });
  module.def("instruction_set", [chosen] { return kNames[static_cast<int>(chosen)]; });
  IMC_DEFINE_WITH_HALF(sinkhorn,
             "scores[p.. b k], marginals[k]?, assignments[p.. b k], rows[p i b]?, columns[p i k]?rows, p, b, k, "
             "epsilon, iterations i; 1 <= i");
  IMC_DEFINE(sinkhorn_backward,
             "scores[p.. b k], marginals[k]?, assignments[p.. b k], rows[p i b], columns[p i k], "
             "grad_output[p.. b k], gradient[p.. b k], p, b, k, epsilon, i");
  IMC_DEFINE(sinkhorn_sweep,
             "scores[p.. b k], extremes[3 p], assignments[p.. b k], columns[p k], rows[p b], log_sums[p k], p, b, k, "
             "epsilon, iteration, last");
  IMC_DEFINE(sinkhorn_backward_sweep,
             "scores[p.. b k], extremes[3 p], marginals[k]?, assignments[p.. b k], grad_output[p.. b k], "
             "columns[p k], earlier_rows[p b]?, earlier_columns[p k]?earlier_rows, columns_gradient[p k]?, "
             "gradient[p.. b k], sums[p k], p, b, k, epsilon");
  IMC_DEFINE(transport_plan,
             "scores[p.. b k], log_rows[p b], log_columns[p k], scalings[p.. k], rows[p i b]?, columns[p i k]?rows, "
             "used[p]?rows, p, b, k, iterations i, tolerance, damping; 1 <= i");
  IMC_DEFINE(transport_plan_backward,
             "scores[p.. b k], log_rows[p b], log_columns[p k], rows[p i b], columns[p i k], used[p], "
             "grad_output[p.. k], gradient[p.. b k], p, b, k, damping, i");
  IMC_DEFINE_PRODUCT_WITH_HALF(prototype_scores,
             "embeddings[n.. d], prototypes[k d], scores[n.. k], n, k, d, normalize_prototypes");
  IMC_DEFINE_PRODUCT_WITH_HALF(prototype_scores_backward,
             "embeddings[n.. d], prototypes[k d], grad_output[n.. k], embeddings_gradient[n.. d]?, "
             "prototypes_gradient[k d]?, n, k, d, normalize_prototypes");
  IMC_DEFINE_WITH_HALF(per_view_batch_norm,
                       "input[v n c], weight[c]?, bias[c]?, residual[v n c]?, output[v n c], mean[v c], "
                       "variance[v c], v, n, c, eps, relu; 2 <= n");
  IMC_DEFINE_WITH_HALF(per_view_batch_norm_backward,
                       "input[v n c], weight[c]?, bias[c]?, residual[v n c]?, mean[v c], variance[v c], "
                       "grad_output[v n c], input_gradient[v n c]?, weight_gradient[c]?, bias_gradient[c]?, "
                       "residual_gradient[v n c]?, v, n, c, eps, relu; 2 <= n");
  IMC_DEFINE_WITH_HALF(swapped_prediction_loss,
             "scores[v b k], assignments[a b k], weights[v b]?, loss[], gradient[v b k]?, v, a, b, k, temperature, "
             "others o; a <= v; 2 <= v if o");
  IMC_DEFINE_PRODUCT_WITH_HALF(linear_swapped_prediction_loss,
             "embeddings[v b d], prototypes[k d], teacher_embeddings[a b e]?, teacher_prototypes[k e]?teacher_embeddings, "
             "marginals[k]?, columns[a k]?, weights[v b]?, loss[], embeddings_gradient[v b d]?, "
             "prototypes_gradient[k d]?, v, assigned a, b, k, d, teacher_dim e, epsilon, iterations i, temperature, "
             "normalize_prototypes, all_pairs; a <= v; 1 <= i");
  IMC_DEFINE_PRODUCT_WITH_HALF(mutual_information_loss,
             "logits[v b c], scores[v b k], loss[], logits_gradient[v b c]?, scores_gradient[v b k]?, v, b, c, k, "
             "temperature, entropy_weight, logit_limit, symmetric s; c = k if s");
  IMC_DEFINE_PRODUCT(mutual_information_loss_sums,
             "logits[v b c], scores[v b k], sums[vcvk+vc+2], v, b, c, k, temperature, logit_limit");
  IMC_DEFINE_PRODUCT(mutual_information_loss_finish,
             "logits[v b c], scores[v b k], sums[vcvk+vc+2], loss[], logits_gradient[v b c]?, "
             "scores_gradient[v b k]?, v, b, c, k, temperature, entropy_weight, logit_limit, symmetric s; c = k if s");
  IMC_DEFINE_WITH_HALF(log_dot_product_loss,
             "logits[h 2 b c], loss[h], gradient[h 2 b c]?, h, b, c, smoothing, entropy_weight, logit_limit");
  IMC_DEFINE(log_dot_product_loss_sums, "logits[h 2 b c], sums[h c 4], h, b, c, smoothing");
  IMC_DEFINE(log_dot_product_loss_parts,
             "logits[h 2 b c], sums[h c 4], samples[], whole_quotients[h c 2]?, losses[h], quotients[h c 2], "
             "gradient[h 2 b c]?whole_quotients, h, b, c, smoothing, entropy_weight, logit_limit");
  IMC_DEFINE_WITH_HALF(self_distillation_loss,
             "students[h 2 b c], teachers[h 2 b c], prior[h c]?, weights[b]?, loss[h], gradient[h 2 b c]?, h, b, c, "
             "student_temperature, teacher_temperature, beta, entropy_weight, agreement");
  IMC_DEFINE_PRODUCT_WITH_HALF(info_nce_loss, "embeddings[2 b d], loss[], gradient[2 b d]?, b, d, temperature, normalise");
  IMC_DEFINE_PRODUCT(info_nce_loss_rows,
             "embeddings[2 b d], loss[], statistics[2 2 n], b, d, first_sample f, n, temperature, normalise; "
             "f+n <= b");
  IMC_DEFINE_PRODUCT(info_nce_loss_gradient,
             "embeddings[2 b d], statistics[2 2 b], gradient[2 n d], b, d, first_sample f, n, temperature, "
             "normalise; f+n <= b");
  IMC_DEFINE_WITH_HALF(scale_gradient, "result[h n], gradient[h n], factors[h], h, n");
  IMC_DEFINE_WITH_HALF(multi_crop,
                       "crops[v b ssc..], images[m h w c], indices[b], parameters[v b 13], affine[2 c], v, b, h, w, "
                       "c, size s, channels_last",
                       {}, check_crops);
}
