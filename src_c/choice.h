/* The choice of the next word: the best words of a row of scores, and a sampled word (kernels.h). */

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* Returns whether any lane of a mask is set. */
INLINE int any_lane(vec_int mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__) && !defined(__AVX__) && !defined(FRN_SCALAR)
    return _mm_movemask_epi8((__m128i)mask) != 0;
#else
    lane_int lanes[LANES], any = 0;
    memcpy(lanes, &mask, sizeof mask);
    for (int l = 0; l < LANES; l++)
        any |= lanes[l];
    return any != 0;
#endif
}

/* Returns whether word a with score x ranks above word b with score y. */
INLINE int precedes(REAL x, ptrdiff_t a, REAL y, ptrdiff_t b) { return x > y || (x == y && a < b); }

/* Replace the root of a heap of n words by word v with score x. The root is the word that ranks lowest. */
INLINE void sink(REAL *value, ptrdiff_t *word, ptrdiff_t n, REAL x, ptrdiff_t v) {
    ptrdiff_t at = 0;
    for (;;) {
        ptrdiff_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && precedes(value[child], word[child], value[child + 1], word[child + 1]))
            child++;
        if (!precedes(x, v, value[child], word[child]))
            break;
        value[at] = value[child];
        word[at] = word[child];
        at = child;
    }
    value[at] = x;
    word[at] = v;
}

/* Add word v with score x to a heap of n words. */
INLINE void rise(REAL *value, ptrdiff_t *word, ptrdiff_t n, REAL x, ptrdiff_t v) {
    ptrdiff_t at = n;
    while (at > 0) {
        const ptrdiff_t parent = (at - 1) / 2;
        if (!precedes(value[parent], word[parent], x, v))
            break;
        value[at] = value[parent];
        word[at] = word[parent];
        at = parent;
    }
    value[at] = x;
    word[at] = v;
}

enum { MAXIMA = 4 }; /* vectors of running maxima */

double KERNEL(top_words)(REAL *value, ptrdiff_t *word, ptrdiff_t *count, const REAL *x, ptrdiff_t V, ptrdiff_t k) {
    vec tops[MAXIMA];
    REAL lanes[MAXIMA * LANES];
    for (int q = 0; q < MAXIMA; q++)
        tops[q] = splat((REAL)-INFINITY);
    ptrdiff_t v = 0;
    for (; v + MAXIMA * LANES <= V; v += MAXIMA * LANES)
        for (int q = 0; q < MAXIMA; q++) {
            const vec s = load(x + v + q * LANES);
            tops[q] = blend(greater(s, tops[q]), s, tops[q]);
        }
    for (int q = 0; q < MAXIMA; q++)
        store(lanes + q * LANES, tops[q]);
    REAL top = (REAL)-INFINITY;
    for (int l = 0; l < MAXIMA * LANES; l++)
        top = lanes[l] > top ? lanes[l] : top;
    for (; v < V; v++)
        top = x[v] > top ? x[v] : top;

    /* The k-th largest of the maxima of the lanes is a lower bound of the k-th highest score. */
    REAL least = (REAL)-INFINITY;
    if (k <= MAXIMA * LANES) {
        ptrdiff_t kept = 0;
        for (int l = 0; l < MAXIMA * LANES; l++) {
            if (kept == k && !(lanes[l] > value[k - 1]))
                continue;
            ptrdiff_t at = kept < k ? kept++ : k - 1;
            for (; at > 0 && value[at - 1] < lanes[l]; at--)
                value[at] = value[at - 1];
            value[at] = lanes[l];
        }
        least = value[k - 1];
    }

    ptrdiff_t n = 0;
    REAL sum = 0;
    vec sums = splat(0);
#define CONSIDER(s, at)                                                                                                \
    if ((s) >= least && (s) > (REAL)-INFINITY) {                                                                       \
        if (n < k)                                                                                                     \
            rise(value, word, n++, (s), (at));                                                                         \
        else if ((s) > value[0])                                                                                       \
            sink(value, word, n, (s), (at));                                                                           \
        if (n == k)                                                                                                    \
            least = value[0];                                                                                          \
    }
    for (v = 0; v + LANES <= V; v += LANES) {
        const vec s = load(x + v);
        sums += vector_exp_bounded(s - splat(top));
        if (any_lane(~greater(splat(least), s)))
            for (ptrdiff_t j = v; j < v + LANES; j++)
                CONSIDER(x[j], j)
    }
    if (v < V) {
        REAL tail[LANES]; /* exclude the lanes beyond V from the sum */
        store(tail, vector_exp_bounded(load_part(x + v, V - v) - splat(top)));
        for (ptrdiff_t j = v; j < V; j++) {
            sum += tail[j - v];
            CONSIDER(x[j], j)
        }
    }
#undef CONSIDER
    sum += lane_sum(sums);
    for (ptrdiff_t last = n - 1; last > 0; last--) { /* sort the heap: its root is the lowest of the remaining words */
        const REAL s = value[last];
        const ptrdiff_t w = word[last];
        value[last] = value[0];
        word[last] = word[0];
        sink(value, word, last, s, w);
    }
    *count = n;
    if (top > (REAL)-INFINITY)
        return (double)top + log((double)sum);
    for (v = 0; v < V; v++)
        if (x[v] != x[v])
            return (double)x[v];
    return -INFINITY;
}

/* Weights are summed in runs of this many words, so that word_at() can skip whole runs. */
#define RUN_OF_WORDS (16 * LANES)

INLINE double run_sum(const REAL *p, ptrdiff_t n) {
    vec sums = splat(0);
    REAL rest = 0;
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES)
        sums += load(p + j);
    for (; j < n; j++)
        rest += p[j];
    return (double)lane_sum(sums) + (double)rest;
}

double KERNEL(word_weights)(REAL *weight, const REAL *x, ptrdiff_t V, REAL scale, REAL floor, ptrdiff_t last) {
    vec tops = splat((REAL)-INFINITY);
    ptrdiff_t v = 0;
    for (; v + LANES <= V; v += LANES) {
        const vec s = load(x + v);
        tops = blend(greater(s, tops), s, tops);
    }
    REAL top = lane_max(tops);
    for (; v < V; v++)
        top = x[v] > top ? x[v] : top;
#define BODY(LOAD, STORE)                                                                                              \
    const vec s = LOAD(x);                                                                                             \
    STORE(weight, blend(greater(splat(floor), s), splat(0), vector_exp_bounded((s - splat(top)) * splat(scale))));
    FOR_VECTORS(V, BODY);
#undef BODY
    for (v = last + 1; v < V; v++)
        if (x[v] == floor)
            weight[v] = 0;
    double total = 0;
    for (v = 0; v < V; v += RUN_OF_WORDS)
        total += run_sum(weight + v, V - v < RUN_OF_WORDS ? V - v : RUN_OF_WORDS);
    return total;
}

ptrdiff_t KERNEL(word_at)(const REAL *weight, ptrdiff_t V, double mass) {
    /* find the run in which the sum exceeds `mass`; if rounding keeps it below, the last run with a positive weight */
    ptrdiff_t first = 0, found = -1;
    double before = 0, sum = 0;
    if (mass != mass)
        return -1;
    for (ptrdiff_t v = 0; v < V && !(sum > mass); v += RUN_OF_WORDS) {
        const double run = run_sum(weight + v, V - v < RUN_OF_WORDS ? V - v : RUN_OF_WORDS);
        if (run > 0) {
            first = v;
            before = sum;
        }
        sum += run;
    }
    for (ptrdiff_t v = first; v < V && v < first + RUN_OF_WORDS && !(before > mass); v++)
        if (weight[v] > 0) {
            found = v;
            before += weight[v];
        }
    return found;
}
