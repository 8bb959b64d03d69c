"""The time loops of the RNN and the LSTM, for the layers and for the captioner."""

from cython cimport floating
from libc.stddef cimport ptrdiff_t


cdef struct Batch:
    # A ragged batch in time-major order: token offset[t] + r is step t of the r-th longest row.
    ptrdiff_t N, T, H, gates, tokens  # gates: H for an RNN, 4H for an LSTM
    ptrdiff_t ldh, ldg                # row strides of h, c and dh, and of the gates
    bint lstm
    ptrdiff_t* row                    # (N,) the row of the caller's batch that is the r-th longest
    ptrdiff_t* active                 # (T,) rows that are still active at step t
    ptrdiff_t* offset                 # (T + 1,) tokens before step t


cdef ptrdiff_t batch_size(ptrdiff_t N, ptrdiff_t T) noexcept nogil
cdef void batch_sort(Batch* batch, void* memory, const ptrdiff_t* lengths, ptrdiff_t N, ptrdiff_t T, ptrdiff_t H,
                     bint lstm, size_t size) noexcept nogil
cdef inline ptrdiff_t before(const Batch* batch, ptrdiff_t t, ptrdiff_t r) noexcept nogil:
    """The row of h and c that holds the state of the r-th longest row before step t: N initial ones, then tokens."""
    return r if t == 0 else batch.N + batch.offset[t - 1] + r

cdef ptrdiff_t forward_tiles(const Batch* batch, ptrdiff_t D, int threads, size_t size) noexcept nogil
cdef void steps_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                        const floating* bias, const floating* weights, floating* scratch, int threads) noexcept nogil
cdef ptrdiff_t backward_tiles(const Batch* batch, int threads, size_t size) noexcept nogil
cdef void steps_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                         ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh, const ptrdiff_t* dh_at,
                         const floating* gates, const floating* h, const floating* c, const floating* Wh_transposed,
                         const floating* Wx_transposed, floating* scratch, int threads) noexcept nogil
