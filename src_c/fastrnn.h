/* The interface between the C code and Cython. */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stddef.h>
#include <stdint.h>

/* No other platform is tested, so none is built for. */
#if UINTPTR_MAX < UINT64_MAX
#error "this platform is 32-bit; expected 64-bit, little-endian"
#elif defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "this platform is big-endian; expected 64-bit, little-endian"
#endif

/* The kernels of kernels.h as <name>_f32 and <name>_f64, and those of kernels_bf16.h as <name>_bf16, for the
 * instruction set that frn_choose_isa() chose. */
typedef struct {
#define REAL float
#define FRN_KERNEL(result, name, arguments) result(*name##_f32) arguments
#include "kernels.h"
#undef FRN_KERNEL
#undef REAL
#define REAL double
#define FRN_KERNEL(result, name, arguments) result(*name##_f64) arguments
#include "kernels.h"
#undef FRN_KERNEL
#undef REAL
#define FRN_KERNEL(result, name, arguments) result(*name##_bf16) arguments
#include "kernels_bf16.h"
#undef FRN_KERNEL
} frn_kernels;
extern frn_kernels frn_table;

/* The row kernels of a cell: what follows the matrix products at a time step, for one row of the batch. A cell ignores
 * the arguments that it has no use for.
 *
 * Forward: gates, activations, new state.
 *   gates   in (gates * H,) pre-activations, out: activations, if the backward pass of the cell needs them
 *   h       out (H,)
 *   c       out (H,), may be c_prev
 *   h_out   out (H,) or NULL, a second copy of h
 *   input   in (gates * H,) or NULL, added to the pre-activations
 *   h_prev, c_prev  in (H,) */
#define FRN_FORWARD(REAL)                                                                                              \
    (REAL *gates, REAL *h, REAL *c, REAL *h_out, const REAL *input, const REAL *h_prev, const REAL *c_prev, ptrdiff_t H)

/* Backward: gradients of the pre-activations and of the previous state.
 *   da       out (gates * H,), may be gates
 *   dh_next  in (H,) gradient of h from the next step; out, if the cell is `direct`: the part of the gradient of h_prev
 *            that does not pass through the gates, to which the caller adds da Wh'
 *   dc       in (H,) gradient of c from the next step, out (H,) gradient of c_prev
 *   dh       in (H,) gradient of h from the loss of this step
 *   gates, h, c, h_prev, c_prev  in, of the forward pass */
#define FRN_BACKWARD(REAL)                                                                                             \
    (REAL *da, REAL *dh_next, REAL *dc, const REAL *dh, const REAL *gates, const REAL *h, const REAL *c,               \
     const REAL *h_prev, const REAL *c_prev, ptrdiff_t H)

/* A recurrent cell, from the list in cells.h. */
typedef struct {
    const char *name;
    ptrdiff_t gates; /* blocks of H columns in Wx, Wh and b */
    int has_c;       /* whether the state is (h, c) rather than h alone */
    int direct;      /* whether h depends on h_prev other than through the gates */
    void(*forward_f32) FRN_FORWARD(float);
    void(*forward_f64) FRN_FORWARD(double);
    void(*backward_f32) FRN_BACKWARD(float);
    void(*backward_f64) FRN_BACKWARD(double);
} frn_cell;

/* The k-th cell of the list, or NULL after the last one. */
const frn_cell *frn_cell_at(size_t k);

/* Choose the best instruction set that this processor supports and that does not exceed `cap`: "baseline", "avx2",
 * "avx512", "avx512_bf16", or NULL for no cap. Returns the name of the chosen set, or NULL if `cap` is none of these
 * names. Call it once, before any kernel, from one thread. */
const char *frn_choose_isa(const char *cap);

/* What depends on the instruction set besides the kernels. */
typedef struct {
    ptrdiff_t panel_width, tile_height;
    double (*fma_flops)(ptrdiff_t rounds);
} frn_variant;

/* Columns of a packed panel, and the most rows of a tile, for elements of `size` bytes: 4 or 8, or 2 for bfloat16. */
ptrdiff_t frn_panel_width(size_t size);
ptrdiff_t frn_tile_height(size_t size);

/* Run `rounds` of independent fused multiply-adds on registers, for elements of `size` bytes. Returns the number of
 * floating-point operations; divided by the time taken, it is the peak rate of one core. */
double frn_fma_flops(size_t size, ptrdiff_t rounds);

/* Flush denormals to zero in the calling thread: arithmetic on them is up to 27 times slower. Returns the previous
 * mode, for frn_denormals_restore(). */
uint64_t frn_denormals_flush(void);
void frn_denormals_restore(uint64_t mode);

/* Give the memory that free() has kept for later back to the system, where the C library can. */
void frn_trim(void);

/* Allocate `bytes` of uninitialized memory, aligned to 64 bytes. Returns NULL on failure. Free it with frn_free(). */
void *frn_alloc(size_t bytes);
void frn_free(void *memory);

/* Seconds on a monotonic clock. */
double frn_seconds(void);

/* A lock for state shared between threads: the block pool, the owner of a workspace, accumulated times. It is held only
 * briefly, never during a call into Python or a kernel, and it is free in a child after fork(). */
void frn_lock(void);
void frn_unlock(void);

/* The number of threads that large calls use, 1 at first. Any thread may read or set it at any time. */
void frn_set_threads(int count);
int frn_threads(void);

/* Returns 1 in a child of fork(), which has none of its parent's threads, else 0. */
int frn_forked(void);

#endif
