/* Every kernel for one element type and one instruction set. The build compiles this file once for each pair, with
 * -DFRN_VARIANT=_f32_avx512 and so on, -DREAL_IS_DOUBLE for float64, and the compiler flags of the instruction set.
 * The kernels are documented in kernels.h, the row kernels of the cells in fastrnn.h.
 */
#include "fastrnn.h"

#if defined(REAL_IS_DOUBLE)
#define REAL double
#else
#define REAL float
#endif

#include "random.h"
#include "sizes.h"
#include "vector.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define KERNEL(name) PASTE(frn_##name, FRN_VARIANT)
#define FRN_KERNEL(result, name, arguments) result KERNEL(name) arguments
#include "kernels.h"
#undef FRN_KERNEL
#define FRN_CELL(name, ...)                                                                                            \
    void KERNEL(name##_forward) FRN_FORWARD(REAL);                                                                     \
    void KERNEL(name##_backward) FRN_BACKWARD(REAL);
#include "cells.h"
#undef FRN_CELL

_Static_assert(TILE_HEIGHT <= FRN_MAX_TILE_HEIGHT, "a tile is higher than callers allow for");

#include "attention.h"
#include "choice.h"
#include "gemm.h"
#include "optimizer.h"
#include "rows.h"
#define FRN_CELL_KERNELS
#include "cells.h"
#undef FRN_CELL_KERNELS

static double fma_flops(ptrdiff_t rounds) {
    enum { CHAINS = 16 }; /* twice what two units with a latency of 4 cycles need */
    vec sum[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        sum[i] = splat((REAL)i);
    const vec x = splat((REAL)0.999), y = splat((REAL)1e-3);
    for (ptrdiff_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++)
            sum[i] = sum[i] * x + y;
    static volatile REAL sink; /* so that the compiler keeps the loop */
    for (int i = 0; i < CHAINS; i++)
        sink = lane_sum(sum[i]);
    (void)sink;
    return 2.0 * CHAINS * LANES * (double)rounds;
}

#if defined(REAL_IS_DOUBLE)
#define MEMBER(name) name##_f64
#else
#define MEMBER(name) name##_f32
#endif

void KERNEL(install)(frn_variant *variant, frn_cell *cells);
void KERNEL(install)(frn_variant *variant, frn_cell *cells) {
#define FRN_KERNEL(result, name, arguments) frn_table.MEMBER(name) = KERNEL(name)
#include "kernels.h"
#define FRN_CELL(name, ...)                                                                                            \
    cells->MEMBER(forward) = KERNEL(name##_forward);                                                                   \
    cells->MEMBER(backward) = KERNEL(name##_backward);                                                                 \
    cells++;
#include "cells.h"
    variant->panel_width = PANEL_WIDTH;
    variant->tile_height = TILE_HEIGHT;
    variant->fma_flops = fma_flops;
}
