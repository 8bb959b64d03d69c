/* Vectors of REAL in the width of the instruction set, and elementary functions of them. GCC and Clang compile their
 * vector types to AVX-512, AVX2, SSE2 or NEON. With other compilers, and with FRN_SCALAR, vectors have one element:
 * correct, but slow. */
#ifndef FRN_VECTOR_H
#define FRN_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define PREFETCH_WRITE(p) __builtin_prefetch((p), 1, 3)
#define PREFETCH_FAR(p) __builtin_prefetch((p), 0, 2)
#else
#define INLINE static inline
#define NOINLINE static
#define PREFETCH(p) ((void)0)
#define PREFETCH_WRITE(p) ((void)0)
#define PREFETCH_FAR(p) ((void)0)
#endif

/* TILE_HEIGHT x (PANEL_VECTORS * LANES) elements of C stay in registers: as many as fit besides the vectors of B and
 * the broadcast element of A. A high tile saves bandwidth, because each vector of B is used TILE_HEIGHT times. */
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, TILE_HEIGHT = 14, PANEL_VECTORS = 2 };
#define TILE_HEIGHT_MAX 14
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, TILE_HEIGHT = 6, PANEL_VECTORS = 2 };
#define TILE_HEIGHT_MAX 6
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, TILE_HEIGHT = 6, PANEL_VECTORS = 4 };
#define TILE_HEIGHT_MAX 6
#else
enum { VECTOR_BYTES = 16, TILE_HEIGHT = 6, PANEL_VECTORS = 2 };
#define TILE_HEIGHT_MAX 6
#endif

#define IS_DOUBLE (sizeof(REAL) == 8)

#if defined(REAL_IS_DOUBLE)
typedef int64_t lane_int;
#else
typedef int32_t lane_int;
#endif

#if (defined(__GNUC__) || defined(__clang__)) && !defined(FRN_SCALAR)
enum { LANES = VECTOR_BYTES / sizeof(REAL) };
typedef REAL vec __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL vec_unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef lane_int vec_int __attribute__((vector_size(VECTOR_BYTES)));
INLINE vec_int as_int(vec x) { return (vec_int)x; }
INLINE vec as_real(vec_int x) { return (vec)x; }
INLINE vec splat(REAL x) { return x - (vec){0}; }
INLINE vec_int splat_int(lane_int x) { return x - (vec_int){0}; }
INLINE vec_int shift_up(vec_int x, int bits) { return x << bits; }
INLINE vec_int greater(vec a, vec b) { return a > b; }
INLINE vec_int unequal(vec a, vec b) { return a != b; }
INLINE vec load(const REAL *p) { return *(const vec_unaligned *)p; }
INLINE void store(REAL *p, vec x) { *(vec_unaligned *)p = x; }
#else
enum { LANES = 1 };
typedef REAL vec;
typedef lane_int vec_int;
INLINE vec_int as_int(vec x) {
    vec_int y;
    memcpy(&y, &x, sizeof y);
    return y;
}
INLINE vec as_real(vec_int x) {
    vec y;
    memcpy(&y, &x, sizeof y);
    return y;
}
INLINE vec splat(REAL x) { return x; }
INLINE vec_int splat_int(lane_int x) { return x; }
INLINE vec_int shift_up(vec_int x, int bits) { return (vec_int)((uint64_t)x << bits); }
INLINE vec_int greater(vec a, vec b) { return -(vec_int)(a > b); }
INLINE vec_int unequal(vec a, vec b) { return -(vec_int)(a != b); }
INLINE vec load(const REAL *p) { return *p; }
INLINE void store(REAL *p, vec x) { *p = x; }
#endif

enum { PANEL_WIDTH = PANEL_VECTORS * LANES };

/* Load or store the first n lanes; the other lanes are zero. */
INLINE vec load_part(const REAL *p, ptrdiff_t n) {
    REAL lanes[LANES] = {0};
    memcpy(lanes, p, (size_t)n * sizeof(REAL));
    return load(lanes);
}
INLINE void store_part(REAL *p, vec x, ptrdiff_t n) {
    REAL lanes[LANES];
    store(lanes, x);
    memcpy(p, lanes, (size_t)n * sizeof(REAL));
}

/* Run BODY(LOAD, STORE) for each vector of n elements, starting at j. For the last, partial vector, LOAD(p) and
 * STORE(p, x) access the remaining lanes only. */
#define FOR_VECTORS(n, BODY)                                                                                           \
    do {                                                                                                               \
        ptrdiff_t j = 0;                                                                                               \
        for (; j + LANES <= (n); j += LANES) {                                                                         \
            BODY(LOAD_WHOLE, STORE_WHOLE)                                                                              \
        }                                                                                                              \
        if (j < (n)) {                                                                                                 \
            const ptrdiff_t rest = (n) - j;                                                                            \
            BODY(LOAD_REST, STORE_REST)                                                                                \
        }                                                                                                              \
    } while (0)
#define LOAD_WHOLE(p) load((p) + j)
#define STORE_WHOLE(p, x) store((p) + j, (x))
#define LOAD_REST(p) load_part((p) + j, rest)
#define STORE_REST(p, x) store_part((p) + j, (x), rest)

INLINE vec blend(vec_int mask, vec yes, vec no) { return as_real((as_int(yes) & mask) | (as_int(no) & ~mask)); }
/* A NaN in x stays NaN: comparisons with it are false, and the instructions return their second operand. */
#if defined(__AVX512F__) && defined(REAL_IS_DOUBLE)
INLINE vec at_most(vec x, vec limit) { return (vec)_mm512_min_pd((__m512d)limit, (__m512d)x); }
INLINE vec at_least(vec x, vec limit) { return (vec)_mm512_max_pd((__m512d)limit, (__m512d)x); }
#elif defined(__AVX512F__)
INLINE vec at_most(vec x, vec limit) { return (vec)_mm512_min_ps((__m512)limit, (__m512)x); }
INLINE vec at_least(vec x, vec limit) { return (vec)_mm512_max_ps((__m512)limit, (__m512)x); }
#else
INLINE vec at_most(vec x, vec limit) { return blend(greater(x, limit), limit, x); }
INLINE vec at_least(vec x, vec limit) { return blend(greater(limit, x), limit, x); }
#endif

/* 1 / x for a finite x >= 1. Division of the widest vectors is slow; an estimate of 14 bits and Newton's method are as
 * accurate except for the last bit. */
INLINE vec reciprocal(vec x) {
#if defined(__AVX512F__) && defined(REAL_IS_DOUBLE)
    vec y = (vec)_mm512_rcp14_pd((__m512d)x);
    y = y + y * (splat(1) - x * y);
    return y + y * (splat(1) - x * y);
#elif defined(__AVX512F__)
    const vec y = (vec)_mm512_rcp14_ps((__m512)x);
    return y + y * (splat(1) - x * y);
#else
    return splat(1) / x;
#endif
}

INLINE REAL lane_sum(vec x) {
    REAL lanes[LANES], sum = 0;
    store(lanes, x);
    for (int l = 0; l < LANES; l++)
        sum += lanes[l];
    return sum;
}
INLINE REAL lane_max(vec x) {
    REAL lanes[LANES];
    store(lanes, x);
    REAL top = lanes[0];
    for (int l = 1; l < LANES; l++)
        top = lanes[l] > top ? lanes[l] : top;
    return top;
}

/* ---- Elementary functions ----
 *
 * The exponential reduces x = k ln 2 + r with |r| <= ln(2)/2, and uses the Taylor polynomial of expm1(r). */

#if defined(REAL_IS_DOUBLE)
enum { MANTISSA_BITS = 52, EXPONENT_BIAS = 1023, TAYLOR_TERMS = 13, LOG_TERMS = 11 };
#define LN2_HIGH 6.93147180369123816490e-01 /* the low 32 bits are zero, so k * LN2_HIGH is exact */
#define LN2_LOW 1.90821492927058770002e-10
#define ROUNDER 6755399441055744.0     /* 1.5 * 2^52: adding it rounds to an integer in the low bits */
#define EXP_LOWEST -708.39641853226408 /* log of the smallest normal number */
#define EXP_ZERO -709.08956571282405
#define EXP_HIGHEST 709.78271289338397
#define EXP_ONE_SCALE 709.4 /* up to here, 2^k is finite */
#define TANH_IS_ONE 44.0
#define SQRT_HALF_BITS INT64_C(0x3fe6a09e667f3bcd)
#define SMALLEST_NORMAL 2.2250738585072014e-308
#else
enum { MANTISSA_BITS = 23, EXPONENT_BIAS = 127, TAYLOR_TERMS = 7, LOG_TERMS = 5 };
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define ROUNDER 12582912.0f
#define EXP_LOWEST -87.336544f
#define EXP_ZERO -88.029692f
#define EXP_HIGHEST 88.722839f
#define EXP_ONE_SCALE 88.3f
#define TANH_IS_ONE 20.0f
#define SQRT_HALF_BITS 0x3f3504f3
#define SMALLEST_NORMAL 1.17549435e-38f
#endif
#define LOG2_E ((REAL)1.4426950408889634074)

static const REAL inverse_factorial[] = {(REAL)1.0,
                                         (REAL)1.0,
                                         (REAL)0.5,
                                         (REAL)1.6666666666666666667e-1,
                                         (REAL)4.1666666666666666667e-2,
                                         (REAL)8.3333333333333333333e-3,
                                         (REAL)1.3888888888888888889e-3,
                                         (REAL)1.9841269841269841270e-4,
                                         (REAL)2.4801587301587301587e-5,
                                         (REAL)2.7557319223985890653e-6,
                                         (REAL)2.7557319223985890653e-7,
                                         (REAL)2.5052108385441718775e-8,
                                         (REAL)2.0876756987868098979e-9,
                                         (REAL)1.6059043836821614599e-10};

/* 2^k, for exponents k of normal numbers. */
INLINE vec power_of_two(vec_int k) { return as_real((k + splat_int(EXPONENT_BIAS)) << MANTISSA_BITS); }

/* Returns expm1(r), and k, for x = k ln 2 + r. */
INLINE vec expm1_reduced(vec x, vec_int *k) {
    const vec shifted = x * splat(LOG2_E) + splat(ROUNDER);
    const vec whole = shifted - splat(ROUNDER);
    *k = as_int(shifted) - as_int(splat(ROUNDER));
    vec r = x - whole * splat(LN2_HIGH);
    r = r - whole * splat(LN2_LOW);
    vec p = splat(inverse_factorial[TAYLOR_TERMS]);
    for (int n = TAYLOR_TERMS - 1; n >= 2; n--)
        p = p * r + splat(inverse_factorial[n]);
    return r + (r * r) * p;
}

/* exp(x) for x <= EXP_ONE_SCALE. At EXP_ZERO, k is -EXPONENT_BIAS, and power_of_two(k) is zero. */
INLINE vec vector_exp_bounded(vec x) {
    vec_int k;
    const vec p = expm1_reduced(at_least(x, splat(EXP_ZERO)), &k);
    const vec scale = power_of_two(k);
    return p * scale + scale;
}

INLINE vec vector_exp(vec x) {
    vec_int k;
    const vec bounded = at_least(at_most(x, splat(EXP_HIGHEST)), splat(EXP_LOWEST));
    const vec p = expm1_reduced(bounded, &k);
    /* 2^k overflows for the largest x: multiply by half of the exponent at a time */
    const vec_int half = k >> 1;
    vec y = (p + splat(1)) * power_of_two(half) * power_of_two(k - half);
    y = blend(greater(splat(EXP_LOWEST), x), splat(0), y);
    return blend(greater(x, splat(EXP_HIGHEST)), splat((REAL)INFINITY), y);
}

INLINE vec vector_sigmoid(vec x) {
    return reciprocal(splat(1) + vector_exp_bounded(at_most(splat(0) - x, splat(EXP_ONE_SCALE))));
}

/* tanh|x| = e / (e + 2) with e = expm1(2|x|), which is accurate near zero. */
INLINE vec vector_tanh(vec x) {
    const vec_int sign = as_int(x) & as_int(splat((REAL)-0.0));
    const vec magnitude = as_real(as_int(x) & ~as_int(splat((REAL)-0.0)));
    vec_int k;
    const vec p = expm1_reduced(at_most(magnitude + magnitude, splat(TANH_IS_ONE)), &k);
    const vec scale = power_of_two(k);
    const vec e = p * scale + (scale - splat(1));
    return as_real(as_int(e * reciprocal(e + splat(2))) | sign);
}

/* x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(s), s = (m - 1)/(m + 1). */
INLINE vec vector_log(vec x) {
    const vec_int bits = as_int(x);
    const vec_int k = (bits - splat_int(SQRT_HALF_BITS)) >> MANTISSA_BITS;
    const vec f = as_real(bits - (k << MANTISSA_BITS)) - splat(1);
    /* convert k, which is small, by adding it to the low bits of ROUNDER */
    const vec whole = as_real(as_int(splat(ROUNDER)) + k) - splat(ROUNDER);
    const vec s = f / (f + splat(2));
    const vec z = s * s;
    vec q = splat((REAL)2 / (2 * LOG_TERMS + 1));
    for (int n = LOG_TERMS - 1; n >= 1; n--)
        q = q * z + splat((REAL)2 / (REAL)(2 * n + 1));
    /* log(1 + f) = f - (f^2/2 - s (f^2/2 + z q)), in which the largest term f is exact */
    const vec half_square = f * f * splat((REAL)0.5);
    vec y = f - (half_square - s * (half_square + z * q));
    y = whole * splat(LN2_HIGH) + (y + whole * splat(LN2_LOW));
    y = blend(greater(splat(SMALLEST_NORMAL), x), splat((REAL)-INFINITY), y);
    y = blend(greater(splat(0), x), splat((REAL)NAN), y);
    y = blend(greater(x, splat(IS_DOUBLE ? (REAL)1.7976931348623157e308 : (REAL)3.4028234e38)), x, y);
    return blend(unequal(x, x), x, y);
}

#endif
