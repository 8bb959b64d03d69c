/* Optimizer steps (kernels.h). They are bound by memory, so each is one pass over a parameter, its gradient and state.
 */

/* The compiler vectorizes the loop to one instruction. */
INLINE vec vector_sqrt(vec x) {
    REAL lanes[LANES];
    store(lanes, x);
    for (int l = 0; l < LANES; l++)
        lanes[l] = IS_DOUBLE ? (REAL)sqrt((double)lanes[l]) : (REAL)sqrtf((float)lanes[l]);
    return load(lanes);
}

void KERNEL(sgd)(REAL *w, const REAL *dw, ptrdiff_t n, double learning_rate) {
#define BODY(LOAD, STORE) STORE(w, LOAD(w) - splat((REAL)learning_rate) * LOAD(dw));
    FOR_VECTORS(n, BODY);
#undef BODY
}

void KERNEL(sgd_momentum)(REAL *w, REAL *next, const REAL *velocity, const REAL *dw, ptrdiff_t n, double learning_rate,
                          double momentum) {
#define BODY(LOAD, STORE)                                                                                              \
    const vec v = splat((REAL)momentum) * LOAD(velocity) - splat((REAL)learning_rate) * LOAD(dw);                      \
    STORE(next, v);                                                                                                    \
    STORE(w, LOAD(w) + v);
    FOR_VECTORS(n, BODY);
#undef BODY
}

void KERNEL(rmsprop)(REAL *w, REAL *next, const REAL *cache, const REAL *dw, ptrdiff_t n, double learning_rate,
                     double decay_rate, double epsilon) {
    const REAL rest_rate = (REAL)(1 - decay_rate);
#define BODY(LOAD, STORE)                                                                                              \
    const vec d = LOAD(dw);                                                                                            \
    const vec v = splat((REAL)decay_rate) * LOAD(cache) + splat(rest_rate) * d * d;                                    \
    STORE(next, v);                                                                                                    \
    STORE(w, LOAD(w) - splat((REAL)learning_rate) * d / (vector_sqrt(v) + splat((REAL)epsilon)));
    FOR_VECTORS(n, BODY);
#undef BODY
}

void KERNEL(adam)(REAL *w, REAL *next_m, REAL *next_v, const REAL *m, const REAL *v, const REAL *dw, ptrdiff_t n,
                  double alpha, double beta1, double beta2, double epsilon, double keep) {
    /* computed in double: 1 - 0.999f has a relative error of 5e-5 */
    const REAL rest1 = (REAL)(1 - beta1), rest2 = (REAL)(1 - beta2);
#define BODY(LOAD, STORE)                                                                                              \
    const vec d = LOAD(dw);                                                                                            \
    const vec mean = splat((REAL)beta1) * LOAD(m) + splat(rest1) * d;                                                  \
    const vec square = splat((REAL)beta2) * LOAD(v) + splat(rest2) * d * d;                                            \
    STORE(next_m, mean);                                                                                               \
    STORE(next_v, square);                                                                                             \
    STORE(w, splat((REAL)keep) * LOAD(w) - splat((REAL)alpha) * mean / (vector_sqrt(square) + splat((REAL)epsilon)));
    FOR_VECTORS(n, BODY);
#undef BODY
}

void KERNEL(clip)(REAL *x, ptrdiff_t n, double limit) {
    const vec high = splat((REAL)limit), low = splat((REAL)-limit);
#define BODY(LOAD, STORE)                                                                                              \
    const vec s = LOAD(x);                                                                                             \
    STORE(x, blend(greater(s, high), high, blend(greater(low, s), low, s)));
    FOR_VECTORS(n, BODY);
#undef BODY
}

void KERNEL(scale)(REAL *x, ptrdiff_t n, double factor) {
#define BODY(LOAD, STORE) STORE(x, splat((REAL)factor) * LOAD(x));
    FOR_VECTORS(n, BODY);
#undef BODY
}

double KERNEL(sum_of_squares)(const REAL *x, ptrdiff_t n) {
    /* sum short runs in REAL and the runs in double: the rounding error does not grow with n */
    enum { RUN = 64 * LANES };
    double sum = 0;
    ptrdiff_t j = 0;
    while (j + LANES <= n) {
        vec squares = splat(0);
        for (const ptrdiff_t end = j + RUN; j + LANES <= n && j < end; j += LANES) {
            const vec s = load(x + j);
            squares += s * s;
        }
        REAL lanes[LANES];
        store(lanes, squares);
        for (int l = 0; l < LANES; l++)
            sum += (double)lanes[l];
    }
    for (; j < n; j++)
        sum += (double)x[j] * (double)x[j];
    if (sum == INFINITY) /* a square has overflowed REAL */
        for (j = 0, sum = 0; j < n; j++)
            sum += (double)x[j] * (double)x[j];
    return sum;
}

void KERNEL(average)(REAL *mean, const REAL *w, ptrdiff_t n, double rate) {
#define BODY(LOAD, STORE)                                                                                              \
    const vec m = LOAD(mean);                                                                                          \
    STORE(mean, m + splat((REAL)rate) * (LOAD(w) - m));
    FOR_VECTORS(n, BODY);
#undef BODY
}
