/* The row kernels of the LSTM cell (fastrnn.h): Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000,
 * without peepholes. Gate order i, f, o, g. */

/* c = f * c_prev + i * g and h = o * tanh(c), where i, f, o = sigmoid and g = tanh of the pre-activations. */
void KERNEL(lstm_forward) FRN_FORWARD(REAL) {
    (void)h_prev;
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

void KERNEL(lstm_backward) FRN_BACKWARD(REAL) {
    (void)h, (void)h_prev;
    const REAL *const at_i = gates, *const at_f = gates + H, *const at_o = gates + 2 * H, *const at_g = gates + 3 * H;
    REAL *const to_i = da, *const to_f = da + H, *const to_o = da + 2 * H, *const to_g = da + 3 * H;
#define BODY(LOAD, STORE)                                                                                              \
    const vec i = LOAD(at_i), f = LOAD(at_f), o = LOAD(at_o), g = LOAD(at_g);                                          \
    const vec d = LOAD(dh) + LOAD(dh_next);                                                                            \
    const vec y = vector_tanh(LOAD(c));                                                                                \
    const vec cell = LOAD(dc) + d * o * (splat(1) - y * y);                                                            \
    const vec to_previous = f * cell;                                                                                  \
    STORE(to_i, cell * g * i * (splat(1) - i));                                                                        \
    STORE(to_f, LOAD(c_prev) * cell * f * (splat(1) - f));                                                             \
    STORE(to_o, d * y * o * (splat(1) - o));                                                                           \
    STORE(to_g, cell * i * (splat(1) - g * g));                                                                        \
    STORE(dc, to_previous);
    FOR_VECTORS(H, BODY);
#undef BODY
}
