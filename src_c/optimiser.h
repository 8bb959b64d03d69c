/* Optimiser steps: bound by memory, so each is one pass over the parameter, its gradient and its state (kernels.h). */

/* The compiler turns the loop into one instruction. */
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
                  double alpha, double beta1, double beta2, double epsilon) {
    /* in double: 1 - 0.999f is off by 5e-5 */
    const REAL rest1 = (REAL)(1 - beta1), rest2 = (REAL)(1 - beta2);
#define BODY(LOAD, STORE)                                                                                              \
    const vec d = LOAD(dw);                                                                                            \
    const vec mean = splat((REAL)beta1) * LOAD(m) + splat(rest1) * d;                                                  \
    const vec square = splat((REAL)beta2) * LOAD(v) + splat(rest2) * d * d;                                            \
    STORE(next_m, mean);                                                                                               \
    STORE(next_v, square);                                                                                             \
    STORE(w, LOAD(w) - splat((REAL)alpha) * mean / (vector_sqrt(square) + splat((REAL)epsilon)));
    FOR_VECTORS(n, BODY);
#undef BODY
}
