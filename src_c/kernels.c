/* Every kernel, for one element type and one instruction set: the build compiles this file once for each pair, with
 * -DFRN_VARIANT=_f32_avx512 and the like, -DREAL_IS_DOUBLE for float64, and the flags of the instruction set. What each
 * kernel does and what its arguments are stands in kernels.h.
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

#include "choice.h"
#include "gates.h"
#include "gemm.h"
#include "optimiser.h"
#include "rows.h"

static double fma_flops(ptrdiff_t rounds) {
    enum { CHAINS = 16 }; /* latency of 4 cycles times two units, twice over */
    vec sum[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        sum[i] = splat((REAL)i);
    const vec x = splat((REAL)0.999), y = splat((REAL)1e-3);
    for (ptrdiff_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++)
            sum[i] = sum[i] * x + y;
    static volatile REAL sink; /* keeps the loop */
    for (int i = 0; i < CHAINS; i++)
        sink = lane_sum(sum[i]);
    (void)sink;
    return 2.0 * CHAINS * LANES * (double)rounds;
}

#if defined(REAL_IS_DOUBLE)
#define POINTER(name) frn_##name##_f64
#else
#define POINTER(name) frn_##name##_f32
#endif
#undef FRN_KERNEL
#define FRN_KERNEL(result, name, arguments) POINTER(name) = KERNEL(name)

void KERNEL(install)(frn_shape *shape);
void KERNEL(install)(frn_shape *shape) {
#include "kernels.h"
    shape->panel_width = PANEL_WIDTH;
    shape->tile_height = TILE_HEIGHT;
    shape->fma_flops = fma_flops;
}
