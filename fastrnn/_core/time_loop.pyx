"""The time loops over a ragged batch, forward and backward (BPTT), over preallocated buffers.

The rows of a batch are sorted by length, longest first, and a sequence runs in time-major order over *tokens*: token
``offset[t] + r`` is step t of the r-th row. The active rows of a step are contiguous, so the cost of a ragged batch is
that of its tokens. Each thread takes every `threads`-th row through the whole sequence without waiting for the others,
except with few rows (by_columns()). The order of every sum is independent of the number of threads.
"""

from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memset

from . cimport kernels
from .cell cimport Cell, row_backward, row_forward
from .products cimport (
    leading_dimension, matrix, multiply_rows, pack_rows, tile_height, tiles_size,
)
from .runtime cimport (
    MAX_TILE_HEIGHT, Slices, Workspace, denormals_flush, denormals_restore, panel_width, share, slice_of,
)

# See by_columns().
cdef enum:
    ROWS_PER_THREAD = 20
    LARGE_WEIGHTS = 1 << 18  # elements of Wh


# ---- Batches ---------------------------------------------------------------------------------------------------------

cdef ptrdiff_t batch_size(ptrdiff_t N, ptrdiff_t T) noexcept nogil:
    """Return the number of ptrdiff_t in the memory of batch_sort()."""
    return N + 2 * T + 1


cdef void batch_sort(Batch* batch, void* memory, const ptrdiff_t* lengths, ptrdiff_t N, ptrdiff_t T, ptrdiff_t H,
                     const Cell* cell, size_t size) noexcept nogil:
    """Fill in a batch of rows with these lengths (all T if NULL) by counting sort, which is stable."""
    cdef ptrdiff_t n, t, r
    batch.cell = cell
    batch.N, batch.T, batch.H, batch.G = N, T, H, cell.gates * H
    batch.ldh = leading_dimension(H, size)
    batch.ldg = leading_dimension(batch.G, size)
    batch.row = <ptrdiff_t*> memory
    batch.active = batch.row + N
    batch.offset = batch.active + T
    if lengths == NULL:
        for n in range(N):
            batch.row[n] = n
        for t in range(T):
            batch.active[t] = N
    else:
        # active[t] is the number of rows longer than t, and also where the rows of length t start in the sorted order
        memset(batch.active, 0, T * sizeof(ptrdiff_t))
        for n in range(N):
            if lengths[n] > 0:
                batch.active[lengths[n] - 1] += 1
        for t in range(T - 2, -1, -1):
            batch.active[t] += batch.active[t + 1]
        # until it is filled in below, offset holds the place of the next row of each length
        for t in range(T + 1):
            batch.offset[t] = batch.active[t] if t < T else 0
        for n in range(N):
            r = batch.offset[lengths[n]]
            batch.offset[lengths[n]] += 1
            batch.row[r] = n
    batch.offset[0] = 0
    for t in range(T):
        batch.offset[t + 1] = batch.offset[t] + batch.active[t]
    batch.tokens = batch.offset[T]


cdef inline ptrdiff_t rows_of_thread(const Batch* batch, int threads) noexcept nogil:
    """Return the largest number of rows of a thread."""
    return (batch.active[0] + threads - 1) // threads if batch.T > 0 else 0


cdef inline bint by_columns(const Batch* batch, int threads) noexcept nogil:
    """Return whether the threads divide the columns of each step rather than the rows of the batch.

    A thread with few rows is bound by memory, because it reads all weights at each step. With some of the columns it
    reads only its part of the weights, which stays in its cache from step to step. This saves more time than the two
    barriers per step cost.
    """
    return (threads > 1 and batch.N < ROWS_PER_THREAD * threads and batch.N >= 4
            and batch.H * batch.G >= LARGE_WEIGHTS)


# ---- Forward ---------------------------------------------------------------------------------------------------------

cdef Slices take_forward(Workspace workspace, const Batch* batch, ptrdiff_t D, int threads, size_t size) noexcept:
    """Take the scratch memory of steps_forward() with inputs of size D from a workspace."""
    return workspace.take_slices(
        threads, tiles_size(rows_of_thread(batch, 1 if by_columns(batch, threads) else threads), D + batch.H, size),
        size)


cdef void steps_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                        const floating* bias, const floating* weights, Slices scratch, int threads) noexcept nogil:
    """Run all steps.

    The input (D,) of a token is at x[x_at[token]], and `weights` are the panels of Wx stacked on Wh, (D + H, G). If D
    is 0, x[x_at[token]] is the product (G,) of the input with Wx plus bias, `weights` are the panels of Wh alone, and
    scratch is not used. gates (tokens, G) receives the activations; h and c (N + tokens, H) start with the N initial
    states; out[out_at[token]], unless out is NULL, receives a copy of h.
    """
    cdef int k
    cdef ptrdiff_t t
    if threads == 1:
        rows_forward(batch, gates, h, c, out, out_at, x, x_at, D, bias, weights, <floating*> scratch.memory, 0, 1)
        return
    if by_columns(batch, threads):
        for t in range(batch.T):
            for k in prange(threads, num_threads=threads, schedule="static"):
                columns_forward(batch, gates, h, x, x_at, D, bias, weights, <floating*> slice_of(scratch, k), t, k,
                                threads)
            for k in prange(threads, num_threads=threads, schedule="static"):
                gates_forward(batch, gates, h, c, out, out_at, x, x_at, D, t, k, threads)
        return
    for k in prange(threads, num_threads=threads, schedule="static"):
        rows_forward(batch, gates, h, c, out, out_at, x, x_at, D, bias, weights, <floating*> slice_of(scratch, k), k,
                     threads)


cdef void columns_forward(const Batch* batch, floating* gates, const floating* h, const floating* x,
                          const ptrdiff_t* x_at, ptrdiff_t D, const floating* bias, const floating* weights,
                          floating* tiles, ptrdiff_t t, int k, int threads) noexcept nogil:
    """Compute the k-th part of the columns of the products at step t."""
    cdef ptrdiff_t width = panel_width(sizeof(floating))
    cdef ptrdiff_t n0 = share(batch.G, k, threads, width), n1 = share(batch.G, k + 1, threads, width)
    cdef uint64_t mode
    if n1 <= n0 or batch.active[t] == 0:
        return
    mode = denormals_flush()
    products_forward(batch, gates + n0, h, x, x_at, D, bias + n0 if bias != NULL else <const floating*> NULL,
                     weights + n0 * (D + batch.H), n1 - n0, tiles, t, 0, 1)
    denormals_restore(mode)


cdef void rows_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                       const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                       const floating* bias, const floating* weights, floating* tiles, ptrdiff_t first,
                       ptrdiff_t stride) noexcept nogil:
    """Run all steps of rows first, first + stride, ..."""
    cdef ptrdiff_t t
    cdef uint64_t mode = denormals_flush()
    for t in range(batch.T):
        if batch.active[t] <= first:
            break
        products_forward(batch, gates, <const floating*> h, x, x_at, D, bias, weights, batch.G, tiles, t, first, stride)
        gates_forward(batch, gates, h, c, out, out_at, x, x_at, D, t, first, stride)
    denormals_restore(mode)


cdef void products_forward(const Batch* batch, floating* gates, const floating* h, const floating* x,
                           const ptrdiff_t* x_at, ptrdiff_t D, const floating* bias, const floating* weights,
                           ptrdiff_t columns, floating* tiles, ptrdiff_t t, ptrdiff_t first,
                           ptrdiff_t stride) noexcept nogil:
    """Compute the products at step t of rows first, first + stride, ... with the `columns` columns of the weights."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, K = D + batch.H
    cdef ptrdiff_t rows = (batch.active[t] - first + stride - 1) // stride
    cdef ptrdiff_t height = tile_height(rows, sizeof(floating))
    cdef ptrdiff_t count = (rows + height - 1) // height
    cdef ptrdiff_t q
    cdef const floating* state = h + state_before(batch, t, first) * ldh
    cdef floating* to = gates + (batch.offset[t] + first) * ldg
    if D == 0:
        kernels.gemm(to, stride * ldg, state, stride * ldh, 1, weights, <const floating*> NULL, rows, columns, H, False)
        return
    # each row of a tile is [x, previous h]
    for q in range(count):
        pack_inputs(tiles + q * height * K, x, x_at + batch.offset[t] + first, stride, q * height,
                    min(height, rows - q * height), height, D)
    kernels.gemm_pack_rows(tiles + height * D, height * K, state, NULL, stride * ldh, NULL, 1, rows, H, height, 0,
                           count)
    multiply_rows(to, stride * ldg, <const floating*> tiles, weights, bias, rows, columns, K, False)


cdef void gates_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D, ptrdiff_t t,
                        ptrdiff_t first, ptrdiff_t stride) noexcept nogil:
    """Apply the gates at step t to rows first, first + stride, ..."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, r = first, token, previous
    cdef floating* h_out = NULL
    cdef const floating* input = NULL
    cdef uint64_t mode = denormals_flush()
    while r < batch.active[t]:
        token = batch.offset[t] + r
        previous = state_before(batch, t, r) * ldh
        if out != NULL:
            h_out = out + out_at[token]
        if D == 0:
            input = x + x_at[token]
        row_forward(batch.cell, gates + token * ldg, h + (batch.N + token) * ldh, c + (batch.N + token) * ldh, h_out,
                    input, <const floating*> h + previous, <const floating*> c + previous, batch.H)
        r += stride
    denormals_restore(mode)


cdef void pack_inputs(floating* tile, const floating* x, const ptrdiff_t* x_at, ptrdiff_t stride, ptrdiff_t first,
                      ptrdiff_t rows, ptrdiff_t height, ptrdiff_t D) noexcept nogil:
    """Pack the inputs of every stride-th token into one tile."""
    cdef ptrdiff_t[MAX_TILE_HEIGHT] row
    cdef ptrdiff_t i
    for i in range(rows):
        row[i] = x_at[(first + i) * stride]
    kernels.gemm_pack_rows(tile, 0, x, row, 0, NULL, 1, rows, D, height, 0, 1)


# ---- Backward --------------------------------------------------------------------------------------------------------

cdef Slices take_backward(Workspace workspace, const Batch* batch, int threads, size_t size) noexcept:
    """Take the scratch memory of steps_backward() with dx from a workspace; without dx it needs none."""
    return workspace.take_slices(threads, tiles_size(rows_of_thread(batch, threads), batch.G, size), size)


cdef void steps_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                         ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh, const ptrdiff_t* dh_at,
                         const floating* gates, const floating* h, const floating* c, const floating* Wh_transposed,
                         const floating* Wx_transposed, Slices scratch, int threads) noexcept nogil:
    """Run all steps backward.

    da (tokens, G) receives the gradient of the pre-activations, and may be gates. dstate and dc (N, H) start with the
    gradient of the state after the last step of each row, and receive that of the initial state. The gradient of the
    loss with respect to h of a token is at dh[dh_at[token]].

    dx receives the gradient of the inputs, unless it is NULL: that of row r at step t at t * dx_step + r * dx_row, for
    a batch of equal lengths, or that of a token at token * dx_row if dx_step is 0.
    """
    cdef int k
    cdef ptrdiff_t t
    if threads == 1:
        rows_backward(batch, da, dstate, dc, dx, dx_step, dx_row, D, dh, dh_at, gates, h, c, Wh_transposed,
                      Wx_transposed, <floating*> scratch.memory, 0, 1)
        return
    if by_columns(batch, threads):
        for t in range(batch.T - 1, -1, -1):
            for k in prange(threads, num_threads=threads, schedule="static"):
                gates_backward(batch, da, dstate, dc, dh, dh_at, gates, h, c, t, k, threads)
            for k in prange(threads, num_threads=threads, schedule="static"):
                columns_backward(batch, da, dstate, dx, dx_step, dx_row, D, Wh_transposed, Wx_transposed, t, k, threads)
        return
    for k in prange(threads, num_threads=threads, schedule="static"):
        rows_backward(batch, da, dstate, dc, dx, dx_step, dx_row, D, dh, dh_at, gates, h, c, Wh_transposed,
                      Wx_transposed, <floating*> slice_of(scratch, k), k, threads)


cdef inline floating* dx_of(const Batch* batch, floating* dx, ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t t,
                            ptrdiff_t r) noexcept nogil:
    """Return the address of the gradient of the input of row r at step t."""
    return dx + t * dx_step + r * dx_row if dx_step > 0 else dx + (batch.offset[t] + r) * dx_row


cdef void columns_backward(const Batch* batch, const floating* da, floating* dstate, floating* dx, ptrdiff_t dx_step,
                           ptrdiff_t dx_row, ptrdiff_t D, const floating* Wh_transposed, const floating* Wx_transposed,
                           ptrdiff_t t, int k, int threads) noexcept nogil:
    """Compute the k-th part of the columns of dstate and of dx at step t."""
    cdef ptrdiff_t width = panel_width(sizeof(floating)), H = batch.H, G = batch.G, ldg = batch.ldg
    cdef ptrdiff_t n0 = share(H, k, threads, width), n1 = share(H, k + 1, threads, width)
    cdef const floating* no_bias = NULL
    cdef uint64_t mode = denormals_flush()
    if n1 > n0:
        kernels.gemm(dstate + n0, batch.ldh, da + batch.offset[t] * ldg, ldg, 1, Wh_transposed + n0 * G, no_bias,
                     batch.active[t], n1 - n0, G, batch.cell.direct)
    n0, n1 = share(D, k, threads, width), share(D, k + 1, threads, width)
    if dx != NULL and n1 > n0:
        kernels.gemm(dx_of(batch, dx, dx_step, dx_row, t, 0) + n0, dx_row, da + batch.offset[t] * ldg, ldg, 1,
                     Wx_transposed + n0 * G, no_bias, batch.active[t], n1 - n0, G, False)
    denormals_restore(mode)


cdef void rows_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                        ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh, const ptrdiff_t* dh_at,
                        const floating* gates, const floating* h, const floating* c, const floating* Wh_transposed,
                        const floating* Wx_transposed, floating* tiles, ptrdiff_t first,
                        ptrdiff_t stride) noexcept nogil:
    """Run all steps of rows first, first + stride, ... backward."""
    cdef ptrdiff_t t, rows
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, G = batch.G
    cdef const floating* no_bias = NULL
    cdef floating* da_step
    cdef uint64_t mode = denormals_flush()
    for t in range(batch.T - 1, -1, -1):
        if batch.active[t] <= first:
            continue
        rows = (batch.active[t] - first + stride - 1) // stride
        gates_backward(batch, da, dstate, dc, dh, dh_at, gates, h, c, t, first, stride)
        da_step = da + (batch.offset[t] + first) * ldg
        if dx == NULL:
            kernels.gemm(dstate + first * ldh, stride * ldh, <const floating*> da_step, stride * ldg, 1, Wh_transposed,
                         no_bias, rows, H, G, batch.cell.direct)
            continue
        # pack the rows once for two products
        pack_rows(tiles, matrix(da_step, stride * ldg), rows, G)
        multiply_rows(dstate + first * ldh, stride * ldh, <const floating*> tiles, Wh_transposed, no_bias, rows, H, G,
                      batch.cell.direct)
        multiply_rows(dx_of(batch, dx, dx_step, dx_row, t, first), stride * dx_row, <const floating*> tiles,
                      Wx_transposed, no_bias, rows, D, G, False)
    denormals_restore(mode)


cdef void gates_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, const floating* dh,
                         const ptrdiff_t* dh_at, const floating* gates, const floating* h, const floating* c,
                         ptrdiff_t t, ptrdiff_t first, ptrdiff_t stride) noexcept nogil:
    """Backward pass of the gates at step t, for rows first, first + stride, ..."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, r = first, token, previous
    cdef uint64_t mode = denormals_flush()
    while r < batch.active[t]:
        token = batch.offset[t] + r
        previous = state_before(batch, t, r) * ldh
        row_backward(batch.cell, da + token * ldg, dstate + r * ldh, dc + r * ldh, dh + dh_at[token],
                     gates + token * ldg, h + (batch.N + token) * ldh, c + (batch.N + token) * ldh, h + previous,
                     c + previous, batch.H)
        r += stride
    denormals_restore(mode)
