/* What follows the matrix product at a time step, row by row (kernels.h). */

void KERNEL(rnn_gates_forward)(REAL *h, REAL *h_out, const REAL *a, const REAL *input, ptrdiff_t H) {
#define BODY(LOAD, STORE)                                                                                              \
    const vec y = vector_tanh(input ? LOAD(a) + LOAD(input) : LOAD(a));                                                \
    STORE(h, y);                                                                                                       \
    if (h_out)                                                                                                         \
        STORE(h_out, y);
    FOR_VECTORS(H, BODY);
#undef BODY
}

void KERNEL(rnn_gates_backward)(REAL *da, const REAL *dh, const REAL *dh_next, const REAL *h, ptrdiff_t H) {
#define BODY(LOAD, STORE)                                                                                              \
    const vec y = LOAD(h);                                                                                             \
    vec d = dh ? LOAD(dh) : splat(0);                                                                                  \
    if (dh_next)                                                                                                       \
        d = d + LOAD(dh_next);                                                                                         \
    STORE(da, d *(splat(1) - y * y));
    FOR_VECTORS(H, BODY);
#undef BODY
}

void KERNEL(lstm_gates_forward)(REAL *gates, REAL *c, REAL *h, REAL *h_out, const REAL *input, const REAL *c_prev,
                                ptrdiff_t H) {
    REAL *const at_i = gates, *const at_f = gates + H, *const at_o = gates + 2 * H, *const at_g = gates + 3 * H;
#define BODY(LOAD, STORE)                                                                                              \
    vec i = LOAD(at_i), f = LOAD(at_f), o = LOAD(at_o), g = LOAD(at_g);                                                \
    if (input) {                                                                                                       \
        i += LOAD(input);                                                                                              \
        f += LOAD(input + H);                                                                                          \
        o += LOAD(input + 2 * H);                                                                                      \
        g += LOAD(input + 3 * H);                                                                                      \
    }                                                                                                                  \
    i = vector_sigmoid(i);                                                                                             \
    f = vector_sigmoid(f);                                                                                             \
    o = vector_sigmoid(o);                                                                                             \
    g = vector_tanh(g);                                                                                                \
    const vec cell = f * LOAD(c_prev) + i * g;                                                                         \
    const vec y = o * vector_tanh(cell);                                                                               \
    STORE(at_i, i);                                                                                                    \
    STORE(at_f, f);                                                                                                    \
    STORE(at_o, o);                                                                                                    \
    STORE(at_g, g);                                                                                                    \
    STORE(c, cell);                                                                                                    \
    STORE(h, y);                                                                                                       \
    if (h_out)                                                                                                         \
        STORE(h_out, y);
    FOR_VECTORS(H, BODY);
#undef BODY
}

void KERNEL(lstm_gates_backward)(REAL *da, REAL *dc, const REAL *dh, const REAL *dh_next, const REAL *gates,
                                 const REAL *c, const REAL *c_prev, ptrdiff_t H) {
    const REAL *const at_i = gates, *const at_f = gates + H, *const at_o = gates + 2 * H, *const at_g = gates + 3 * H;
    REAL *const to_i = da, *const to_f = da + H, *const to_o = da + 2 * H, *const to_g = da + 3 * H;
#define BODY(LOAD, STORE)                                                                                              \
    const vec i = LOAD(at_i), f = LOAD(at_f), o = LOAD(at_o), g = LOAD(at_g);                                          \
    vec d = dh ? LOAD(dh) : splat(0);                                                                                  \
    if (dh_next)                                                                                                       \
        d = d + LOAD(dh_next);                                                                                         \
    const vec y = vector_tanh(LOAD(c));                                                                                \
    const vec cell = LOAD(dc) + d * o * (splat(1) - y * y);                                                            \
    STORE(to_i, cell * g * i * (splat(1) - i));                                                                        \
    STORE(to_f, LOAD(c_prev) * cell * f * (splat(1) - f));                                                             \
    STORE(to_o, d * y * o * (splat(1) - o));                                                                           \
    STORE(to_g, cell * i * (splat(1) - g * g));                                                                        \
    STORE(dc, f *cell);
    FOR_VECTORS(H, BODY);
#undef BODY
}
