/* The compiled core as Cython sees it: function pointers, set once by frn_choose_isa(). */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stddef.h>
#include <stdint.h>

#define REAL float
#define FRN_KERNEL(result, name, arguments) extern result(*frn_##name##_f32) arguments
#include "kernels.h"
#undef FRN_KERNEL
#undef REAL

#define REAL double
#define FRN_KERNEL(result, name, arguments) extern result(*frn_##name##_f64) arguments
#include "kernels.h"
#undef FRN_KERNEL
#undef REAL

/* Choose the best instruction set that this processor has and that is not above `cap`: "baseline", "avx2", "avx512",
 * or NULL for no cap. Returns the name of the set chosen, or NULL where `cap` is not a name. Call it once, before
 * any kernel, from one thread. */
const char *frn_choose_isa(const char *cap);

/* What a variant of kernels.c is built around, and its own measure of the processor. */
typedef struct {
    ptrdiff_t panel_width, tile_height;
    double (*fma_flops)(ptrdiff_t rounds);
} frn_shape;

/* Columns of a packed panel and rows of a tile in the chosen instruction set, for elements of `size` bytes (4 or 8). */
ptrdiff_t frn_panel_width(size_t size);
ptrdiff_t frn_tile_height(size_t size);

/* Run `rounds` of fused multiply-adds on registers alone, as many at a time as keep the units busy, for elements of
 * `size` bytes; returns the floating-point operations done. Timed by the caller, it is the peak of the core. */
double frn_fma_flops(size_t size, ptrdiff_t rounds);

/* Flush denormals to zero in the calling thread. Returns the mode that was in force, for frn_denormals_restore(). */
uint64_t frn_denormals_flush(void);
void frn_denormals_restore(uint64_t mode);

/* `bytes` of memory that begins at a multiple of 64, not initialised, or NULL; the caller frees it with frn_free(). */
void *frn_alloc(size_t bytes);
void frn_free(void *memory);

/* Seconds since some moment: to take differences of. */
double frn_seconds(void);

/* The lock around what threads share: kept blocks, who uses a workspace, sums of times. It is held for a few dozen
 * instructions, never across a call into Python or a kernel, and a child of fork() finds it free. */
void frn_lock(void);
void frn_unlock(void);

/* How many threads large calls use: 1 at first. Any thread may ask or set it at any time. */
void frn_set_threads(int count);
int frn_threads(void);

/* After fork() a child has none of its parent's threads: 1 in such a child, 0 elsewhere. */
int frn_forked(void);

#endif
