"""The time loops over a ragged batch, forward and backward, for the layers and for the captioner."""

from cython cimport floating
from libc.stddef cimport ptrdiff_t

from .cell cimport Cell
from .runtime cimport Slices, Worker, Workspace


cdef struct Batch:
    # A ragged batch in time-major order: token offset[t] + r is step t of the r-th longest row.
    const Cell* cell
    ptrdiff_t N, T, H, G, tokens  # G: columns of the gates
    ptrdiff_t ldh, ldg            # row strides of h, c and dh, and of the gates
    bint bfloat16                 # whether the operands of products are rounded to bfloat16
    ptrdiff_t* row                # (N,) index in the caller's batch of the r-th longest row
    ptrdiff_t* active             # (T,) number of rows that are active at step t
    ptrdiff_t* offset             # (T + 1,) number of tokens before step t


cdef ptrdiff_t batch_size(ptrdiff_t N, ptrdiff_t T) noexcept nogil
cdef void batch_sort(Batch* batch, void* memory, const ptrdiff_t* lengths, ptrdiff_t N, ptrdiff_t T, ptrdiff_t H,
                     const Cell* cell, size_t size, bint bfloat16) noexcept nogil

cdef inline ptrdiff_t state_before(const Batch* batch, ptrdiff_t t, ptrdiff_t r) noexcept nogil:
    """Return the row of h and c with the state of the r-th longest row before step t: N initial states, then tokens."""
    return r if t == 0 else batch.N + batch.offset[t - 1] + r


cdef struct Scratch:
    # Memory of a time loop: packed rows for each thread, and the rows of a step in bfloat16 for all threads.
    Slices tiles
    void* rounded  # (N, ldr) pairs, or NULL


cdef Scratch take_forward(Workspace workspace, const Batch* batch, ptrdiff_t D, int threads, size_t size) noexcept
cdef void steps_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                        const floating* bias, const floating* weights, Scratch scratch, int threads) noexcept nogil
cdef void team_steps_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                             const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                             const floating* bias, const floating* weights, Scratch scratch, Worker* me) noexcept nogil
cdef Scratch take_backward(Workspace workspace, const Batch* batch, int threads, size_t size) noexcept
cdef ptrdiff_t rounded_size(ptrdiff_t N, ptrdiff_t columns) noexcept nogil
cdef void steps_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                         ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh, const ptrdiff_t* dh_at,
                         const floating* gates, const floating* h, const floating* c, const floating* Wh_transposed,
                         const floating* Wx_transposed, Scratch scratch, int threads) noexcept nogil
cdef void team_steps_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                              ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh,
                              const ptrdiff_t* dh_at, const floating* gates, const floating* h, const floating* c,
                              const floating* Wh_transposed, const floating* Wx_transposed, Scratch scratch,
                              Worker* me) noexcept nogil
