/* The list of kernels: each prototype is written here and nowhere else.
 *
 * This file is a template without an include guard. The includer defines REAL (float or double) and
 * FRN_KERNEL(result, name, arguments), which becomes a struct member, a prototype or an assignment (see fastrnn.h and
 * kernels.c). generate_pxd.py reads it to declare the kernels to Cython.
 *
 * Dimensions: M, N, K of a matrix product C (M, N) = A (M, K) B (K, N); H hidden units; V words; n elements.
 * Strides (ld*, rs, cs) count elements, not bytes. All memory belongs to the caller; a kernel keeps and frees nothing.
 * Outputs must not overlap inputs unless the comment says that they may. No kernel starts a thread: the caller gives
 * each thread its own part of the work.
 */

/* ---- Matrix product ----
 *
 * B is packed into panels of `panel_width` columns, (panels, K, width); the last panel is padded with zeros. A is
 * either strided (rs, cs) or packed into tiles, (tiles, K, height). Each element of C is a sum over k in increasing
 * order, in blocks whose size depends on K alone, so the result does not depend on M, on N or on how threads split the
 * work. */

/* Pack panels [first, last) of B (K, N). Element (k, n) is B[row[k] + n * cs], or B[k * rs + n * cs] if row is NULL.
 *   packed  out, start of panel `first`; each panel is (K, width) and 64-byte aligned, and the next one starts `step`
 *           elements later, which may leave a gap for the rows of another matrix
 *   colsum  out (N,) or NULL: the sum of each column over k, for the columns of these panels only
 *   B       in;  row  in (K,) or NULL */
FRN_KERNEL(void, gemm_pack,
           (REAL *packed, ptrdiff_t step, REAL *colsum, const REAL *B, const ptrdiff_t *row, ptrdiff_t rs, ptrdiff_t cs,
            ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last));

/* Pack tiles [first, last) of A (M, K), `height` rows each; the last tile is padded with zeros.
 * Element (i, k) is A[row[i] + col[k]], with i * rs for row[i] if row is NULL and k * cs for col[k] if col is NULL.
 *   packed  out, start of tile `first`; each tile is (K, height), and the next one starts `step` elements later
 *   A       in;  row  in (M,) or NULL;  col  in (K,) or NULL */
FRN_KERNEL(void, gemm_pack_rows,
           (REAL *packed, ptrdiff_t step, const REAL *A, const ptrdiff_t *row, ptrdiff_t rs, const ptrdiff_t *col,
            ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height, ptrdiff_t first, ptrdiff_t last));

/* C (M, N) = A (M, K) B + bias, or C += A B if accumulate is set.
 *   C       out (M, N), row stride ldc; also in if accumulate is set
 *   A       in (M, K), element (i, k) at A[i * rs + k * cs]
 *   packed  in, the panels of B, (ceil(N / width), K, width), 64-byte aligned
 *   bias    in (N,) or NULL; ignored if accumulate is set */
FRN_KERNEL(void, gemm,
           (REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *packed, const REAL *bias,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* As gemm, with B (K, N) unpacked, row stride ldb: for products too small to be worth packing all of B beforehand. */
FRN_KERNEL(void, gemm_unpacked,
           (REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *B, ptrdiff_t ldb,
            const REAL *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* As gemm, with A packed by gemm_pack_rows into tiles of `height` rows. */
FRN_KERNEL(void, gemm_tiles,
           (REAL *C, ptrdiff_t ldc, const REAL *tiles, ptrdiff_t height, const REAL *packed, const REAL *bias,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* C (M, N) = A (M, K) B + bias for a few rows M. B (K, N) is unpacked and read once.
 *   C  out (M, N), row stride ldc; also in if accumulate is set;  A  in (M, K), row stride lda
 *   B  in (K, N), row stride ldb;  bias  in (N,) or NULL */
FRN_KERNEL(void, gemm_thin,
           (REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb, const REAL *bias,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* C (M, N) = A (M, K) B' for a few rows M. B (N, K), row stride ldb, is unpacked and read once. */
FRN_KERNEL(void, gemm_thin_transposed,
           (REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb, ptrdiff_t M,
            ptrdiff_t N, ptrdiff_t K, int accumulate));

/* C (M, N) = A' B for a few rows K, with A (K, M) and B (K, N) unpacked.
 *   C       out (M, N), row stride ldc; also in if accumulate is set
 *   colsum  out (N,) or NULL, the column sums of B */
FRN_KERNEL(void, gemm_outer,
           (REAL *C, ptrdiff_t ldc, REAL *colsum, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate));

/* ---- Softmax and the choice of words ---- */

/* Cross-entropy of one row of scores against q = (1 - smoothing) * onehot(target) + smoothing / V, and its gradient
 * dx = weight * (softmax(x) - q).
 *   dx  out (V,), may be x;  x  in (V,)
 * Returns log(sum(exp(x - max))) - sum(q * (x - max)), without the weight. */
FRN_KERNEL(double, softmax_loss,
           (REAL *dx, const REAL *x, ptrdiff_t V, ptrdiff_t target, REAL weight, double smoothing));

/* Returns the index of the first maximum of x (n,), or of the first NaN if there is one, as numpy.argmax does. */
FRN_KERNEL(ptrdiff_t, argmax, (const REAL *x, ptrdiff_t n));

/* The k highest of V scores, in decreasing order; ties go to the lower id. -INFINITY and NaN are never selected.
 *   value, word  out (k,), scores and ids, k >= 1;  count  out, how many were found;  x  in (V,)
 * Returns log(sum(exp(x))): -INFINITY if every score is -INFINITY, NaN if any score is NaN or INFINITY. */
FRN_KERNEL(double, top_words,
           (REAL *value, ptrdiff_t *word, ptrdiff_t *count, const REAL *x, ptrdiff_t V, ptrdiff_t k));

/* weight = exp(scale * (x - max(x))) for scores above `floor`, and for scores equal to `floor` with an id up to `last`;
 * 0 for the others.
 *   weight  out (V,);  x  in (V,); if a score is NaN or INFINITY, the sum is NaN
 * Returns the sum of the weights. */
FRN_KERNEL(double, word_weights, (REAL *weight, const REAL *x, ptrdiff_t V, REAL scale, REAL floor, ptrdiff_t last));

/* Returns the first word at which the running sum of the weights exceeds `mass`; -1 if no weight is positive or mass is
 * NaN. With a mass drawn uniformly from [0, sum of the weights), this samples a word in proportion to its weight. */
FRN_KERNEL(ptrdiff_t, word_at, (const REAL *weight, ptrdiff_t V, double mass));

/* ---- Gather ---- */

/* out (n,) = sum over j of x[row[j]] (n,), added in the order of j; zeros if rows is 0.
 *   out  out (n,);  x  in;  row  in (rows,), offsets of the rows in x, in elements */
FRN_KERNEL(void, rows_sum, (REAL *out, const REAL *x, const ptrdiff_t *row, ptrdiff_t rows, ptrdiff_t n));

/* ---- Attention ---- */

/* Scaled dot-product attention (Vaswani et al. 2017) of one query over P places, at least one:
 * weight = softmax over p of scale * (query . place p), context = sum over p of weight[p] * place p.
 *   context  out (H,);  weight  out (P,);  query  in (H,);  places  in (P, H), row stride ld */
FRN_KERNEL(void, attend,
           (REAL *context, REAL *weight, const REAL *query, const REAL *places, ptrdiff_t ld, ptrdiff_t P, ptrdiff_t H,
            double scale));

/* The gradients of attend, added to what is there.
 *   dquery  in and out (H,);  dplaces  in and out (P, H), row stride ld;  dscore  scratch (P,)
 *   dcontext  in (H,);  query, weight, places  in, of the forward pass */
FRN_KERNEL(void, attend_backward,
           (REAL *dquery, REAL *dplaces, REAL *dscore, const REAL *dcontext, const REAL *query, const REAL *weight,
            const REAL *places, ptrdiff_t ld, ptrdiff_t P, ptrdiff_t H, double scale));

/* ---- Element-wise functions ----
 *
 * At most 4 ULP from the correctly rounded result; results below the smallest normal number may be flushed to zero.
 *   y  out (n,), may be x;  x  in (n,) */
FRN_KERNEL(void, exp, (REAL *y, const REAL *x, ptrdiff_t n));
FRN_KERNEL(void, log, (REAL *y, const REAL *x, ptrdiff_t n));
FRN_KERNEL(void, tanh, (REAL *y, const REAL *x, ptrdiff_t n));
FRN_KERNEL(void, sigmoid, (REAL *y, const REAL *x, ptrdiff_t n));

/* ---- Optimizer steps: one pass over a parameter ----
 *
 * w in and out (n,); dw in (n,); state in (n,); the next_ state out (n,), may be the state itself. */

/* w -= learning_rate * dw */
FRN_KERNEL(void, sgd, (REAL *w, const REAL *dw, ptrdiff_t n, double learning_rate));

/* velocity = momentum * velocity - learning_rate * dw; w += velocity */
FRN_KERNEL(void, sgd_momentum,
           (REAL *w, REAL *next_velocity, const REAL *velocity, const REAL *dw, ptrdiff_t n, double learning_rate,
            double momentum));

/* cache = decay_rate * cache + (1 - decay_rate) * dw^2; w -= learning_rate * dw / (sqrt(cache) + epsilon) */
FRN_KERNEL(void, rmsprop,
           (REAL *w, REAL *next_cache, const REAL *cache, const REAL *dw, ptrdiff_t n, double learning_rate,
            double decay_rate, double epsilon));

/* m, v = moving averages of dw and dw^2; w = keep * w - alpha * m / (sqrt(v) + epsilon). alpha includes the bias
 * correction (Kingma & Ba 2015, end of section 2); keep is below 1 for decoupled weight decay. */
FRN_KERNEL(void, adam,
           (REAL *w, REAL *next_m, REAL *next_v, const REAL *m, const REAL *v, const REAL *dw, ptrdiff_t n,
            double alpha, double beta1, double beta2, double epsilon, double keep));

/* ---- Gradients and averages: x and mean are in and out (n,) ---- */

/* x = min(max(x, -limit), limit); NaN stays NaN. */
FRN_KERNEL(void, clip, (REAL *x, ptrdiff_t n, double limit));

/* x *= factor */
FRN_KERNEL(void, scale, (REAL *x, ptrdiff_t n, double factor));

/* Returns the sum of x * x, accumulated in double. */
FRN_KERNEL(double, sum_of_squares, (const REAL *x, ptrdiff_t n));

/* mean += rate * (w - mean);  w  in (n,) */
FRN_KERNEL(void, average, (REAL *mean, const REAL *w, ptrdiff_t n, double rate));

/* ---- Dropout ---- */

/* y = x / (1 - rate) for units whose random number (random.h) is at least rate, else 0. Applied to a gradient with the
 * same key, it is the backward pass.
 *   y  out (n,), may be x;  x  in (n,);  key  random key of the row and time step */
FRN_KERNEL(void, dropout, (REAL *y, const REAL *x, ptrdiff_t n, uint32_t key, double rate));
