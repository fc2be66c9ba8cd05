// Every CPU kernel, once per instruction set: the files of this folder are compiled with IMC_ISA set to baseline, v3
// (AVX2) or v4 (AVX-512), those made of matrix products to amx too (but for double), and cpu_module.cpp includes this
// header once for each, so there is no include guard.
// S is the element type: float, double, bfloat16 or float16, which kernels read and write themselves and of which they
// compute in Number<S>; those for a batch over processes, and where it is T, take float or double. Matrices are
// contiguous, the last index runs fastest. A null gradient is not computed.

#ifndef IMC_ISA
#error "define IMC_ISA"
#endif

#include "imc/element.h"

namespace imc::IMC_ISA {

// rows and columns, where not null, receive the logarithms of the scalings after each iteration: in double, since they
// are as large as the scores and cancel against them.
template <typename S>
void sinkhorn(const S* scores,             // [problems, batch, prototypes]
              const Number<S>* marginals,  // [prototypes], each prototype's share of the mass; null: all the same
              S* assignments,              // [problems, batch, prototypes]
              double* rows,                // [problems, iterations, batch]
              double* columns,             // [problems, iterations, prototypes]
              int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int threads);

// The gradient is what remains of terms far above it: half precision's rounding of the assignments is too coarse.
template <typename T>
void sinkhorn_backward(const T* scores,       // [problems, batch, prototypes]
                       const T* marginals,    // [prototypes] or null
                       const T* assignments,  // [problems, batch, prototypes]
                       const double* rows,    // [problems, iterations, batch]
                       const double* columns,  // [problems, iterations, prototypes]
                       const T* grad_output,  // [problems, batch, prototypes]
                       T* gradient,           // [problems, batch, prototypes]
                       int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations,
                       int threads);

// A batch over processes: one sweep of it, between exchanges of column sums. Sweep 0 starts; each later one applies the
// column scalings; the last, iteration `iterations`, leaves the assignments, which until then hold the kernel's state.
template <typename T>
void sinkhorn_sweep(const T* scores,        // [problems, batch, prototypes]
                    const T* extremes,      // [3, problems]: largest score, minus the smallest, number of samples
                    T* assignments,         // [problems, batch, prototypes]
                    const double* columns,  // [problems, prototypes]: logarithms of the column scalings
                    double* rows,           // [problems, batch]: out, those of the row scalings
                    double* log_sums,       // [problems, prototypes]: out, those of this process's column sums
                    int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iteration, bool last,
                    int threads);

// Its way back: from the gradient of one iteration's column scalings (null: from grad_output, where the gradient
// begins, which needs no scalings) to this process's part of the gradient of those of the iteration before.
template <typename T>
void sinkhorn_backward_sweep(const T* scores,                 // [problems, batch, prototypes]
                             const T* extremes,               // [3, problems]
                             const T* marginals,              // [prototypes] or null
                             const T* assignments,            // [problems, batch, prototypes]
                             const T* grad_output,            // [problems, batch, prototypes]
                             const double* columns,           // [problems, prototypes], of the iteration
                             const double* earlier_rows,      // [problems, batch], of the one before; null: there is none
                             const double* earlier_columns,   // [problems, prototypes], the same
                             const T* columns_gradient,       // [problems, prototypes] or null
                             T* gradient,                     // [problems, batch, prototypes], which it goes on with
                             T* sums,                         // [problems, prototypes]: out
                             int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int threads);

// Scalings of columns, then rows, to given masses, by their logarithms in double; -infinity excludes an entry, a row or
// a column. rows, columns and used, where not null, receive what the gradient needs.
template <typename T>
void transport_plan(const T* scores,            // [problems, batch, prototypes], over epsilon
                    const double* log_rows,     // [problems, batch]: logarithms of the masses
                    const double* log_columns,  // [problems, prototypes]
                    T* scalings,                // [problems, prototypes]: out, the logarithms of the columns' last
                    double* rows,               // [problems, iterations, batch], after each iteration but the last
                    double* columns,            // [problems, iterations, prototypes], after each
                    int64_t* used,              // [problems]: how many iterations it took
                    int64_t problems, int64_t batch, int64_t prototypes, int64_t iterations, double tolerance,
                    double damping, int threads);

template <typename T>
void transport_plan_backward(const T* scores,            // [problems, batch, prototypes]
                             const double* log_rows,     // [problems, batch]
                             const double* log_columns,  // [problems, prototypes]
                             const double* rows,         // [problems, iterations, batch]
                             const double* columns,      // [problems, iterations, prototypes]
                             const int64_t* used,        // [problems]
                             const T* grad_output,       // [problems, prototypes]
                             T* gradient,                // [problems, batch, prototypes]
                             int64_t problems, int64_t batch, int64_t prototypes, double damping, int64_t iterations,
                             int threads);

template <typename S>
void prototype_scores(const S* embeddings,  // [rows, dim]
                      const S* prototypes,  // [prototype_count, dim]
                      S* scores,            // [rows, prototype_count]
                      int64_t rows, int64_t prototype_count, int64_t dim, bool normalize_prototypes, int threads);

template <typename S>
void prototype_scores_backward(const S* embeddings,     // [rows, dim]
                               const S* prototypes,     // [prototype_count, dim]
                               const S* grad_output,    // [rows, prototype_count]
                               S* embeddings_gradient,  // [rows, dim]
                               S* prototypes_gradient,  // [prototype_count, dim]
                               int64_t rows, int64_t prototype_count, int64_t dim, bool normalize_prototypes,
                               int threads);

// Batch normalisation by the statistics of each view, which the forward returns.
template <typename S>
void per_view_batch_norm(const S* input,            // [views, rows, channels]
                         const Number<S>* weight,   // [channels]; null: 1
                         const Number<S>* bias,     // [channels]; null: 0
                         const S* residual,         // [views, rows, channels], added before relu; null: 0
                         S* output,                 // [views, rows, channels]
                         Number<S>* mean,           // [views, channels]
                         Number<S>* variance,       // [views, channels], divided by rows
                         int64_t views, int64_t rows, int64_t channels, double eps, bool relu, int threads);

template <typename S>
void per_view_batch_norm_backward(const S* input,                // [views, rows, channels]
                                  const Number<S>* weight,       // [channels] or null
                                  const Number<S>* bias,         // [channels] or null
                                  const S* residual,             // [views, rows, channels] or null
                                  const Number<S>* mean,         // [views, channels]
                                  const Number<S>* variance,     // [views, channels]
                                  const S* grad_output,          // [views, rows, channels]
                                  S* input_gradient,             // [views, rows, channels]
                                  Number<S>* weight_gradient,    // [channels]
                                  Number<S>* bias_gradient,      // [channels]
                                  S* residual_gradient,          // [views, rows, channels]
                                  int64_t views, int64_t rows, int64_t channels, double eps, bool relu, int threads);

// others: a view predicts the assignments of all other views; otherwise its own as well.
template <typename S>
void swapped_prediction_loss(const S* scores,           // [views, batch, prototypes]
                             const S* assignments,      // [assigned, batch, prototypes]
                             const Number<S>* weights,  // [views, batch]; null: 1
                             Number<S>* loss,           // []
                             Gradient<S>* gradient,     // [views, batch, prototypes]
                             int64_t views, int64_t assigned, int64_t batch, int64_t prototypes, double temperature,
                             bool others, int threads);

// The loss above of the scores of embeddings and prototypes, and of assignments by Sinkhorn-Knopp, of which the matrices
// never exist. Null teachers: the assignments are those of the first views of the embeddings. columns: the logarithms of
// the scalings, where they are given; iterations and marginals are of no consequence then.
template <typename S>
void linear_swapped_prediction_loss(const S* embeddings,              // [views, batch, dim]
                                    const S* prototypes,              // [prototype_count, dim]
                                    const S* teacher_embeddings,      // [assigned, batch, teacher_dim]
                                    const S* teacher_prototypes,      // [prototype_count, teacher_dim]
                                    const Number<S>* marginals,       // [prototype_count] or null
                                    const Number<S>* columns,         // [assigned, prototype_count] or null
                                    const Number<S>* weights,         // [views, batch] or null
                                    Number<S>* loss,                  // []
                                    Gradient<S>* embeddings_gradient,  // [views, batch, dim]
                                    Gradient<S>* prototypes_gradient,  // [prototype_count, dim]
                                    int64_t views, int64_t assigned, int64_t batch, int64_t prototype_count, int64_t dim,
                                    int64_t teacher_dim, double epsilon, int64_t iterations, double temperature,
                                    bool normalize_prototypes, bool all_pairs, int threads);

// logit_limit is infinite for no guard. symmetric: prototypes = clusters, each joint is averaged with its transpose.
template <typename S>
void mutual_information_loss(const S* logits,               // [views, batch, clusters]
                             const S* scores,               // [views, batch, prototypes]
                             Number<S>* loss,               // []
                             Gradient<S>* logits_gradient,  // [views, batch, clusters]
                             Gradient<S>* scores_gradient,  // [views, batch, prototypes]
                             int64_t views, int64_t batch, int64_t clusters, int64_t prototypes, double temperature,
                             double entropy_weight, double logit_limit, bool symmetric, int threads);

// A batch over processes. Sums over this process's samples: of y.T u for all pairs of views, of y, of the logits' excess
// over the limit, and of 1.
template <typename S>
void mutual_information_loss_sums(const S* logits,  // [views, batch, clusters]
                                  const S* scores,  // [views, batch, prototypes]
                                  Number<S>* sums,  // [views clusters, views prototypes], [views clusters], [], []
                                  int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                  double temperature, double logit_limit, int threads);

// The loss of the whole batch from its sums, which are overwritten, and the gradients of this process's samples.
template <typename S>
void mutual_information_loss_finish(const S* logits,               // [views, batch, clusters]
                                    const S* scores,               // [views, batch, prototypes]
                                    Number<S>* sums,               // as above
                                    Number<S>* loss,               // []
                                    Gradient<S>* logits_gradient,  // [views, batch, clusters]
                                    Gradient<S>* scores_gradient,  // [views, batch, prototypes]
                                    int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                    double temperature, double entropy_weight, double logit_limit, bool symmetric,
                                    int threads);

// Both views of sample b are a pair. logit_limit is infinite for no guard.
template <typename S>
void log_dot_product_loss(const S* logits,        // [heads, 2, batch, clusters]
                          Number<S>* loss,        // [heads]
                          Gradient<S>* gradient,  // [heads, 2, batch, clusters]
                          int64_t heads, int64_t batch, int64_t clusters, double smoothing, double entropy_weight,
                          double logit_limit, int threads);

// A batch over processes: for each cluster the largest of this process's smoothed predictions, the sum of the others,
// and per view the sum of the unsmoothed ones.
template <typename S>
void log_dot_product_loss_sums(const S* logits,  // [heads, 2, batch, clusters]
                               double* sums,     // [heads, clusters, 4]
                               int64_t heads, int64_t batch, int64_t clusters, double smoothing, int threads);

// Given these sums of the whole batch: without quotients, this process's part of the losses and of the quotients, of
// which the largest and the sum of the others; given those of the whole batch too, the gradient.
template <typename S>
void log_dot_product_loss_parts(const S* logits,                // [heads, 2, batch, clusters]
                                const double* sums,             // [heads, clusters, 4]
                                const double* samples,          // []: of the whole batch
                                const double* whole_quotients,  // [heads, clusters, 2] or null
                                double* losses,                 // [heads]
                                double* quotients,              // [heads, clusters, 2]
                                Gradient<S>* gradient,          // [heads, 2, batch, clusters]
                                int64_t heads, int64_t batch, int64_t clusters, double smoothing,
                                double entropy_weight, double logit_limit, int threads);

// Both views of sample b are a pair. agreement: the weights are the teachers'; without, null ones are 1. A null prior is
// the teachers' mean.
template <typename S>
void self_distillation_loss(const S* students,         // [heads, 2, batch, clusters]
                            const S* teachers,         // [heads, 2, batch, clusters]
                            const Number<S>* prior,    // [heads, clusters]
                            const Number<S>* weights,  // [batch]
                            Number<S>* loss,           // [heads]
                            Gradient<S>* gradient,     // [heads, 2, batch, clusters], of the students
                            int64_t heads, int64_t batch, int64_t clusters, double student_temperature,
                            double teacher_temperature, double beta, double entropy_weight, bool agreement,
                            int threads);

template <typename S>
void info_nce_loss(const S* embeddings,    // [2, batch, dim]
                   Number<S>* loss,        // []
                   Gradient<S>* gradient,  // [2, batch, dim]
                   int64_t batch, int64_t dim, double temperature, bool normalise, int threads);

// A batch over processes, whose embeddings each holds; its own samples begin at first_sample. The loss is the sum over
// their rows; the statistics of a row are its largest product with another and 1 / the sum of exponentials.
template <typename S>
void info_nce_loss_rows(const S* embeddings,    // [2, batch, dim]
                        double* loss,           // []
                        Number<S>* statistics,  // [2, 2, samples]: statistic, view
                        int64_t batch, int64_t dim, int64_t first_sample, int64_t samples, double temperature,
                        bool normalise, int threads);

template <typename S>
void info_nce_loss_gradient(const S* embeddings,          // [2, batch, dim]
                            const Number<S>* statistics,  // [2, 2, batch]
                            Gradient<S>* gradient,        // [2, samples, dim]
                            int64_t batch, int64_t dim, int64_t first_sample, int64_t samples, double temperature,
                            bool normalise, int threads);

// The gradient of each loss times a factor of its own, rounded once.
template <typename S>
void scale_gradient(S* result,                    // [losses, size]
                    const Gradient<S>* gradient,  // [losses, size]
                    const Number<S>* factors,     // [losses]
                    int64_t losses, int64_t size, int threads);

// Crops of 8-bit images. Out is float, double, bfloat16 or float16; the columns of the parameters are those of
// imc_kernels/ops/crop_parameters.py, and the boxes and indices are taken to be inside the images.
template <typename Out>
void multi_crop(Out* crops,               // [views, batch, size, size, channels], or with the channels before the rows
                const uint8_t* images,    // [count, height, width, channels]
                const int64_t* indices,   // [batch]
                const float* parameters,  // [views, batch, 13]
                const double* affine,     // [2, channels]: factors and offsets of the normalisation
                int64_t views, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t size,
                bool channels_last, int threads);

}  // namespace imc::IMC_ISA
