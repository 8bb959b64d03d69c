/* The loops of a matrix product over packed or strided operands, and what packing them needs. The matrix product of
 * REAL (gemm.h) and that of bfloat16 (bfloat16.c) share them.
 *
 * An operand consists of elements of the size of REAL. The includer defines what one is and how two are multiplied:
 *   splat_operand(p)         a vector whose lanes are all the element at p
 *   OPERAND_PASSES           how often multiply_add() is called for each pair of elements
 *   operand_part(x, pass)    what multiply_add() takes of a vector of elements in a pass
 *   multiply_add(c, a, b)    c + a * b
 */

/* K is divided into blocks of up to this size, so that a tile of A and a panel of B stay in the cache. */
enum { BLOCK_K = 2048 };

INLINE ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

#if defined(__GNUC__) && !defined(__clang__) && !defined(FRN_SCALAR)
INLINE vec exchange(vec a, vec b, int distance, int upper) {
    vec_int from; /* a constant after inlining, so this is one shuffle */
    for (int l = 0; l < LANES; l++) {
        const int high = (l & distance) != 0;
        from[l] = upper ? (high ? LANES + l : l + distance) : (high ? LANES + l - distance : l);
    }
    return __builtin_shuffle(a, b, from);
}

#define EXCHANGE(distance)                                                                                             \
    for (int i = 0; distance < LANES && i < LANES; i++)                                                                \
        if (!(i & distance)) {                                                                                         \
            const vec a = v[i], b = v[(i + distance) % LANES];                                                         \
            v[i] = exchange(a, b, distance, 0);                                                                        \
            v[(i + distance) % LANES] = exchange(a, b, distance, 1);                                                   \
        }

/* Transpose v (LANES, LANES): pairs of vectors exchange halves, then quarters, and so on. */
INLINE void transpose(vec *v){EXCHANGE(8) EXCHANGE(4) EXCHANGE(2) EXCHANGE(1)}
#else
INLINE void transpose(vec *v) {
    REAL from[LANES * LANES], to[LANES];
    for (int i = 0; i < LANES; i++)
        store(from + i * LANES, v[i]);
    for (int i = 0; i < LANES; i++) {
        for (int l = 0; l < LANES; l++)
            to[l] = from[l * LANES + i];
        v[i] = load(to);
    }
}
#endif

/* Store the lanes of a vector at p that are before `end`. */
INLINE void store_before(REAL *p, vec x, const REAL *end) {
    if (p + LANES <= end) {
        store(p, x);
    } else {
        store_part(p, x, end - p);
    }
}

enum { FROM_ZERO, FROM_BIAS, FROM_C };

/* C (rows, PANEL_WIDTH) = start + A (rows, K) panel (K, PANEL_WIDTH), accumulated in registers; the rows of the panel
 * are `step` elements apart. `rows`, `packed` and `stream` are constants after inlining.
 *
 * packed: the rows of A are contiguous (rs is 1), which is a few percent faster. Otherwise the rows are addressed from
 * three pointers with the scale factors 1, 2 and 4, because a pointer for each row would not fit in the general
 * registers. stream: the panel is not in the first-level cache yet, so prefetch it. Meanwhile, `next` is prefetched
 * into the second-level cache, next_step bytes for each k. */
INLINE void tile(const int rows, const int packed, const int stream, ptrdiff_t K, const REAL *A, ptrdiff_t rs,
                 ptrdiff_t cs, const REAL *panel, ptrdiff_t step, const char *next, ptrdiff_t next_step, REAL *C,
                 ptrdiff_t ldc, const REAL *bias, int start) {
    vec c[TILE_HEIGHT][PANEL_VECTORS];
    const REAL *a0 = A, *a5 = A + 5 * rs, *a10 = A + 10 * rs;
    const ptrdiff_t rs2 = 2 * rs, rs3 = 3 * rs, rs4 = 4 * rs;
    const REAL *ahead = panel + 12 * step;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < PANEL_VECTORS; j++) {
            c[i][j] = splat(0);
            PREFETCH_WRITE(C + i * ldc + j * LANES);
        }
    for (ptrdiff_t k = 0; k < K; k++) {
        for (int j = 0; j < PANEL_VECTORS && stream; j++)
            PREFETCH(ahead + j * LANES);
        PREFETCH_FAR(next);
        for (int pass = 0; pass < OPERAND_PASSES; pass++) {
            vec b[PANEL_VECTORS];
            for (int j = 0; j < PANEL_VECTORS; j++)
                b[j] = operand_part(load(panel + j * LANES), pass);
#define ROW(i, address)                                                                                                \
    if (i < rows && i < TILE_HEIGHT) {                                                                                 \
        const vec a = operand_part(splat_operand(packed ? a0 + i : (address)), pass);                                  \
        for (int j = 0; j < PANEL_VECTORS; j++) {                                                                      \
            const int row = i < TILE_HEIGHT ? i : 0;                                                                   \
            c[row][j] = multiply_add(c[row][j], a, b[j]);                                                              \
        }                                                                                                              \
    }
            ROW(0, a0)
            ROW(1, a0 + rs)
            ROW(2, a0 + rs2)
            ROW(3, a0 + rs3)
            ROW(4, a0 + rs4)
            ROW(5, a5)
            ROW(6, a5 + rs)
            ROW(7, a5 + rs2)
            ROW(8, a5 + rs3)
            ROW(9, a5 + rs4)
            ROW(10, a10)
            ROW(11, a10 + rs)
            ROW(12, a10 + rs2)
            ROW(13, a10 + rs3)
#undef ROW
        }
        panel += step;
        ahead += step;
        next += next_step;
        a0 += cs;
        a5 += cs;
        a10 += cs;
    }
    for (int j = 0; j < PANEL_VECTORS; j++) {
        const vec from = start == FROM_BIAS ? load(bias + j * LANES) : splat(0);
        for (int i = 0; i < rows; i++) {
            REAL *to = C + i * ldc + j * LANES;
            store(to, c[i][j] + (start == FROM_C ? load(to) : from));
        }
    }
}

#define TILE_OF(n)                                                                                                     \
    NOINLINE void tile_##n(ptrdiff_t K, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, const REAL *panel, ptrdiff_t step,  \
                           const char *next, ptrdiff_t next_step, REAL *C, ptrdiff_t ldc, const REAL *bias, int start, \
                           int stream) {                                                                               \
        if (rs == 1 && stream)                                                                                         \
            tile(n, 1, 1, K, A, 1, cs, panel, step, next, next_step, C, ldc, bias, start);                             \
        else if (rs == 1)                                                                                              \
            tile(n, 1, 0, K, A, 1, cs, panel, step, next, next_step, C, ldc, bias, start);                             \
        else if (stream)                                                                                               \
            tile(n, 0, 1, K, A, rs, cs, panel, step, next, next_step, C, ldc, bias, start);                            \
        else                                                                                                           \
            tile(n, 0, 0, K, A, rs, cs, panel, step, next, next_step, C, ldc, bias, start);                            \
    }
TILE_OF(1)
TILE_OF(2)
TILE_OF(3)
TILE_OF(4)
TILE_OF(5)
TILE_OF(6)
#if TILE_HEIGHT_MAX > 6
TILE_OF(7)
TILE_OF(8)
TILE_OF(9)
TILE_OF(10)
TILE_OF(11)
TILE_OF(12)
TILE_OF(13)
TILE_OF(14)
#endif

typedef void (*tile_function)(ptrdiff_t, const REAL *, ptrdiff_t, ptrdiff_t, const REAL *, ptrdiff_t, const char *,
                              ptrdiff_t, REAL *, ptrdiff_t, const REAL *, int, int);
static const tile_function tile_of_rows[] = {NULL,   tile_1, tile_2, tile_3,  tile_4,  tile_5,  tile_6,
#if TILE_HEIGHT_MAX > 6
                                             tile_7, tile_8, tile_9, tile_10, tile_11, tile_12, tile_13,
                                             tile_14
#endif
};

/* Multiply one tile by one panel, which may have fewer than PANEL_WIDTH columns. */
INLINE void tile_at(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t K, const REAL *A, ptrdiff_t rs, ptrdiff_t cs,
                    const REAL *panel, ptrdiff_t step, const char *next, ptrdiff_t next_step, REAL *C, ptrdiff_t ldc,
                    const REAL *bias, int start, int stream) {
    if (columns == PANEL_WIDTH) {
        tile_of_rows[rows](K, A, rs, cs, panel, step, next, next_step, C, ldc, bias, start, stream);
        return;
    }
    REAL edge[TILE_HEIGHT * PANEL_WIDTH] = {0}, edge_bias[PANEL_WIDTH] = {0};
    const size_t bytes = (size_t)columns * sizeof(REAL);
    if (start == FROM_C)
        for (ptrdiff_t i = 0; i < rows; i++)
            memcpy(edge + i * PANEL_WIDTH, C + i * ldc, bytes);
    if (start == FROM_BIAS)
        memcpy(edge_bias, bias, bytes);
    tile_of_rows[rows](K, A, rs, cs, panel, step, next, next_step, edge, PANEL_WIDTH, edge_bias, start, stream);
    for (ptrdiff_t i = 0; i < rows; i++)
        memcpy(C + i * ldc, edge + i * PANEL_WIDTH, bytes);
}

/* The loops of all products. The tiles of A have up to `height` rows and are `tile_step` elements apart, or if
 * tile_step is 0, A is unpacked and its rows are divided evenly. The panels are `panel_step` elements apart, their rows
 * `step`. */
INLINE void product(REAL *C, ptrdiff_t ldc, const REAL *A, ptrdiff_t rs, ptrdiff_t cs, ptrdiff_t height,
                    ptrdiff_t tile_step, const REAL *B, ptrdiff_t panel_step, ptrdiff_t step, const REAL *bias,
                    ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) {
    const ptrdiff_t tiles = ceil_div(M, height), panels = ceil_div(N, PANEL_WIDTH);
    /* K = 0 is one empty block, which writes the bias or zeros */
    const ptrdiff_t blocks = K > 0 ? ceil_div(K, BLOCK_K) : 1;
    for (ptrdiff_t q = 0; q < blocks; q++) {
        const ptrdiff_t k0 = frn_share(K, q, blocks, 1), k1 = frn_share(K, q + 1, blocks, 1);
        const int start = q > 0 || accumulate ? FROM_C : bias ? FROM_BIAS : FROM_ZERO;
        for (ptrdiff_t p = 0; p < panels; p++) {
            const ptrdiff_t n0 = p * PANEL_WIDTH, columns = N - n0 < PANEL_WIDTH ? N - n0 : PANEL_WIDTH;
            const REAL *panel = B + p * panel_step + k0 * step;
            const int is_packed = step == PANEL_WIDTH;
            /* prefetch the next panel during the tiles after the first, or the rest of this panel if there is only one
             * tile */
            const ptrdiff_t row_bytes = PANEL_WIDTH * (ptrdiff_t)sizeof(REAL);
            const char *next = (const char *)panel + 96 * row_bytes;
            const ptrdiff_t next_step = !is_packed ? 0 : tiles == 1 ? row_bytes : row_bytes / (tiles - 1);
            for (ptrdiff_t t = 0; t < tiles; t++) {
                const ptrdiff_t i0 = tile_step ? t * height : frn_share(M, t, tiles, 1);
                const ptrdiff_t i1 = !tile_step ? frn_share(M, t + 1, tiles, 1) : i0 + height < M ? i0 + height : M;
                const REAL *from = tile_step ? A + t * tile_step : A + i0 * rs;
                if (t > 0 && p + 1 < panels)
                    next = (const char *)(panel + panel_step) + (t - 1) * (k1 - k0) * next_step;
                tile_at(i1 - i0, columns, k1 - k0, from + k0 * cs, rs, cs, panel, step, next,
                        tiles > 1 && t == 0 ? 0 : next_step, C + i0 * ldc + n0, ldc, bias ? bias + n0 : NULL, start,
                        t == 0 || !is_packed);
            }
        }
    }
}
