/* Operations on rows: softmax, argmax, gather, dropout and element-wise functions (kernels.h). */

/* Returns the mean of x (n,), accumulated in double. */
static double mean_of(const REAL *x, ptrdiff_t n) {
    double sum = 0;
    for (ptrdiff_t j = 0; j < n; j++)
        sum += (double)x[j];
    return sum / (double)n;
}

double KERNEL(softmax_loss)(REAL *dx, const REAL *x, ptrdiff_t V, ptrdiff_t target, REAL weight, double smoothing) {
    vec tops = splat((REAL)-INFINITY);
    ptrdiff_t v = 0;
    for (; v + LANES <= V; v += LANES) {
        const vec s = load(x + v);
        tops = blend(greater(s, tops) | unequal(s, s), s, tops);
    }
    REAL top = (REAL)-INFINITY;
    REAL lanes[LANES];
    store(lanes, tops);
    for (int l = 0; l < LANES; l++)
        if (lanes[l] > top || lanes[l] != lanes[l])
            top = lanes[l];
    for (; v < V; v++)
        if (x[v] > top || x[v] != x[v])
            top = x[v];
    /* sum(q * x) */
    double wanted = (double)x[target];
    if (smoothing != 0)
        wanted += smoothing * (mean_of(x, V) - wanted);
    vec sums = splat(0);
    REAL sum = 0;
#define BODY(LOAD, STORE)                                                                                              \
    const vec e = vector_exp_bounded(LOAD(x) - splat(top));                                                            \
    STORE(dx, e);                                                                                                      \
    sums += e;
    ptrdiff_t j = 0;
    for (; j + LANES <= V; j += LANES) {
        BODY(LOAD_WHOLE, STORE_WHOLE)
    }
    if (j < V) {
        /* exclude the lanes beyond V from the sum */
        const ptrdiff_t rest = V - j;
        REAL tail[LANES];
        store(tail, vector_exp_bounded(load_part(x + j, rest) - splat(top)));
        memcpy(dx + j, tail, (size_t)rest * sizeof(REAL));
        for (ptrdiff_t l = 0; l < rest; l++)
            sum += tail[l];
    }
#undef BODY
    sum += lane_sum(sums);
    const vec scale = splat(weight / sum), shared = splat((REAL)((double)weight * smoothing / (double)V));
#define BODY(LOAD, STORE) STORE(dx, scale *LOAD(dx) - shared);
    FOR_VECTORS(V, BODY);
#undef BODY
    dx[target] -= (REAL)((double)weight * (1 - smoothing));
    return log((double)sum) - (wanted - (double)top);
}

ptrdiff_t KERNEL(argmax)(const REAL *x, ptrdiff_t n) {
    vec tops = splat((REAL)-INFINITY);
    vec_int bad = splat_int(0);
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        const vec s = load(x + j);
        tops = blend(greater(s, tops), s, tops);
        bad |= unequal(s, s);
    }
    lane_int lanes[LANES], any_bad = 0;
    memcpy(lanes, &bad, sizeof bad);
    for (int l = 0; l < LANES; l++)
        any_bad |= lanes[l];
    REAL top = lane_max(tops);
    for (; j < n; j++) {
        if (x[j] > top)
            top = x[j];
        any_bad |= x[j] != x[j];
    }
    for (ptrdiff_t i = 0; i < n; i++)
        if (any_bad ? x[i] != x[i] : x[i] == top)
            return i;
    return 0;
}

void KERNEL(rows_sum)(REAL *out, const REAL *x, const ptrdiff_t *row, ptrdiff_t rows, ptrdiff_t n) {
    if (rows == 0) {
        memset(out, 0, (size_t)n * sizeof(REAL));
        return;
    }
    if (rows == 1) {
        memcpy(out, x + row[0], (size_t)n * sizeof(REAL));
        return;
    }
    /* four vectors at a time, so that each row is read in whole cache lines */
    ptrdiff_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
        vec sum[4];
        for (int q = 0; q < 4; q++)
            sum[q] = load(x + row[0] + j + q * LANES);
        for (ptrdiff_t r = 1; r < rows; r++)
            for (int q = 0; q < 4; q++)
                sum[q] += load(x + row[r] + j + q * LANES);
        for (int q = 0; q < 4; q++)
            store(out + j + q * LANES, sum[q]);
    }
    for (; j < n; j++) {
        REAL sum = x[row[0] + j];
        for (ptrdiff_t r = 1; r < rows; r++)
            sum += x[row[r] + j];
        out[j] = sum;
    }
}

void KERNEL(dropout)(REAL *y, const REAL *x, ptrdiff_t n, uint32_t key, double rate) {
    /* compare the random integers rather than floats: kept if at least rate * 2^24 */
    const uint32_t least = (uint32_t)ceil(rate * 0x1p24);
    const REAL factor = (REAL)(1 / (1 - rate));
    for (ptrdiff_t j = 0; j < n; j++) {
        const REAL scaled = factor * x[j];
        y[j] = frn_random_bits(key, (uint32_t)j) >= least ? scaled : 0;
    }
}

#define ELEMENTWISE(name)                                                                                              \
    void KERNEL(name)(REAL *y, const REAL *x, ptrdiff_t n) { FOR_VECTORS(n, BODY); }
#define BODY(LOAD, STORE) STORE(y, vector_exp(LOAD(x)));
ELEMENTWISE(exp)
#undef BODY
#define BODY(LOAD, STORE) STORE(y, vector_log(LOAD(x)));
ELEMENTWISE(log)
#undef BODY
#define BODY(LOAD, STORE) STORE(y, vector_tanh(LOAD(x)));
ELEMENTWISE(tanh)
#undef BODY
/* vector_sigmoid() has a denormal as its smallest result: make it zero, even if denormals are not flushed */
#define BODY(LOAD, STORE)                                                                                              \
    const vec s = LOAD(x);                                                                                             \
    STORE(y, blend(greater(splat(EXP_LOWEST), s), splat(0), vector_sigmoid(s)));
ELEMENTWISE(sigmoid)
#undef BODY
