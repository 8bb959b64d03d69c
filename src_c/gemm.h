/* The matrix product of REAL: packing, and products of packed and unpacked operands (kernels.h). */

#define OPERAND_PASSES 1
INLINE vec splat_operand(const REAL *p) { return splat(*p); }
INLINE vec operand_part(vec x, int pass) {
    (void)pass;
    return x;
}
INLINE vec multiply_add(vec c, vec a, vec b) { return c + a * b; }
#include "product.h"

enum { TOGETHER = 4 };

/* Pack `panels` panels from panel p of B, whose rows are contiguous. `panels` is a constant after inlining. */
INLINE void pack_panels_of_rows(REAL *packed, ptrdiff_t step, REAL *colsum, const REAL *B, const ptrdiff_t *row,
                                ptrdiff_t rs, ptrdiff_t K, ptrdiff_t p, const int panels) {
    enum { AHEAD = 8 };
    const ptrdiff_t n0 = p * PANEL_WIDTH;
    vec sum[TOGETHER * PANEL_VECTORS];
    for (int j = 0; j < panels * PANEL_VECTORS; j++)
        sum[j] = splat(0);
    for (ptrdiff_t k = 0; k < K; k++) {
        const REAL *from = B + (row ? row[k] : k * rs) + n0;
        const REAL *ahead = B + (row ? row[k + AHEAD < K ? k + AHEAD : k] : (k + AHEAD) * rs) + n0;
        for (int j = 0; j < panels * PANEL_VECTORS; j++) {
            const vec x = load(from + j * LANES);
            PREFETCH(ahead + j * LANES);
            store(packed + j / PANEL_VECTORS * step + k * PANEL_WIDTH + j % PANEL_VECTORS * LANES, x);
            sum[j] = sum[j] + x;
        }
    }
    for (int j = 0; j < panels * PANEL_VECTORS && colsum; j++)
        store(colsum + n0 + j * LANES, sum[j]);
}

void KERNEL(gemm_pack)(REAL *packed, ptrdiff_t step, REAL *colsum, const REAL *B, const ptrdiff_t *row, ptrdiff_t rs,
                       ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last) {
    ptrdiff_t p = first;
    for (; cs == 1 && p < last && (p + 1) * PANEL_WIDTH <= N;) {
        /* several panels at a time, because short runs of each row would be slow to read */
        const ptrdiff_t whole = N / PANEL_WIDTH < last ? N / PANEL_WIDTH : last;
        const ptrdiff_t panels = whole - p < TOGETHER ? 1 : TOGETHER;
        if (panels == 1)
            pack_panels_of_rows(packed, step, colsum, B, row, rs, K, p, 1);
        else
            pack_panels_of_rows(packed, step, colsum, B, row, rs, K, p, TOGETHER);
        p += panels;
        packed += panels * step;
    }
    for (; p < last; p++, packed += step) {
        const ptrdiff_t n0 = p * PANEL_WIDTH, width = N - n0 < PANEL_WIDTH ? N - n0 : PANEL_WIDTH;
        if (rs == 1 && !row && !colsum && width == PANEL_WIDTH) { /* B transposed: each column is contiguous */
            for (ptrdiff_t k = 0; k < K; k += LANES) {
                const ptrdiff_t run = K - k < LANES ? K - k : LANES;
                for (int j = 0; j < PANEL_VECTORS; j++) {
                    vec v[LANES];
                    for (int l = 0; l < LANES; l++) {
                        const REAL *from = B + (n0 + j * LANES + l) * cs + k;
                        v[l] = run == LANES ? load(from) : load_part(from, run);
                    }
                    transpose(v);
                    for (ptrdiff_t l = 0; l < run; l++)
                        store(packed + (k + l) * PANEL_WIDTH + j * LANES, v[l]);
                }
            }
            continue;
        }
        /* the last panel and other strides, in blocks of k, so that contiguous columns are read in runs */
        enum { RUN = 16 };
        REAL sums[PANEL_WIDTH] = {0};
        for (ptrdiff_t k0 = 0; k0 < K; k0 += RUN) {
            const ptrdiff_t k1 = k0 + RUN < K ? k0 + RUN : K;
            for (ptrdiff_t n = 0; n < width; n++)
                for (ptrdiff_t k = k0; k < k1; k++) {
                    const REAL x = B[(row ? row[k] : k * rs) + (n0 + n) * cs];
                    packed[k * PANEL_WIDTH + n] = x;
                    sums[n] += x;
                }
            for (ptrdiff_t k = k0; k < k1; k++)
                for (ptrdiff_t n = width; n < PANEL_WIDTH; n++)
                    packed[k * PANEL_WIDTH + n] = 0;
        }
        if (colsum)
            memcpy(colsum + n0, sums, (size_t)width * sizeof(REAL));
    }
}

void KERNEL(gemm_pack_rows)(REAL *packed, ptrdiff_t step, const REAL *A, const ptrdiff_t *row, ptrdiff_t rs,
                            const ptrdiff_t *col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height,
                            ptrdiff_t first, ptrdiff_t last) {
    if (height <= LANES && !row && rs == 1) {
        /* A transposed: the rows of a tile are contiguous, so each k is one run through A. Vectors of LANES rows are
         * stored `height` apart, each overwriting the excess lanes of the one before. */
        for (ptrdiff_t k = 0; k < K; k++) {
            const REAL *from = A + (col ? col[k] : k * cs);
            for (ptrdiff_t t = first; t < last; t++) {
                const ptrdiff_t i0 = t * height;
                REAL *tile = packed + (t - first) * step;
                const vec x = i0 + LANES <= M ? load(from + i0) : load_part(from + i0, M - i0);
                store_before(tile + k * height, x, tile + height * K);
            }
        }
        return;
    }
    for (ptrdiff_t t = first; t < last; t++, packed += step) {
        const ptrdiff_t i0 = t * height, rows = M - i0 < height ? M - i0 : height;
        const REAL *end = packed + height * K;
        if (height <= LANES && !col && cs == 1) {
            for (ptrdiff_t k = 0; k < K; k += LANES) {
                const ptrdiff_t run = K - k < LANES ? K - k : LANES;
                vec v[LANES];
                for (int i = 0; i < LANES; i++) {
                    const REAL *from = A + (i < rows ? (row ? row[i0 + i] : (i0 + i) * rs) + k : 0);
                    v[i] = i >= rows ? splat(0) : run == LANES ? load(from) : load_part(from, run);
                }
                transpose(v);
                for (ptrdiff_t l = 0; l < run; l++)
                    store_before(packed + (k + l) * height, v[l], end);
            }
            continue;
        }
        for (ptrdiff_t k = 0; k < K; k++)
            for (ptrdiff_t i = 0; i < height; i++)
                packed[k * height + i] =
                    i < rows ? A[(row ? row[i0 + i] : (i0 + i) * rs) + (col ? col[k] : k * cs)] : 0;
    }
}

void KERNEL(gemm)(REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *packed,
                  const REAL *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) {
    product(C, ldc, A, rs, cs, TILE_HEIGHT, 0, packed, K * PANEL_WIDTH, PANEL_WIDTH, bias, M, N, K, accumulate);
}

void KERNEL(gemm_tiles)(REAL *C, ptrdiff_t ldc, const REAL *tiles, ptrdiff_t height, const REAL *packed,
                        const REAL *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) {
    /* tiles are empty if K is 0, but tile_step must not be 0, which would mean unpacked */
    const ptrdiff_t tile_step = K > 0 ? height * K : 1;
    product(C, ldc, tiles, 1, height, height, tile_step, packed, K * PANEL_WIDTH, PANEL_WIDTH, bias, M, N, K,
            accumulate);
}

void KERNEL(gemm_unpacked)(REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *B,
                           ptrdiff_t ldb, const REAL *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) {
    enum { BLOCK = 512, RUN = 64 };
    REAL panel[BLOCK * PANEL_WIDTH];
    const ptrdiff_t whole = N / PANEL_WIDTH * PANEL_WIDTH;
    if (M <= 2 * TILE_HEIGHT || K > BLOCK) {
        if (whole)
            product(C, ldc, A, rs, cs, TILE_HEIGHT, 0, B, PANEL_WIDTH, ldb, bias, M, whole, K, accumulate);
    } else {
        /* Three tiles or more read a panel often enough to pay for packing it. Its rows in B do not stay in the cache,
         * because their distance is often a power of two, and such rows share cache sets. */
        for (ptrdiff_t n = 0; n < whole; n += PANEL_WIDTH) {
            KERNEL(gemm_pack)(panel, 0, NULL, B + n, NULL, ldb, 1, K, PANEL_WIDTH, 0, 1);
            KERNEL(gemm)(C + n, ldc, A, rs, cs, panel, bias ? bias + n : NULL, M, PANEL_WIDTH, K, accumulate);
        }
    }
    /* pack the remaining columns, a few k at a time, because a full vector would read past the end of B */
    for (ptrdiff_t k = 0; whole < N && (k < K || k == 0); k += RUN) {
        const ptrdiff_t run = K - k < RUN ? K - k : RUN;
        KERNEL(gemm_pack)(panel, 0, NULL, B + k * ldb + whole, NULL, ldb, 1, run, N - whole, 0, 1);
        KERNEL(gemm)(C + whole, ldc, A + k * cs, rs, cs, panel, bias ? bias + whole : NULL, M, N - whole, run,
                     k > 0 || accumulate);
    }
}

void KERNEL(gemm_thin)(REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb,
                       const REAL *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) {
    for (ptrdiff_t i = 0; i < M && !accumulate; i++) {
        if (bias)
            memcpy(C + i * ldc, bias, (size_t)N * sizeof(REAL));
        else
            memset(C + i * ldc, 0, (size_t)N * sizeof(REAL));
    }
    ptrdiff_t k = 0;
    for (; k + 4 <= K; k += 4) {
        const REAL *b = B + k * ldb;
        for (ptrdiff_t i = 0; i < M; i++) {
            const REAL *a = A + i * lda + k;
            REAL *c = C + i * ldc;
            const vec a0 = splat(a[0]), a1 = splat(a[1]), a2 = splat(a[2]), a3 = splat(a[3]);
#define BODY(LOAD, STORE)                                                                                              \
    vec sum = LOAD(c);                                                                                                 \
    sum += a0 * LOAD(b);                                                                                               \
    sum += a1 * LOAD(b + ldb);                                                                                         \
    sum += a2 * LOAD(b + 2 * ldb);                                                                                     \
    sum += a3 * LOAD(b + 3 * ldb);                                                                                     \
    STORE(c, sum);
            FOR_VECTORS(N, BODY);
#undef BODY
        }
    }
    for (; k < K; k++)
        for (ptrdiff_t i = 0; i < M; i++) {
            const REAL *b = B + k * ldb;
            const vec a = splat(A[i * lda + k]);
            REAL *c = C + i * ldc;
#define BODY(LOAD, STORE) STORE(c, LOAD(c) + a * LOAD(b));
            FOR_VECTORS(N, BODY);
#undef BODY
        }
}

void KERNEL(gemm_thin_transposed)(REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t lda, const REAL *B, ptrdiff_t ldb,
                                  ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) {
    for (ptrdiff_t n = 0; n < N; n++) {
        const REAL *b = B + n * ldb;
        for (ptrdiff_t i = 0; i < M; i++) {
            const REAL *a = A + i * lda;
            vec sum[4] = {splat(0), splat(0), splat(0), splat(0)};
            ptrdiff_t j = 0;
            for (; j + 4 * LANES <= K; j += 4 * LANES)
                for (int q = 0; q < 4; q++)
                    sum[q] += load(a + j + q * LANES) * load(b + j + q * LANES);
            for (; j + LANES <= K; j += LANES)
                sum[0] += load(a + j) * load(b + j);
            REAL total = lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
            for (; j < K; j++)
                total += a[j] * b[j];
            C[i * ldc + n] = accumulate ? C[i * ldc + n] + total : total;
        }
    }
}

void KERNEL(gemm_outer)(REAL *C, ptrdiff_t ldc, REAL *colsum, const REAL *A, ptrdiff_t lda, const REAL *B,
                        ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) {
    for (ptrdiff_t i = 0; i < M; i++) {
        REAL *c = C + i * ldc;
#define BODY(LOAD, STORE)                                                                                              \
    vec sum = accumulate ? LOAD(c) : splat(0);                                                                         \
    for (ptrdiff_t k = 0; k < K; k++)                                                                                  \
        sum += splat(A[k * lda + i]) * LOAD(B + k * ldb);                                                              \
    STORE(c, sum);
        FOR_VECTORS(N, BODY);
#undef BODY
    }
    if (colsum) {
#define BODY(LOAD, STORE)                                                                                              \
    vec sum = splat(0);                                                                                                \
    for (ptrdiff_t k = 0; k < K; k++)                                                                                  \
        sum += LOAD(B + k * ldb);                                                                                      \
    STORE(colsum, sum);
        FOR_VECTORS(N, BODY);
#undef BODY
    }
}
