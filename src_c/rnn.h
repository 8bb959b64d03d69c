/* The row kernels of the vanilla RNN cell (fastrnn.h): h = tanh(a). */

void KERNEL(rnn_forward) FRN_FORWARD(REAL) {
    (void)c, (void)h_prev, (void)c_prev;
#define BODY(LOAD, STORE)                                                                                              \
    const vec y = vector_tanh(input ? LOAD(gates) + LOAD(input) : LOAD(gates));                                        \
    STORE(h, y);                                                                                                       \
    if (h_out)                                                                                                         \
        STORE(h_out, y);
    FOR_VECTORS(H, BODY);
#undef BODY
}

/* da = (dh + dh_next) * (1 - h * h) */
void KERNEL(rnn_backward) FRN_BACKWARD(REAL) {
    (void)dc, (void)gates, (void)c, (void)h_prev, (void)c_prev;
#define BODY(LOAD, STORE)                                                                                              \
    const vec y = LOAD(h);                                                                                             \
    const vec d = LOAD(dh) + LOAD(dh_next);                                                                            \
    const vec a = d * (splat(1) - y * y);                                                                              \
    STORE(da, a);
    FOR_VECTORS(H, BODY);
#undef BODY
}
