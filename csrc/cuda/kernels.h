// Every CUDA kernel's launch. They are asynchronous on `stream` (a cudaStream_t) of `device`, and take memory from their
// caller alone. T is float, __nv_bfloat16 or __half. Matrices are contiguous, the last index runs fastest; a null
// gradient is not computed. A workspace is aligned to 16 bytes, and holds nothing that lasts.
#pragma once

#include <cstdint>

struct __nv_bfloat16;
struct __half;

#define IMC_INSTANTIATE_CUDA(kernel)                             \
  template decltype(kernel<float>) kernel<float>;                 \
  template decltype(kernel<__nv_bfloat16>) kernel<__nv_bfloat16>; \
  template decltype(kernel<__half>) kernel<__half>;

namespace imc::cuda {

// A gradient that is still to be scaled: float16, whose range is too small for that, keeps it in float.
template <typename T>
struct Gradient {
  using type = T;
};
template <>
struct Gradient<__half> {
  using type = float;
};
template <typename T>
using GradientOf = typename Gradient<T>::type;

int64_t sinkhorn_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device);

// rows and columns, where not null, receive the logarithms (base 2) of the scalings after each iteration: in double,
// since they are as large as the scores and cancel against them.
template <typename T>
void sinkhorn(const T* scores,         // [problems, batch, prototypes]
              const float* marginals,  // [prototypes], each prototype's share of the mass; null: all the same
              T* assignments,          // [problems, batch, prototypes]
              double* rows,            // [problems, iterations, batch]
              double* columns,         // [problems, iterations, prototypes]
              double* workspace,       // sinkhorn_workspace_bytes(...)
              int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int device,
              uintptr_t stream);

int64_t sinkhorn_backward_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device);

template <typename T>
void sinkhorn_backward(const T* scores,          // [problems, batch, prototypes]
                       const float* marginals,   // [prototypes] or null
                       const double* rows,       // [problems, iterations, batch]
                       const double* columns,    // [problems, iterations, prototypes]
                       const T* grad_output,     // [problems, batch, prototypes]
                       T* gradient,              // [problems, batch, prototypes]
                       double* workspace,        // sinkhorn_backward_workspace_bytes(...)
                       int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations,
                       int device, uintptr_t stream);

// A batch over processes, as on the CPU (csrc/cpu/kernels.h); logarithms are natural.
void sinkhorn_sweep(const float* scores,    // [problems, batch, prototypes]
                    const float* extremes,  // [3, problems]
                    float* assignments,     // [problems, batch, prototypes], written by the last sweep
                    const double* columns,  // [problems, prototypes]
                    double* rows,           // [problems, batch]: out
                    double* log_sums,       // [problems, prototypes]: out, but by the last sweep
                    int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iteration, bool last,
                    int device, uintptr_t stream);

int64_t sinkhorn_backward_sweep_workspace_bytes(int64_t problems, int64_t batch, int device);

void sinkhorn_backward_sweep(const float* scores,             // [problems, batch, prototypes]
                             const float* extremes,           // [3, problems]
                             const float* marginals,          // [prototypes] or null
                             const float* assignments,        // [problems, batch, prototypes]
                             const float* grad_output,        // [problems, batch, prototypes]
                             const double* columns,           // [problems, prototypes]
                             const double* earlier_rows,      // [problems, batch] or null
                             const double* earlier_columns,   // [problems, prototypes] or null
                             const float* columns_gradient,   // [problems, prototypes] or null
                             float* gradient,                 // [problems, batch, prototypes]
                             float* sums,                     // [problems, prototypes]: out, where there is an earlier
                             float* workspace,                // sinkhorn_backward_sweep_workspace_bytes(...)
                             int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int device,
                             uintptr_t stream);

int64_t swapped_prediction_loss_workspace_bytes(int64_t views, int64_t batch, int64_t prototypes, int device);

template <typename T>
void swapped_prediction_loss(const T* scores,          // [views, batch, prototypes]
                             const T* assignments,     // [assigned, batch, prototypes]
                             float* loss,              // []
                             GradientOf<T>* gradient,  // [views, batch, prototypes]
                             float* workspace,         // swapped_prediction_loss_workspace_bytes(...)
                             int64_t views, int64_t assigned, int64_t batch, int64_t prototypes, double temperature,
                             int device, uintptr_t stream);

int64_t log_dot_product_loss_workspace_bytes(int64_t heads, int64_t batch, int64_t clusters, int device);

// logit_limit is infinite for no guard.
template <typename T>
void log_dot_product_loss(const T* logits,          // [heads, 2, batch, clusters]
                          float* loss,              // [heads]
                          GradientOf<T>* gradient,  // [heads, 2, batch, clusters]
                          float* workspace,         // log_dot_product_loss_workspace_bytes(...)
                          int64_t heads, int64_t batch, int64_t clusters, double smoothing, double entropy_weight,
                          double logit_limit, int device, uintptr_t stream);

int64_t log_dot_product_loss_phase_workspace_bytes(int64_t heads, int64_t batch, int64_t clusters, int device);

// A batch over processes, as on the CPU (csrc/cpu/kernels.h).
void log_dot_product_loss_sums(const float* logits,  // [heads, 2, batch, clusters]
                               double* sums,         // [heads, clusters, 4]
                               float* workspace,     // log_dot_product_loss_phase_workspace_bytes(...)
                               int64_t heads, int64_t batch, int64_t clusters, double smoothing, int device,
                               uintptr_t stream);

void log_dot_product_loss_parts(const float* logits,            // [heads, 2, batch, clusters]
                                const double* sums,             // [heads, clusters, 4]
                                const double* samples,          // []: of the whole batch
                                const double* whole_quotients,  // [heads, clusters, 2] or null
                                double* losses,                 // [heads]: out, without whole_quotients
                                double* quotients,              // [heads, clusters, 2]: the same
                                float* gradient,                // [heads, 2, batch, clusters]: out, with them
                                float* workspace,               // log_dot_product_loss_phase_workspace_bytes(...)
                                int64_t heads, int64_t batch, int64_t clusters, double smoothing,
                                double entropy_weight, double logit_limit, int device, uintptr_t stream);

int64_t mutual_information_loss_workspace_bytes(int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                                int device);

// The parts of mutual_information_loss, in their order. The caller multiplies in between: joint = y^T u, then
// dy = u joint^T and du = y joint, whichever gradient is wanted. width is at least views prototypes + 1. For a batch
// over processes it also adds up the joints, and guard_and_samples: the logits' excess, weighted, and the batch. Null: the
// batch is whole.
template <typename T>
void mutual_information_loss_softmaxes(const T* logits,           // [views, batch, clusters]
                                       const T* scores,           // [views, batch, prototypes]
                                       float* y,                  // [batch, views clusters]
                                       float* u,                  // [batch, width]
                                       float* guard_and_samples,  // [2]: out, or null
                                       float* workspace,          // mutual_information_loss_workspace_bytes(...)
                                       int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                       int64_t width, double temperature, double logit_limit, bool symmetric,
                                       int device, uintptr_t stream);

void mutual_information_loss_entropies(float* joint,                    // [views clusters, width], replaced
                                       const float* guard_and_samples,  // [2] or null
                                       float* loss,                     // []
                                       float* workspace,                // as the softmaxes left it
                                       int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                       int64_t width, double entropy_weight, bool symmetric, int device,
                                       uintptr_t stream);

template <typename T>
void mutual_information_loss_gradients(const T* logits,                 // [views, batch, clusters]
                                       const float* y,                  // [batch, views clusters]
                                       const float* u,                  // [batch, width]
                                       const float* dy,                 // [batch, views clusters]
                                       const float* du,                 // [batch, width]
                                       const float* guard_and_samples,  // [2] or null
                                       GradientOf<T>* logits_gradient,  // [views, batch, clusters]
                                       GradientOf<T>* scores_gradient,  // [views, batch, prototypes]
                                       int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                       int64_t width, double temperature, double logit_limit, int device,
                                       uintptr_t stream);

int64_t multi_crop_workspace_bytes(int64_t crops, int64_t width, int64_t channels, int64_t size, int device);

// A crop whose index or box lies outside the images, or whose order is none of the 24, is NaN. crops are channels-last
// ([views, batch, size, size, channels]) or contiguous; factors and offsets beyond those of the channels do not count.
// Without parameters they are drawn, from the key and the first view of a CropDraw (their upper and lower 32 bits).
template <typename T>
void multi_crop(T* crops,                 // [views, batch, channels, size, size]
                const uint8_t* images,    // [count, height, width, channels], 1 or 3 channels
                const int64_t* indices,   // [batch]
                const float* parameters,  // [views, batch, kParameters] (imc/crop_parameters.h) or null
                const int64_t* samples,   // [batch], where there are none; else null
                const int64_t* step,      // [], or null: it is in the key
                const double* law,        // [20], with samples
                float* workspace,         // multi_crop_workspace_bytes(views * batch, ...)
                int64_t count, int64_t views, int64_t batch, int64_t height, int64_t width, int64_t channels,
                int64_t size, bool channels_last, double red_factor, double green_factor, double blue_factor,
                double red_offset, double green_offset, double blue_offset, double key_high, double key_low,
                double view_high, double view_low, int device, uintptr_t stream);

}  // namespace imc::cuda
