/* Scaled dot-product attention of one query over the places of a grid (kernels.h). */

static REAL dot_of(const REAL *x, const REAL *y, ptrdiff_t n) {
    vec sum[4] = {splat(0), splat(0), splat(0), splat(0)};
    ptrdiff_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES)
        for (int q = 0; q < 4; q++)
            sum[q] += load(x + j + q * LANES) * load(y + j + q * LANES);
    for (; j + LANES <= n; j += LANES)
        sum[0] += load(x + j) * load(y + j);
    if (j < n)
        sum[1] += load_part(x + j, n - j) * load_part(y + j, n - j);
    return lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

void KERNEL(attend)(REAL *context, REAL *weight, const REAL *query, const REAL *places, ptrdiff_t ld, ptrdiff_t P,
                    ptrdiff_t H, double scale) {
    REAL top = (REAL)-INFINITY, sum = 0;
    for (ptrdiff_t p = 0; p < P; p++) {
        weight[p] = (REAL)scale * dot_of(query, places + p * ld, H);
        top = weight[p] > top ? weight[p] : top; /* a NaN makes the sum NaN instead */
    }
#define BODY(LOAD, STORE) STORE(weight, vector_exp_bounded(LOAD(weight) - splat(top)));
    FOR_VECTORS(P, BODY);
#undef BODY
    for (ptrdiff_t p = 0; p < P; p++)
        sum += weight[p];
    for (ptrdiff_t p = 0; p < P; p++)
        weight[p] /= sum;
    /* four vectors at a time, in registers: each place is read in whole cache lines */
    ptrdiff_t k = 0;
    for (; k + 4 * LANES <= H; k += 4 * LANES) {
        vec mix[4] = {splat(0), splat(0), splat(0), splat(0)};
        for (ptrdiff_t p = 0; p < P; p++)
            for (int q = 0; q < 4; q++)
                mix[q] += splat(weight[p]) * load(places + p * ld + k + q * LANES);
        for (int q = 0; q < 4; q++)
            store(context + k + q * LANES, mix[q]);
    }
    for (; k < H; k++) {
        REAL mix = 0;
        for (ptrdiff_t p = 0; p < P; p++)
            mix += weight[p] * places[p * ld + k];
        context[k] = mix;
    }
}

void KERNEL(attend_backward)(REAL *dquery, REAL *dplaces, REAL *dscore, const REAL *dcontext, const REAL *query,
                             const REAL *weight, const REAL *places, ptrdiff_t ld, ptrdiff_t P, ptrdiff_t H,
                             double scale) {
    REAL mean = 0;
    for (ptrdiff_t p = 0; p < P; p++) {
        dscore[p] = dot_of(dcontext, places + p * ld, H);
        mean += weight[p] * dscore[p];
    }
    for (ptrdiff_t p = 0; p < P; p++) {
        const vec w = splat(weight[p]), d = splat((REAL)scale * (weight[p] * (dscore[p] - mean)));
        const REAL *const place = places + p * ld;
        REAL *const dplace = dplaces + p * ld;
#define BODY(LOAD, STORE)                                                                                              \
    STORE(dplace, LOAD(dplace) + w * LOAD(dcontext) + d * LOAD(query));                                                \
    STORE(dquery, LOAD(dquery) + d * LOAD(place));
        FOR_VECTORS(H, BODY);
#undef BODY
    }
}
