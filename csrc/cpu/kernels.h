// Every CPU kernel, once per instruction set: the files of this folder are compiled with IMC_ISA set to baseline, v3
// (AVX2) or v4 (AVX-512), and cpu_module.cpp includes this header once for each, so there is no include guard.
// T is float or double. Matrices are contiguous, the last index runs fastest. A null gradient is not computed.

#ifndef IMC_ISA
#error "define IMC_ISA"
#endif

namespace imc::IMC_ISA {

// rows and columns, where not null, receive the logarithms of the scalings after each iteration: in double, since they
// are as large as the scores and cancel against them.
template <typename T>
void sinkhorn(const T* scores,     // [problems, batch, prototypes]
              const T* marginals,  // [prototypes], each prototype's share of the mass; null: all the same
              T* assignments,      // [problems, batch, prototypes]
              double* rows,        // [problems, iterations, batch]
              double* columns,     // [problems, iterations, prototypes]
              int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int threads);

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

template <typename T>
void prototype_scores(const T* embeddings,  // [rows, dim]
                      const T* prototypes,  // [prototype_count, dim]
                      T* scores,            // [rows, prototype_count]
                      int64_t rows, int64_t prototype_count, int64_t dim, bool normalize_prototypes, int threads);

template <typename T>
void prototype_scores_backward(const T* embeddings,     // [rows, dim]
                               const T* prototypes,     // [prototype_count, dim]
                               const T* grad_output,    // [rows, prototype_count]
                               T* embeddings_gradient,  // [rows, dim]
                               T* prototypes_gradient,  // [prototype_count, dim]
                               int64_t rows, int64_t prototype_count, int64_t dim, bool normalize_prototypes,
                               int threads);

// Batch normalisation by the statistics of each view, which the forward returns.
template <typename T>
void per_view_batch_norm(const T* input,   // [views, rows, channels]
                         const T* weight,  // [channels]; null: 1
                         const T* bias,    // [channels]; null: 0
                         T* output,        // [views, rows, channels]
                         T* mean,          // [views, channels]
                         T* variance,      // [views, channels], divided by rows
                         int64_t views, int64_t rows, int64_t channels, double eps, bool relu, int threads);

template <typename T>
void per_view_batch_norm_backward(const T* input,        // [views, rows, channels]
                                  const T* weight,       // [channels] or null
                                  const T* bias,         // [channels] or null
                                  const T* mean,         // [views, channels]
                                  const T* variance,     // [views, channels]
                                  const T* grad_output,  // [views, rows, channels]
                                  T* input_gradient,     // [views, rows, channels]
                                  T* weight_gradient,    // [channels]
                                  T* bias_gradient,      // [channels]
                                  int64_t views, int64_t rows, int64_t channels, double eps, bool relu, int threads);

template <typename T>
void swapped_prediction_loss(const T* scores,       // [views, batch, prototypes]
                             const T* assignments,  // [assigned, batch, prototypes]
                             T* loss,               // []
                             T* gradient,           // [views, batch, prototypes]
                             int64_t views, int64_t assigned, int64_t batch, int64_t prototypes, double temperature,
                             int threads);

// logit_limit is infinite for no guard. symmetric: prototypes = clusters, each joint is averaged with its transpose.
template <typename T>
void mutual_information_loss(const T* logits,     // [views, batch, clusters]
                             const T* scores,     // [views, batch, prototypes]
                             T* loss,             // []
                             T* logits_gradient,  // [views, batch, clusters]
                             T* scores_gradient,  // [views, batch, prototypes]
                             int64_t views, int64_t batch, int64_t clusters, int64_t prototypes, double temperature,
                             double entropy_weight, double logit_limit, bool symmetric, int threads);

// A batch over processes. Sums over this process's samples: of y.T u for all pairs of views, of y, of the logits' excess
// over the limit, and of 1.
template <typename T>
void mutual_information_loss_sums(const T* logits,  // [views, batch, clusters]
                                  const T* scores,  // [views, batch, prototypes]
                                  T* sums,          // [views clusters, views prototypes], [views clusters], [], []
                                  int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                  double temperature, double logit_limit, int threads);

// The loss of the whole batch from its sums, which are overwritten, and the gradients of this process's samples.
template <typename T>
void mutual_information_loss_finish(const T* logits,     // [views, batch, clusters]
                                    const T* scores,     // [views, batch, prototypes]
                                    T* sums,             // as above
                                    T* loss,             // []
                                    T* logits_gradient,  // [views, batch, clusters]
                                    T* scores_gradient,  // [views, batch, prototypes]
                                    int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                    double temperature, double entropy_weight, double logit_limit, bool symmetric,
                                    int threads);

// Both views of sample b are a pair. logit_limit is infinite for no guard.
template <typename T>
void log_dot_product_loss(const T* logits,  // [heads, 2, batch, clusters]
                          T* loss,          // [heads]
                          T* gradient,      // [heads, 2, batch, clusters]
                          int64_t heads, int64_t batch, int64_t clusters, double smoothing, double entropy_weight,
                          double logit_limit, int threads);

// A batch over processes: for each cluster the largest of this process's smoothed predictions, the sum of the others,
// and per view the sum of the unsmoothed ones.
template <typename T>
void log_dot_product_loss_sums(const T* logits,  // [heads, 2, batch, clusters]
                               double* sums,     // [heads, clusters, 4]
                               int64_t heads, int64_t batch, int64_t clusters, double smoothing, int threads);

// Given these sums of the whole batch: without quotients, this process's part of the losses and of the quotients, of
// which the largest and the sum of the others; given those of the whole batch too, the gradient.
template <typename T>
void log_dot_product_loss_parts(const T* logits,                // [heads, 2, batch, clusters]
                                const double* sums,             // [heads, clusters, 4]
                                const double* samples,          // []: of the whole batch
                                const double* whole_quotients,  // [heads, clusters, 2] or null
                                double* losses,                 // [heads]
                                double* quotients,              // [heads, clusters, 2]
                                T* gradient,                    // [heads, 2, batch, clusters]
                                int64_t heads, int64_t batch, int64_t clusters, double smoothing,
                                double entropy_weight, double logit_limit, int threads);

// Both views of sample b are a pair. agreement: the weights are the teachers'; without, null ones are 1. A null prior is
// the teachers' mean.
template <typename T>
void self_distillation_loss(const T* students,  // [heads, 2, batch, clusters]
                            const T* teachers,  // [heads, 2, batch, clusters]
                            const T* prior,     // [heads, clusters]
                            const T* weights,   // [batch]
                            T* loss,            // [heads]
                            T* gradient,        // [heads, 2, batch, clusters], of the students
                            int64_t heads, int64_t batch, int64_t clusters, double student_temperature,
                            double teacher_temperature, double beta, double entropy_weight, bool agreement,
                            int threads);

template <typename T>
void info_nce_loss(const T* embeddings,  // [2, batch, dim]
                   T* loss,              // []
                   T* gradient,          // [2, batch, dim]
                   int64_t batch, int64_t dim, double temperature, bool normalise, int threads);

// A batch over processes, whose embeddings each holds; its own samples begin at first_sample. The loss is the sum over
// their rows; the statistics of a row are its largest product with another and 1 / the sum of exponentials.
template <typename T>
void info_nce_loss_rows(const T* embeddings,  // [2, batch, dim]
                        double* loss,         // []
                        T* statistics,        // [2, 2, samples]: statistic, view
                        int64_t batch, int64_t dim, int64_t first_sample, int64_t samples, double temperature,
                        bool normalise, int threads);

template <typename T>
void info_nce_loss_gradient(const T* embeddings,  // [2, batch, dim]
                            const T* statistics,  // [2, 2, batch]
                            T* gradient,          // [2, samples, dim]
                            int64_t batch, int64_t dim, int64_t first_sample, int64_t samples, double temperature,
                            bool normalise, int threads);

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
