/* The matrix product in bfloat16 for one instruction set (kernels_bf16.h). The build compiles this file once for each,
 * with -DFRN_VARIANT=_avx512_bf16 and so on. Without the instructions of AVX512_BF16, the two halves of a pair are
 * multiplied as float32, which gives the same bits. */
#include "fastrnn.h"

#define REAL float

#include "sizes.h"
#include "vector.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define KERNEL(name) PASTE(frn_##name##_bf16, FRN_VARIANT)
#define FRN_KERNEL(result, name, arguments) result KERNEL(name) arguments
#include "kernels_bf16.h"
#undef FRN_KERNEL

/* ---- Pairs ---- */

#define UPPER_HALF ((int32_t)0xffff0000)

INLINE vec splat_operand(const float *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return as_real(splat_int(bits));
}

#if defined(__AVX512BF16__) && !defined(FRN_SCALAR)
#define OPERAND_PASSES 1
INLINE vec operand_part(vec x, int pass) {
    (void)pass;
    return x;
}
INLINE vec multiply_add(vec c, vec a, vec b) {
    return (vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)as_int(a), (__m512bh)as_int(b));
}

/* Pairs of the elements of x and of y, lane by lane. */
INLINE vec pairs_of(vec x, vec y) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)y));
    return as_real((vec_int)_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* Pairs of the 2 * LANES elements at p. */
INLINE vec load_pairs(const float *p) {
    return as_real((vec_int)(__m512i)_mm512_cvtne2ps_pbh((__m512)load(p + LANES), (__m512)load(p)));
}
#else
/* The odd element of each pair, then the even one: VDPBF16PS adds them in this order. */
#define OPERAND_PASSES 2
INLINE vec operand_part(vec x, int pass) {
    return as_real(pass == 0 ? as_int(x) & splat_int(UPPER_HALF) : shift_up(as_int(x), 16));
}
INLINE vec multiply_add(vec c, vec a, vec b) { return c + a * b; }

/* Round to bfloat16: the lower half of each result is zero. */
INLINE vec_int rounded(vec x) {
    const vec_int bits = as_int(x), exponent = splat_int(0x7f800000);
    /* masks, from the signs of differences */
    const vec_int is_nan = (exponent - (bits & splat_int(0x7fffffff))) >> 31;
    const vec_int is_denormal = ((bits & exponent) - splat_int(1)) >> 31;
    /* adding one less than half of the last place, or half of it if that place is odd, carries into the upper half */
    const vec_int nearest = (bits & ~is_nan) + splat_int(0x7fff) + ((bits >> 16) & splat_int(1));
    const vec_int number = nearest & (~is_denormal | splat_int(INT32_MIN));
    return ((number & ~is_nan) | ((bits | splat_int(0x00400000)) & is_nan)) & splat_int(UPPER_HALF);
}
INLINE vec pairs_of(vec x, vec y) { return as_real(((rounded(x) >> 16) & splat_int(0xffff)) | rounded(y)); }
INLINE vec load_pairs(const float *p) {
    float even[LANES], odd[LANES];
    for (int l = 0; l < LANES; l++) {
        even[l] = p[2 * l];
        odd[l] = p[2 * l + 1];
    }
    return pairs_of(load(even), load(odd));
}
#endif

#include "product.h"

/* The pairs of the first n elements, n <= 2 * LANES; the other lanes are zero. */
INLINE vec load_pairs_part(const float *p, ptrdiff_t n) {
    float elements[2 * LANES] = {0};
    memcpy(elements, p, (size_t)n * sizeof(float));
    return load_pairs(elements);
}

void KERNEL(round)(float *pairs, const float *x, ptrdiff_t n) {
    ptrdiff_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES)
        store(pairs + j / 2, load_pairs(x + j));
    if (j < n)
        store_part(pairs + j / 2, load_pairs_part(x + j, n - j), ceil_div(n - j, 2));
}

/* ---- Packing, in the cases of gemm.h ---- */

/* One row of a panel: the pairs of `width` columns at rows k and k + 1 of B. `second` is NULL past the last row. */
INLINE void pack_pair_of_rows(float *to, const float *first, const float *second, ptrdiff_t cs, ptrdiff_t width) {
    for (ptrdiff_t n = 0; n < PANEL_WIDTH; n += LANES) {
        float even[LANES] = {0}, odd[LANES] = {0};
        for (ptrdiff_t l = 0; l < LANES && n + l < width; l++) {
            even[l] = first[(n + l) * cs];
            odd[l] = second ? second[(n + l) * cs] : 0;
        }
        store(to + n, pairs_of(load(even), load(odd)));
    }
}

void KERNEL(gemm_pack)(float *packed, ptrdiff_t step, float *colsum, const float *B, const ptrdiff_t *row, ptrdiff_t rs,
                       ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last) {
    enum { AHEAD = 32 }; /* rows: the distance at which those of a large B arrive in time */
#define ROW_AT(k) (B + (row ? row[k] : (k) * rs) + n0 * cs)
    for (ptrdiff_t p = first; p < last; p++, packed += step) {
        const ptrdiff_t n0 = p * PANEL_WIDTH, width = N - n0 < PANEL_WIDTH ? N - n0 : PANEL_WIDTH;
        if (cs == 1 && width == PANEL_WIDTH) {
            vec sum[PANEL_VECTORS];
            for (int j = 0; j < PANEL_VECTORS; j++)
                sum[j] = splat(0);
            for (ptrdiff_t k = 0; k < K; k += 2) {
                const float *even = ROW_AT(k), *odd = k + 1 < K ? ROW_AT(k + 1) : NULL;
                const ptrdiff_t later = k + AHEAD < K ? k + AHEAD : k;
                for (int j = 0; j < PANEL_VECTORS; j++) {
                    PREFETCH(ROW_AT(later) + j * LANES);
                    PREFETCH(ROW_AT(later + (later + 1 < K)) + j * LANES);
                    const vec x = load(even + j * LANES), y = odd ? load(odd + j * LANES) : splat(0);
                    store(packed + k / 2 * PANEL_WIDTH + j * LANES, pairs_of(x, y));
                    sum[j] = sum[j] + x;
                    if (odd)
                        sum[j] = sum[j] + y;
                }
            }
            if (colsum)
                for (int j = 0; j < PANEL_VECTORS; j++)
                    store(colsum + n0 + j * LANES, sum[j]);
            continue;
        }
        if (rs == 1 && !row && !colsum && width == PANEL_WIDTH) { /* B transposed: each column is contiguous */
            for (ptrdiff_t k = 0; k < K; k += 2 * LANES) {
                const ptrdiff_t run = K - k < 2 * LANES ? K - k : 2 * LANES;
                for (int j = 0; j < PANEL_VECTORS; j++) {
                    vec v[LANES];
                    for (int l = 0; l < LANES; l++) {
                        const float *from = B + (n0 + j * LANES + l) * cs + k;
                        v[l] = run == 2 * LANES ? load_pairs(from) : load_pairs_part(from, run);
                    }
                    transpose(v);
                    for (ptrdiff_t l = 0; l < ceil_div(run, 2); l++)
                        store(packed + (k / 2 + l) * PANEL_WIDTH + j * LANES, v[l]);
                }
            }
            continue;
        }
        for (ptrdiff_t k = 0; k < K; k += 2)
            pack_pair_of_rows(packed + k / 2 * PANEL_WIDTH, ROW_AT(k), k + 1 < K ? ROW_AT(k + 1) : NULL, cs, width);
        for (ptrdiff_t n = 0; n < width && colsum; n++) {
            float sum = 0;
            for (ptrdiff_t k = 0; k < K; k++)
                sum += ROW_AT(k)[n * cs];
            colsum[n0 + n] = sum;
        }
    }
#undef ROW_AT
}

void KERNEL(gemm_pack_rows)(float *packed, ptrdiff_t step, const float *A, const ptrdiff_t *row, ptrdiff_t rs,
                            const ptrdiff_t *col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height,
                            ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t depth = ceil_div(K, 2);
    if (height <= LANES && !row && rs == 1) { /* A transposed: the rows of a tile are contiguous */
        for (ptrdiff_t k = 0; k < K; k += 2) {
            const float *even = A + (col ? col[k] : k * cs), *odd = NULL;
            if (k + 1 < K)
                odd = A + (col ? col[k + 1] : (k + 1) * cs);
            for (ptrdiff_t t = first; t < last; t++) {
                const ptrdiff_t i0 = t * height;
                float *tile = packed + (t - first) * step;
                vec x, y = splat(0);
                if (i0 + LANES <= M) {
                    x = load(even + i0);
                    if (odd)
                        y = load(odd + i0);
                } else {
                    x = load_part(even + i0, M - i0);
                    if (odd)
                        y = load_part(odd + i0, M - i0);
                }
                store_before(tile + k / 2 * height, pairs_of(x, y), tile + height * depth);
            }
        }
        return;
    }
    for (ptrdiff_t t = first; t < last; t++, packed += step) {
        const ptrdiff_t i0 = t * height, rows = M - i0 < height ? M - i0 : height;
        if (height <= LANES && !col && cs == 1) {
            for (ptrdiff_t k = 0; k < K; k += 2 * LANES) {
                const ptrdiff_t run = K - k < 2 * LANES ? K - k : 2 * LANES;
                vec v[LANES];
                for (int i = 0; i < LANES; i++) {
                    const float *from = A + (i < rows ? (row ? row[i0 + i] : (i0 + i) * rs) + k : 0);
                    v[i] = i >= rows ? splat(0) : run == 2 * LANES ? load_pairs(from) : load_pairs_part(from, run);
                }
                transpose(v);
                for (ptrdiff_t l = 0; l < ceil_div(run, 2); l++)
                    store_before(packed + (k / 2 + l) * height, v[l], packed + height * depth);
            }
            continue;
        }
        for (ptrdiff_t k = 0; k < K; k += 2)
            for (ptrdiff_t i = 0; i < height; i++) {
                float pair[2] = {0, 0};
                for (ptrdiff_t s = 0; s < 2 && k + s < K && i < rows; s++)
                    pair[s] = A[(row ? row[i0 + i] : (i0 + i) * rs) + (col ? col[k + s] : (k + s) * cs)];
                store_part(packed + k / 2 * height + i, load_pairs_part(pair, 2), 1);
            }
    }
}

/* ---- Products ---- */

void KERNEL(gemm)(float *C, ptrdiff_t ldc, const float *A, ptrdiff_t rs, const float *packed, const float *bias,
                  ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, int accumulate) {
    product(C, ldc, A, rs, 1, TILE_HEIGHT, 0, packed, depth * PANEL_WIDTH, PANEL_WIDTH, bias, M, N, depth, accumulate);
}

void KERNEL(gemm_tiles)(float *C, ptrdiff_t ldc, const float *tiles, ptrdiff_t height, const float *packed,
                        const float *bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, int accumulate) {
    /* tiles are empty if depth is 0, but tile_step must not be 0, which would mean unpacked */
    const ptrdiff_t tile_step = depth > 0 ? height * depth : 1;
    product(C, ldc, tiles, 1, height, height, tile_step, packed, depth * PANEL_WIDTH, PANEL_WIDTH, bias, M, N, depth,
            accumulate);
}

static double fma_flops(ptrdiff_t rounds) {
    enum { CHAINS = 16 }; /* more than two units with a latency of 6 cycles need */
    vec sum[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        sum[i] = splat((float)i);
    const vec x = pairs_of(splat(0.5f), splat(0.25f)), y = pairs_of(splat(1e-3f), splat(1e-2f));
    for (ptrdiff_t r = 0; r < rounds; r++)
        for (int pass = 0; pass < OPERAND_PASSES; pass++)
            for (int i = 0; i < CHAINS; i++)
                sum[i] = multiply_add(sum[i], operand_part(x, pass), operand_part(y, pass));
    static volatile float sink; /* so that the compiler keeps the loop */
    for (int i = 0; i < CHAINS; i++)
        sink = lane_sum(sum[i]);
    (void)sink;
    return 4.0 * CHAINS * LANES * (double)rounds;
}

void KERNEL(install)(frn_variant *variant);
void KERNEL(install)(frn_variant *variant) {
#define FRN_KERNEL(result, name, arguments) frn_table.name##_bf16 = KERNEL(name)
#include "kernels_bf16.h"
    variant->panel_width = PANEL_WIDTH;
    variant->tile_height = TILE_HEIGHT;
    variant->fma_flops = fma_flops;
}
