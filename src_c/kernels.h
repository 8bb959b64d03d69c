/* The list of kernels, once, for every element type and instruction set.
 *
 * This file is a template without an include guard: whoever includes it defines REAL (float or double) and
 * FRN_KERNEL(result, name, arguments), which becomes a prototype, a function pointer or an assignment (see fastrnn.h
 * and dispatch.c). Called from outside, a kernel is `frn_<name>_<f32|f64>`.
 *
 * Dimensions: M, N, K of a matrix product C (M, N) = A (M, K) B (K, N); H hidden units; V words; n elements.
 * Strides (ld*, rs, cs) count elements, never bytes. Every pointer belongs to the caller, no kernel keeps or frees one,
 * and outputs do not overlap inputs unless the comment says that they may. No kernel starts a thread: callers hand each
 * thread a part of its own.
 */

/* ---- Matrix product -------------------------------------------------------------------------------------------------
 * B is packed into panels of frn_panel_width() columns, (panels, K, width), the last one padded with zeros; A is read
 * as it lies (rs, cs) or packed into tiles, (tiles, K, height). For every element of C the products are added in the
 * order of k, in blocks whose size depends on K alone: neither M, N nor the share of a thread changes a bit of the
 * result. */

/* Pack panels [first, last) of B (K, N). Element (k, n) is B[row[k] + n * cs], or B[k * rs + n * cs] where row is NULL.
 *   packed  out, where panel `first` begins; each panel is (K, width), 64-byte aligned, the next one `step` further, so
 *           that the rows of another matrix can stand between
 *   colsum  out (N,) or NULL: the sum of each column over k, for the columns of these panels only
 *   B       in;  row  in (K,) or NULL */
FRN_KERNEL(void, gemm_pack,
           (REAL * packed, ptrdiff_t step, REAL *colsum, const REAL *B, const ptrdiff_t *row, ptrdiff_t rs,
            ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last));

/* Pack tiles [first, last) of A (M, K), `height` rows each (the last one may be lower and is padded with zeros).
 * Element (i, k) is A[row[i] + col[k]]; where row is NULL it is i * rs, where col is NULL k * cs.
 *   packed  out, where tile `first` begins; each tile is (K, height), the next one `step` further
 *   A       in;  row  in (M,) or NULL;  col  in (K,) or NULL */
FRN_KERNEL(void, gemm_pack_rows,
           (REAL * packed, ptrdiff_t step, const REAL *A, const ptrdiff_t *row, ptrdiff_t rs, const ptrdiff_t *col,
            ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height, ptrdiff_t first, ptrdiff_t last));

/* C (M, N) = A (M, K) B, plus bias in each row where it is given, plus C itself where accumulate is set.
 *   C       out (M, N), row stride ldc; in as well where accumulate is set
 *   A       in (M, K), element (i, k) at A[i * rs + k * cs]
 *   packed  in, the panels of B, (ceil(N / width), K, width), 64-byte aligned
 *   bias    in (N,) or NULL; not read where accumulate is set */
FRN_KERNEL(void, gemm,
           (REAL * C, ptrdiff_t ldc, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *packed, const REAL *bias,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* The same with B (K, N) as it lies, row stride ldb: for a product so small that packing B would not pay. */
FRN_KERNEL(void, gemm_unpacked,
           (REAL * C, ptrdiff_t ldc, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *B, ptrdiff_t ldb,
            const REAL *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* The same with A packed by gemm_pack_rows into tiles of `height` rows. */
FRN_KERNEL(void, gemm_tiles,
           (REAL * C, ptrdiff_t ldc, const REAL *tiles, ptrdiff_t height, const REAL *packed, const REAL *bias,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* C (M, N) = A (M, K) B for a few rows, B (K, N) read once, as it lies (row stride ldb): where packing would not pay.
 *   C     out (M, N), row stride ldc; in as well where accumulate is set
 *   A     in (M, K), row stride lda;  bias  in (N,) or NULL */
FRN_KERNEL(void, gemm_thin,
           (REAL * C, ptrdiff_t ldc, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb, const REAL *bias,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* C (M, N) = A (M, K) B' for a few rows, B (N, K) read once, as it lies (row stride ldb). No bias. */
FRN_KERNEL(void, gemm_thin_transposed,
           (REAL * C, ptrdiff_t ldc, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb, ptrdiff_t M,
            ptrdiff_t N, ptrdiff_t K, int accumulate));

/* C (M, N) += A' B for a few rows K: A (K, M) and B (K, N) as they lie; colsum (N,) = the column sums of B, or NULL.
 *   C  out (M, N), row stride ldc; overwritten unless accumulate is set */
FRN_KERNEL(void, gemm_outer,
           (REAL * C, ptrdiff_t ldc, REAL *colsum, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* ---- Gates: one row of the batch at one time step
 * -------------------------------------------------------------------- Gate order i, f, o, g in 4H. Hochreiter &
 * Schmidhuber 1997 with the forget gate of Gers et al. 2000, no peepholes. */

/* h = tanh(a + input).
 *   h  out (H,), may be a;  h_out  out (H,) or NULL, a second copy;  a  in (H,), pre-activation;  input  in (H,) or
 * NULL */
FRN_KERNEL(void, rnn_gates_forward, (REAL * h, REAL *h_out, const REAL *a, const REAL *input, ptrdiff_t H));

/* da = (dh + dh_next) * (1 - h * h).
 *   da  out (H,), may be any of the inputs;  dh, dh_next  in (H,) or NULL;  h  in (H,) */
FRN_KERNEL(void, rnn_gates_backward, (REAL * da, const REAL *dh, const REAL *dh_next, const REAL *h, ptrdiff_t H));

/* c = f * c_prev + i * g and h = o * tanh(c), with i, f, o = sigmoid and g = tanh of the pre-activations.
 *   gates  in (4H,) pre-activations, out (4H,) activations;  input  in (4H,) or NULL, added to the pre-activations
 *   c      out (H,), may be c_prev;  h  out (H,);  h_out  out (H,) or NULL, a second copy;  c_prev  in (H,) */
FRN_KERNEL(void, lstm_gates_forward,
           (REAL * gates, REAL *c, REAL *h, REAL *h_out, const REAL *input, const REAL *c_prev, ptrdiff_t H));

/* The gradient of the pre-activations, and of c_prev.
 *   da      out (4H,), may be gates
 *   dc      in (H,) gradient of c from the next step, out (H,) gradient of c_prev
 *   dh, dh_next  in (H,) or NULL, added up;  gates  in (4H,) activations;  c, c_prev  in (H,) */
FRN_KERNEL(void, lstm_gates_backward,
           (REAL * da, REAL *dc, const REAL *dh, const REAL *dh_next, const REAL *gates, const REAL *c,
            const REAL *c_prev, ptrdiff_t H));

/* ---- Softmax
 * ---------------------------------------------------------------------------------------------------------*/

/* Cross-entropy of one row of scores against q = (1 - smoothing) * onehot(target) + smoothing / V, gradient in the same
 * pass: dx = weight * (softmax(x) - q).
 *   dx  out (V,), may be x;  x  in (V,)
 * Returns log(sum(exp(x - max))) - sum(q * (x - max)), not weighted. */
FRN_KERNEL(double, softmax_loss,
           (REAL * dx, const REAL *x, ptrdiff_t V, ptrdiff_t target, REAL weight, double smoothing));

/* The first position of the largest element of x (n,); the first NaN where there is one, as numpy.argmax. */
FRN_KERNEL(ptrdiff_t, argmax, (const REAL *x, ptrdiff_t n));

/* The k best of V scores, best first, of equal ones the one with the lower id; -INFINITY and NaN are never among them.
 *   value, word  out (k,), scores and ids, k at least 1;  count  out, how many there are;  x  in (V,)
 * Returns log(sum(exp(x))): -INFINITY where every score is, NaN where a score is NaN or INFINITY. */
FRN_KERNEL(double, top_words,
           (REAL * value, ptrdiff_t *word, ptrdiff_t *count, const REAL *x, ptrdiff_t V, ptrdiff_t k));

/* weight = exp(scale * (x - max(x))) for the words above `floor`, and for those at `floor` up to the id `last`; 0 else.
 *   weight  out (V,);  x  in (V,); where one is NaN or INFINITY the sum is NaN
 * Returns the sum of the weights. */
FRN_KERNEL(double, word_weights, (REAL * weight, const REAL *x, ptrdiff_t V, REAL scale, REAL floor, ptrdiff_t last));

/* The first word at which the sum of the weights so far is above `mass`, which is below their sum: with a mass that is
 * uniform, words are drawn by their weights. Returns -1 where no weight is above 0, or mass is NaN. */
FRN_KERNEL(ptrdiff_t, word_at, (const REAL *weight, ptrdiff_t V, double mass));

/* ---- Rows: gather, scatter-add
 * ---------------------------------------------------------------------------------------*/

/* out (n,) = sum over j of x[row[j]] (n,), rows added in the order of j; zero where rows is 0.
 *   out  out (n,);  x  in;  row  in (rows,), offsets of the rows in x, in elements */
FRN_KERNEL(void, rows_sum, (REAL * out, const REAL *x, const ptrdiff_t *row, ptrdiff_t rows, ptrdiff_t n));

/* ---- Element-wise functions, at most 4 ULP from the correctly rounded result
 * ----------------------------------------- y out (n,), may be x; x in (n,). Results smaller than the smallest normal
 * number may be zero. */
FRN_KERNEL(void, exp, (REAL * y, const REAL *x, ptrdiff_t n));
FRN_KERNEL(void, log, (REAL * y, const REAL *x, ptrdiff_t n));
FRN_KERNEL(void, tanh, (REAL * y, const REAL *x, ptrdiff_t n));
FRN_KERNEL(void, sigmoid, (REAL * y, const REAL *x, ptrdiff_t n));

/* ---- Optimiser steps: one pass over a parameter
 * ---------------------------------------------------------------------- w in and out (n,), state in and out (n,), dw
 * in (n,). */

/* w -= learning_rate * dw */
FRN_KERNEL(void, sgd, (REAL * w, const REAL *dw, ptrdiff_t n, double learning_rate));
/* velocity = momentum * velocity - learning_rate * dw; w += velocity. next (n,) receives the new velocity, may be it.
 */
FRN_KERNEL(void, sgd_momentum,
           (REAL * w, REAL *next, const REAL *velocity, const REAL *dw, ptrdiff_t n, double learning_rate,
            double momentum));
/* cache = rho * cache + (1 - rho) dw^2; w -= learning_rate * dw / (sqrt(cache) + epsilon). next may be cache. */
FRN_KERNEL(void, rmsprop,
           (REAL * w, REAL *next, const REAL *cache, const REAL *dw, ptrdiff_t n, double learning_rate,
            double decay_rate, double epsilon));
/* m, v = moving averages of dw and dw^2; w = keep * w - alpha * m / (sqrt(v) + epsilon), alpha with the bias correction
 * in it (Kingma & Ba 2015, end of section 2), keep = 1 but for decoupled weight decay. next_m, next_v receive the new
 * averages, may be m and v. */
FRN_KERNEL(void, adam,
           (REAL * w, REAL *next_m, REAL *next_v, const REAL *m, const REAL *v, const REAL *dw, ptrdiff_t n,
            double alpha, double beta1, double beta2, double epsilon, double keep));

/* ---- Gradients and averages: x and mean are in and out (n,) -------------------------------------------------------*/

/* x = min(max(x, -limit), limit); NaN stays. */
FRN_KERNEL(void, clip, (REAL * x, ptrdiff_t n, double limit));
/* x *= factor */
FRN_KERNEL(void, scale, (REAL * x, ptrdiff_t n, double factor));
/* The sum of x * x, added up in double. */
FRN_KERNEL(double, sum_of_squares, (const REAL *x, ptrdiff_t n));
/* mean += rate * (w - mean);  w in (n,) */
FRN_KERNEL(void, average, (REAL * mean, const REAL *w, ptrdiff_t n, double rate));

/* ---- Dropout ------------------------------------------------------------------------------------------------------*/

/* y = x / (1 - rate) where the draw of the unit (random.h) is at least rate, else 0. Of a gradient, it is the backward.
 *   y  out (n,), may be x;  x  in (n,);  key  of the row and time step */
FRN_KERNEL(void, dropout, (REAL * y, const REAL *x, ptrdiff_t n, uint32_t key, double rate));
