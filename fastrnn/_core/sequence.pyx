"""The time loops of the RNN and the LSTM, forward and backward (BPTT), over preallocated buffers.

A sequence runs in time-major order over *tokens*: the rows of the batch are sorted by length, longest first, and token
``offset[t] + r`` is step t of the r-th row. The rows that are still active at a step lie side by side, so a ragged
batch costs what its words cost. A thread owns every `threads`-th row for the whole sequence and never waits for
another, but where the rows are too few for that (by_columns()); the order in which anything is summed does not depend
on how many threads there are.
"""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, floats, has_shape, new, new_like, refuse
from .kernels cimport (
    TOO_LARGE, Workspace, area, leading, packed_size, panel_width, room, share, threads_for, tile_height,
    tiles_size,
)

from .. import checks
from ..reference import rnn_layers as twin

cnp.import_array()

# A single step with up to this many rows multiplies by the weights as they lie, for packing them would cost more.
cdef enum:
    FEW = 4
    MODERATE = 64

# See by_columns().
cdef enum:
    COLUMNS_BELOW = 20  # rows for each thread
    WIDE = 1 << 18      # recurrent weights


# ---- Batches ---------------------------------------------------------------------------------------------------------

cdef ptrdiff_t batch_size(ptrdiff_t N, ptrdiff_t T) noexcept nogil:
    """Elements of ptrdiff_t that batch_sort() needs."""
    return N + 2 * T + 1


cdef void batch_sort(Batch* batch, void* memory, const ptrdiff_t* lengths, ptrdiff_t N, ptrdiff_t T, ptrdiff_t H,
                     bint lstm, size_t size) noexcept nogil:
    """Fill in a batch whose rows have these lengths (NULL: all T), by counting sort; equal lengths keep their order."""
    cdef ptrdiff_t n, t, r
    batch.N, batch.T, batch.H, batch.lstm = N, T, H, lstm
    batch.gates = 4 * H if lstm else H
    batch.ldh = leading(H, size)
    batch.ldg = leading(batch.gates, size)
    batch.row = <ptrdiff_t*> memory
    batch.active = batch.row + N
    batch.offset = batch.active + T
    if lengths == NULL:
        for n in range(N):
            batch.row[n] = n
        for t in range(T):
            batch.active[t] = N
    else:
        # active[t] = rows longer than t, which is also where the rows of length t begin in the order
        memset(batch.active, 0, T * sizeof(ptrdiff_t))
        for n in range(N):
            if lengths[n] > 0:
                batch.active[lengths[n] - 1] += 1
        for t in range(T - 2, -1, -1):
            batch.active[t] += batch.active[t + 1]
        # offset serves as the place of the next row of each length
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


# ---- Forward ---------------------------------------------------------------------------------------------------------

cdef ptrdiff_t forward_tiles(const Batch* batch, ptrdiff_t D, int threads, size_t size) noexcept nogil:
    """Elements of scratchpad of a thread in steps_forward(): none where D is 0, as h is read as it lies."""
    cdef ptrdiff_t rows = rows_of(batch, 0, 1 if by_columns(batch, threads) else threads)
    if D == 0:
        return 0
    return tiles_size(rows, D + batch.H, size)


cdef inline ptrdiff_t rows_of(const Batch* batch, ptrdiff_t t, ptrdiff_t stride) noexcept nogil:
    """The most rows that one of `stride` threads has at step t."""
    return (batch.active[t] + stride - 1) // stride if batch.T > 0 else 0


cdef void steps_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                        const floating* bias, const floating* weights, floating* scratch, int threads) noexcept nogil:
    """Run all steps.

    x, at x_at[token], is the input (D,) of a token, and `weights` the panels of Wx above Wh, (D + H, gates); where D is
    0, x at x_at[token] is the input product (gates,) itself, bias included, and the panels are those of Wh alone. gates
    (tokens, gates) become the activations of an LSTM; h, c (N + tokens, H) begin with the N initial states; out, at
    out_at[token], gets a copy of h, unless it is NULL.
    """
    cdef int k
    cdef ptrdiff_t t
    cdef size_t part = room(forward_tiles(batch, D, threads, sizeof(floating)), sizeof(floating)) if D > 0 else 0
    if threads == 1:
        rows_forward(batch, gates, h, c, out, out_at, x, x_at, D, bias, weights, scratch, 0, 1)
        return
    if by_columns(batch, threads):
        for t in range(batch.T):
            for k in prange(threads, num_threads=threads, schedule="static"):
                columns_forward(batch, gates, h, x, x_at, D, bias, weights, <floating*> (<char*> scratch + k * part), t,
                                k, threads)
            for k in prange(threads, num_threads=threads, schedule="static"):
                gates_forward(batch, gates, h, c, out, out_at, x, x_at, D, t, k, threads)
        return
    for k in prange(threads, num_threads=threads, schedule="static"):
        rows_forward(batch, gates, h, c, out, out_at, x, x_at, D, bias, weights,
                     <floating*> (<char*> scratch + k * part), k, threads)


cdef inline bint by_columns(const Batch* batch, int threads) noexcept nogil:
    """Whether threads share out the columns of each step rather than the rows of the batch.

    A thread with a few rows reads all the weights at each step and waits for memory. With a part of the columns it
    reads that part for all rows, which stays near its core from step to step; waiting for the others twice a step costs
    less.
    """
    return threads > 1 and batch.N < COLUMNS_BELOW * threads and batch.N >= 4 and batch.H * batch.gates >= WIDE


cdef void columns_forward(const Batch* batch, floating* gates, const floating* h, const floating* x,
                          const ptrdiff_t* x_at, ptrdiff_t D, const floating* bias, const floating* weights,
                          floating* tiles, ptrdiff_t t, int k, int threads) noexcept nogil:
    """The k-th part of the columns of the products at step t."""
    cdef ptrdiff_t width = panel_width(sizeof(floating))
    cdef ptrdiff_t n0 = share(batch.gates, k, threads, width), n1 = share(batch.gates, k + 1, threads, width)
    cdef uint64_t mode
    if n1 <= n0 or batch.active[t] == 0:
        return
    mode = kernels.denormals_flush()
    products_forward(batch, gates + n0, h, x, x_at, D, bias + n0 if bias != NULL else <const floating*> NULL,
                     weights + n0 * (D + batch.H), n1 - n0, tiles, t, 0, 1)
    kernels.denormals_restore(mode)


cdef void rows_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                       const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                       const floating* bias, const floating* weights, floating* tiles, ptrdiff_t first,
                       ptrdiff_t stride) noexcept nogil:
    """All steps of the rows first, first + stride, ..."""
    cdef ptrdiff_t t
    cdef uint64_t mode = kernels.denormals_flush()
    for t in range(batch.T):
        if batch.active[t] <= first:
            break
        products_forward(batch, gates, <const floating*> h, x, x_at, D, bias, weights, batch.gates, tiles, t, first,
                         stride)
        gates_forward(batch, gates, h, c, out, out_at, x, x_at, D, t, first, stride)
    kernels.denormals_restore(mode)


cdef void products_forward(const Batch* batch, floating* gates, const floating* h, const floating* x,
                           const ptrdiff_t* x_at, ptrdiff_t D, const floating* bias, const floating* weights,
                           ptrdiff_t columns, floating* tiles, ptrdiff_t t, ptrdiff_t first,
                           ptrdiff_t stride) noexcept nogil:
    """The products at step t for the rows first, first + stride, ..., as many columns as the weights have."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, K = D + batch.H
    cdef ptrdiff_t rows = (batch.active[t] - first + stride - 1) // stride
    cdef ptrdiff_t height = tile_height(rows, sizeof(floating))
    cdef ptrdiff_t count = (rows + height - 1) // height
    cdef ptrdiff_t q
    cdef const floating* state = h + before(batch, t, first) * ldh
    cdef floating* to = gates + (batch.offset[t] + first) * ldg
    if D == 0:
        kernels.gemm(to, stride * ldg, state, stride * ldh, 1, weights, <const floating*> NULL, rows, columns, H, False)
        return
    # the rows of a tile are [x, h before the step]
    for q in range(count):
        pack_inputs(tiles + q * height * K, x, x_at + batch.offset[t] + first, stride, q * height,
                    min(height, rows - q * height), height, D)
    kernels.gemm_pack_rows(tiles + height * D, height * K, state, NULL, stride * ldh, NULL, 1, rows, H, height, 0,
                           count)
    kernels.gemm_tiles(to, stride * ldg, <const floating*> tiles, height, weights, bias, rows, columns, K, False)


cdef void gates_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D, ptrdiff_t t,
                        ptrdiff_t first, ptrdiff_t stride) noexcept nogil:
    """The gates at step t for the rows first, first + stride, ..."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, r = first, token
    cdef floating* copy = NULL
    cdef const floating* product = NULL
    cdef uint64_t mode = kernels.denormals_flush()
    while r < batch.active[t]:
        token = batch.offset[t] + r
        if out != NULL:
            copy = out + out_at[token]
        if D == 0:
            product = x + x_at[token]
        if batch.lstm:
            kernels.lstm_gates_forward(gates + token * ldg, c + (batch.N + token) * ldh, h + (batch.N + token) * ldh,
                                       copy, product, <const floating*> c + before(batch, t, r) * ldh, H)
        else:
            kernels.rnn_gates_forward(h + (batch.N + token) * ldh, copy, <const floating*> gates + token * ldg, product,
                                      H)
        r += stride
    kernels.denormals_restore(mode)


cdef void pack_inputs(floating* tile, const floating* x, const ptrdiff_t* x_at, ptrdiff_t stride, ptrdiff_t first,
                      ptrdiff_t rows, ptrdiff_t height, ptrdiff_t D) noexcept nogil:
    """The inputs of every stride-th token as one tile."""
    cdef ptrdiff_t[16] row
    cdef ptrdiff_t i
    for i in range(rows):
        row[i] = x_at[(first + i) * stride]
    kernels.gemm_pack_rows(tile, 0, x, row, 0, NULL, 1, rows, D, height, 0, 1)


# ---- Backward --------------------------------------------------------------------------------------------------------

cdef ptrdiff_t backward_tiles(const Batch* batch, int threads, size_t size) noexcept nogil:
    """Elements of scratchpad of a thread in steps_backward() for dx; without dx it needs none."""
    return tiles_size(rows_of(batch, 0, threads), batch.gates, size)


cdef void steps_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                         ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh, const ptrdiff_t* dh_at,
                         const floating* gates, const floating* h, const floating* c, const floating* Wh_transposed,
                         const floating* Wx_transposed, floating* scratch, int threads) noexcept nogil:
    """Run all steps backward.

    da (tokens, gates) becomes the gradient of the pre-activations, and may be gates; dstate, dc (N, H) begin as the
    gradient of the state after each row's last step and become that of the initial state; dh, at dh_at[token], is the
    gradient of the loss with respect to each h directly. dx, unless it is NULL, becomes the gradient of the inputs:
    that of row r at step t at t * dx_step + r * dx_row, for a dense batch; where dx_step is 0, that of a token at
    token * dx_row.
    """
    cdef int k
    cdef ptrdiff_t t
    cdef size_t part = room(backward_tiles(batch, threads, sizeof(floating)), sizeof(floating)) if dx != NULL else 0
    if threads == 1:
        rows_backward(batch, da, dstate, dc, dx, dx_step, dx_row, D, dh, dh_at, gates, h, c, Wh_transposed,
                      Wx_transposed, scratch, 0, 1)
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
                      Wx_transposed, <floating*> (<char*> scratch + k * part), k, threads)


cdef inline floating* inputs_at(const Batch* batch, floating* dx, ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t t,
                                ptrdiff_t r) noexcept nogil:
    """Where the gradient of the inputs of row r at step t belongs."""
    return dx + t * dx_step + r * dx_row if dx_step > 0 else dx + (batch.offset[t] + r) * dx_row


cdef void columns_backward(const Batch* batch, const floating* da, floating* dstate, floating* dx, ptrdiff_t dx_step,
                           ptrdiff_t dx_row, ptrdiff_t D, const floating* Wh_transposed, const floating* Wx_transposed,
                           ptrdiff_t t, int k, int threads) noexcept nogil:
    """The k-th part of the columns of dstate and of dx at step t."""
    cdef ptrdiff_t width = panel_width(sizeof(floating)), H = batch.H, G = batch.gates, ldg = batch.ldg
    cdef ptrdiff_t n0 = share(H, k, threads, width), n1 = share(H, k + 1, threads, width)
    cdef const floating* nothing = NULL
    cdef uint64_t mode = kernels.denormals_flush()
    if n1 > n0:
        kernels.gemm(dstate + n0, batch.ldh, da + batch.offset[t] * ldg, ldg, 1, Wh_transposed + n0 * G, nothing,
                     batch.active[t], n1 - n0, G, False)
    n0, n1 = share(D, k, threads, width), share(D, k + 1, threads, width)
    if dx != NULL and n1 > n0:
        kernels.gemm(inputs_at(batch, dx, dx_step, dx_row, t, 0) + n0, dx_row, da + batch.offset[t] * ldg, ldg, 1,
                     Wx_transposed + n0 * G, nothing, batch.active[t], n1 - n0, G, False)
    kernels.denormals_restore(mode)


cdef void rows_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                        ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh, const ptrdiff_t* dh_at,
                        const floating* gates, const floating* h, const floating* c, const floating* Wh_transposed,
                        const floating* Wx_transposed, floating* tiles, ptrdiff_t first,
                        ptrdiff_t stride) noexcept nogil:
    """All steps of the rows first, first + stride, ..., last step first."""
    cdef ptrdiff_t t, rows, height
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, G = batch.gates
    cdef const floating* nothing = NULL
    cdef const floating* from_
    cdef uint64_t mode = kernels.denormals_flush()
    for t in range(batch.T - 1, -1, -1):
        if batch.active[t] <= first:
            continue
        rows = (batch.active[t] - first + stride - 1) // stride
        gates_backward(batch, da, dstate, dc, dh, dh_at, gates, h, c, t, first, stride)
        from_ = <const floating*> da + (batch.offset[t] + first) * ldg
        if dx == NULL:
            kernels.gemm(dstate + first * ldh, stride * ldh, from_, stride * ldg, 1, Wh_transposed, nothing, rows, H, G,
                         False)
            continue
        # two products of the same rows: worth packing them
        height = tile_height(rows, sizeof(floating))
        kernels.gemm_pack_rows(tiles, height * G, from_, NULL, stride * ldg, NULL, 1, rows, G, height, 0,
                               (rows + height - 1) // height)
        kernels.gemm_tiles(dstate + first * ldh, stride * ldh, <const floating*> tiles, height, Wh_transposed, nothing,
                           rows, H, G, False)
        kernels.gemm_tiles(inputs_at(batch, dx, dx_step, dx_row, t, first), stride * dx_row, <const floating*> tiles,
                           height, Wx_transposed, nothing, rows, D, G, False)
    kernels.denormals_restore(mode)


cdef void gates_backward(const Batch* batch, floating* da, const floating* dstate, floating* dc, const floating* dh,
                         const ptrdiff_t* dh_at, const floating* gates, const floating* h, const floating* c,
                         ptrdiff_t t, ptrdiff_t first, ptrdiff_t stride) noexcept nogil:
    """The gates at step t for the rows first, first + stride, ..."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, r = first, token
    cdef uint64_t mode = kernels.denormals_flush()
    while r < batch.active[t]:
        token = batch.offset[t] + r
        if batch.lstm:
            kernels.lstm_gates_backward(da + token * ldg, dc + r * ldh, dh + dh_at[token], dstate + r * ldh,
                                        gates + token * ldg, c + (batch.N + token) * ldh,
                                        c + before(batch, t, r) * ldh, batch.H)
        else:
            kernels.rnn_gates_backward(da + token * ldg, dh + dh_at[token], dstate + r * ldh,
                                       h + (batch.N + token) * ldh, batch.H)
        r += stride
    kernels.denormals_restore(mode)


# ---- Sequences over NumPy arrays -------------------------------------------------------------------------------------

cdef class Sequence:
    """What a forward pass keeps for its backward pass. It cannot be copied or pickled."""
    cdef Batch batch        # of no rows and no steps where there is nothing to compute
    cdef Workspace kept
    cdef int kind           # type number of NumPy
    cdef bint step          # of a single step, with x (N, D)
    cdef ptrdiff_t N, T, D, H
    cdef cnp.ndarray x, Wx, Wh
    cdef ptrdiff_t* at      # (tokens,) position of each token in an array (N, T, .)
    cdef void* gates
    cdef void* h
    cdef void* c

    def __reduce__(self):
        raise TypeError("cache cannot be copied or pickled; it serves the arrays of its own forward pass")

    cdef int allocate(self, const ptrdiff_t* lengths, ptrdiff_t N, ptrdiff_t T, ptrdiff_t D, ptrdiff_t H, bint lstm,
                      int kind) except -1:
        cdef int lap
        cdef size_t size = 4 if kind == cnp.NPY_FLOAT32 else 8
        cdef ptrdiff_t t, r, tokens, states, activations
        cdef void* batch_memory
        self.N, self.T, self.D, self.H = N, T, D, H
        if N == 0 or H == 0:  # axes beside that one may be as long as they like
            N, T, lengths = 0, 0, NULL
        tokens = area(N, T)
        if lengths != NULL:
            tokens = 0
            for r in range(N):
                tokens = min(tokens + lengths[r], TOO_LARGE)
        states = area(N + tokens, leading(H, size))
        activations = area(tokens, leading(4 * H if lstm else H, size))
        self.kept = Workspace()
        for lap in range(2):
            self.kept.begin(lap)
            batch_memory = self.kept.take(batch_size(N, T), sizeof(ptrdiff_t))
            self.at = <ptrdiff_t*> self.kept.take(tokens, sizeof(ptrdiff_t))
            self.h = self.kept.take(states, size)
            self.c = self.kept.take(states, size)
            self.gates = self.kept.take(activations, size)
        batch_sort(&self.batch, batch_memory, lengths, N, T, H, lstm, size)
        for t in range(T):
            for r in range(self.batch.active[t]):
                self.at[self.batch.offset[t] + r] = self.batch.row[r] * T + t
        self.kind = kind
        return 0

    cdef int check(self) except -1:
        """Refuse arrays of the forward pass whose shape, dtype or order has changed since."""
        cdef ptrdiff_t G = self.batch.gates
        if self.step:
            self.check_one("x", self.x, has_shape(self.x, 2, self.N, self.D))
        else:
            self.check_one("x", self.x, has_shape(self.x, 3, self.N, self.T, self.D))
        self.check_one("Wx", self.Wx, has_shape(self.Wx, 2, self.D, G))
        self.check_one("Wh", self.Wh, has_shape(self.Wh, 2, self.H, G))
        return 0

    cdef int check_one(self, str name, cnp.ndarray array, bint same) except -1:
        if not same or cnp.PyArray_TYPE(array) != self.kind or not cnp.PyArray_ISCARRAY_RO(array):
            raise ValueError(f"cache has {name} with dtype {array.dtype} and shape {np.shape(array)}; expected {name} "
                             "as it was in the forward pass")
        return 0

    cdef Sequence as_double(self):
        """The same in float64, for a gradient that comes in float64."""
        cdef Sequence wide = Sequence()
        cdef Batch* batch = &self.batch
        cdef ptrdiff_t r, t, rows = batch.N + batch.tokens
        lengths = np.zeros(batch.N, dtype=np.intp)
        cdef ptrdiff_t* length = <ptrdiff_t*> data(lengths)
        for t in range(batch.T):
            for r in range(batch.active[t]):
                length[batch.row[r]] += 1
        wide.allocate(length, self.N, self.T, self.D, self.H, batch.lstm, cnp.NPY_FLOAT64)
        wide.step = self.step
        wide.x, wide.Wx, wide.Wh = (np.require(array, dtype=np.float64, requirements="CA")
                                    for array in (self.x, self.Wx, self.Wh))
        widen(<double*> wide.h, wide.batch.ldh, <float*> self.h, batch.ldh, rows, batch.H)
        if batch.lstm:
            widen(<double*> wide.c, wide.batch.ldh, <float*> self.c, batch.ldh, rows, batch.H)
            widen(<double*> wide.gates, wide.batch.ldg, <float*> self.gates, batch.ldg, batch.tokens, batch.gates)
        return wide


cdef void widen(double* to, ptrdiff_t ldt, const float* source, ptrdiff_t lds, ptrdiff_t rows, ptrdiff_t n) noexcept:
    cdef ptrdiff_t i, j
    for i in range(rows):
        for j in range(n):
            to[i * ldt + j] = source[i * lds + j]


cdef int run_forward(Sequence s, floating* out, floating* c_out, const floating* x, const floating* h0,
                     const floating* c0, const floating* Wx, const floating* Wh, const floating* b) except -1:
    """All of a forward pass: input product, states, time loop. out (N, T, H); c_out (N, H), of T = 1, or NULL."""
    cdef Batch* batch = &s.batch
    cdef int lap
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t D = s.D, H = batch.H, G = batch.gates, tokens = batch.tokens, N = batch.N, i, r
    cdef int threads = threads_for(2.0 * tokens * (D + H) * G)
    cdef int across = <int> max(<ptrdiff_t> 1, min(<ptrdiff_t> threads, batch.N))
    cdef bint packing = batch.T > 1 or N > MODERATE or tokens < area(N, batch.T)
    cdef Workspace scratch = Workspace()
    cdef floating* gates = <floating*> s.gates
    cdef floating* h = <floating*> s.h
    cdef floating* c = <floating*> s.c
    cdef ptrdiff_t* x_at
    cdef ptrdiff_t* out_at
    cdef floating* weights = NULL
    cdef floating* tiles = NULL
    cdef ptrdiff_t step = (D + H) * panel_width(size)
    for lap in range(2):
        scratch.begin(lap)
        x_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        out_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        if packing:
            weights = <floating*> scratch.take(packed_size(D + H, G, size), size)
            tiles = <floating*> scratch.take_each(across, forward_tiles(batch, D, across, size), size)
    with nogil:
        for r in range(N):
            memcpy(h + r * batch.ldh, h0 + batch.row[r] * H, H * size)
            if batch.lstm and c0 != NULL:
                memcpy(c + r * batch.ldh, c0 + batch.row[r] * H, H * size)
            elif batch.lstm:
                memset(c + r * batch.ldh, 0, H * size)
        for i in range(tokens):
            x_at[i] = s.at[i] * D
            out_at[i] = s.at[i] * H
        if D == 0:
            x = b  # no inputs: the input product of every token is the bias
        if packing:
            kernels.pack(weights, step, <floating*> NULL, Wx, NULL, G, 1, D, G, threads)
            kernels.pack(weights + D * panel_width(size), step, <floating*> NULL, Wh, NULL, G, 1, H, G, threads)
            steps_forward(batch, gates, h, c, out, out_at, x, x_at, D, b, weights, tiles, across)
        else:
            single_forward(batch, gates, h, c, out, x, D, Wx, Wh, b, threads)
        if c_out != NULL:
            for r in range(N):
                memcpy(c_out + r * H, c + (N + r) * batch.ldh, H * size)
    return 0


cdef void single_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                         const floating* x, ptrdiff_t D, const floating* Wx, const floating* Wh, const floating* b,
                         int threads) noexcept nogil:
    """One step of a few rows, all of them active, with the weights as they lie; threads share out the columns."""
    cdef ptrdiff_t q, r
    cdef uint64_t mode
    if threads == 1:
        single_part(batch, gates, h, x, D, Wx, Wh, b, 0, batch.gates)
    else:
        for q in prange(threads, num_threads=threads, schedule="static"):
            single_part(batch, gates, h, x, D, Wx, Wh, b, share(batch.gates, q, threads, 64),
                        share(batch.gates, q + 1, threads, 64))
    mode = kernels.denormals_flush()
    for r in range(batch.tokens):
        if batch.lstm:
            kernels.lstm_gates_forward(gates + r * batch.ldg, c + (batch.N + r) * batch.ldh,
                                       h + (batch.N + r) * batch.ldh, out + r * batch.H, <const floating*> NULL,
                                       c + r * batch.ldh, batch.H)
        else:
            kernels.rnn_gates_forward(h + (batch.N + r) * batch.ldh, out + r * batch.H, gates + r * batch.ldg,
                                      <const floating*> NULL, batch.H)
    kernels.denormals_restore(mode)


cdef void single_part(const Batch* batch, floating* gates, const floating* h, const floating* x, ptrdiff_t D,
                      const floating* Wx, const floating* Wh, const floating* b, ptrdiff_t first,
                      ptrdiff_t last) noexcept nogil:
    cdef ptrdiff_t G = batch.gates
    cdef uint64_t mode
    if last <= first:
        return
    mode = kernels.denormals_flush()
    if batch.N <= FEW:
        kernels.gemm_thin(gates + first, batch.ldg, x, D, Wx + first, G, b + first, batch.tokens, last - first, D,
                          False)
        kernels.gemm_thin(gates + first, batch.ldg, h, batch.ldh, Wh + first, G, <const floating*> NULL,
                          batch.tokens, last - first, batch.H, True)
    else:
        kernels.gemm_unpacked(gates + first, batch.ldg, x, D, 1, Wx + first, G, b + first, batch.tokens,
                              last - first, D, False)
        kernels.gemm_unpacked(gates + first, batch.ldg, h, batch.ldh, 1, Wh + first, G, <const floating*> NULL,
                              batch.tokens, last - first, batch.H, True)
    kernels.denormals_restore(mode)


cdef int run_backward(Sequence s, floating* dx, floating* dh0, floating* dc0, floating* dWx, floating* dWh,
                      floating* db, const floating* dh, const floating* dc_last, const floating* x,
                      const floating* Wx, const floating* Wh) except -1:
    """All of a backward pass. dc_last (N, H) is the gradient of the last cell state, or NULL; dc0 (N, H) or NULL."""
    cdef Batch* batch = &s.batch
    cdef int lap
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t D = s.D, H = batch.H, G = batch.gates, tokens = batch.tokens, N = batch.N
    cdef ptrdiff_t places = area(s.N, s.T)
    cdef int threads = threads_for(4.0 * tokens * (D + H) * G)
    cdef int across = <int> max(<ptrdiff_t> 1, min(<ptrdiff_t> threads, batch.N))
    cdef bint ragged = tokens < places
    cdef Workspace scratch = Workspace()
    cdef ptrdiff_t i, r, t
    cdef ptrdiff_t* dh_at
    cdef ptrdiff_t* x_at
    cdef ptrdiff_t* h_at
    cdef floating* da
    cdef floating* dstate
    cdef floating* dc
    cdef floating* Wh_packed
    cdef floating* Wx_packed
    cdef floating* tiles
    cdef floating* da_packed
    cdef floating* x_tiles
    cdef floating* h_tiles
    cdef floating* dx_tokens = dx
    cdef const floating* nothing = NULL
    for lap in range(2):
        scratch.begin(lap)
        dh_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        x_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        h_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        da = <floating*> scratch.take(area(tokens, batch.ldg), size)
        dstate = <floating*> scratch.take(area(N, batch.ldh), size)
        dc = <floating*> scratch.take(area(N, batch.ldh), size)
        Wh_packed = <floating*> scratch.take(packed_size(G, H, size), size)
        Wx_packed = <floating*> scratch.take(packed_size(G, D, size), size)
        tiles = <floating*> scratch.take_each(across, backward_tiles(batch, across, size), size)
        da_packed = <floating*> scratch.take(packed_size(tokens, G, size), size)
        x_tiles = <floating*> scratch.take(tiles_size(D, tokens, size), size)
        h_tiles = <floating*> scratch.take(tiles_size(H, tokens, size), size)
        if ragged:
            dx_tokens = <floating*> scratch.take(area(tokens, D), size)
    with nogil:
        for t in range(batch.T):
            for r in range(batch.active[t]):
                i = batch.offset[t] + r
                dh_at[i] = s.at[i] * H
                x_at[i] = s.at[i] * D
                h_at[i] = before(batch, t, r) * batch.ldh
        memset(dstate, 0, N * batch.ldh * size)
        memset(dc, 0, N * batch.ldh * size)
        if dc_last != NULL:
            for r in range(N):
                memcpy(dc + r * batch.ldh, dc_last + batch.row[r] * H, H * size)
        kernels.pack(Wh_packed, 0, <floating*> NULL, Wh, NULL, 1, G, G, H, threads)
        kernels.pack(Wx_packed, 0, <floating*> NULL, Wx, NULL, 1, G, G, D, threads)
        steps_backward(batch, da, dstate, dc, dx_tokens, 0 if ragged else D, D if ragged else s.T * D, D, dh, dh_at,
                       <floating*> s.gates, <floating*> s.h, <floating*> s.c, Wh_packed, Wx_packed, tiles, across)
        for r in range(N):
            memcpy(dh0 + batch.row[r] * H, dstate + r * batch.ldh, H * size)
            if dc0 != NULL:
                memcpy(dc0 + batch.row[r] * H, dc + r * batch.ldh, H * size)

        kernels.pack(da_packed, 0, db, da, NULL, batch.ldg, 1, tokens, G, threads)
        kernels.pack_tiles(x_tiles, x, NULL, 1, x_at, 0, D, tokens, threads)
        kernels.multiply(dWx, G, x_tiles, da_packed, nothing, D, G, tokens, False, threads)
        kernels.pack_tiles(h_tiles, <const floating*> s.h, NULL, 1, h_at, 0, H, tokens, threads)
        kernels.multiply(dWh, G, h_tiles, da_packed, nothing, H, G, tokens, False, threads)

        if ragged:
            memset(dx, 0, area(places, D) * size)
            for i in range(tokens):
                memcpy(dx + x_at[i], dx_tokens + i * D, D * size)
    return 0


cdef Sequence start(bint lstm, cnp.ndarray x, cnp.ndarray h0, cnp.ndarray Wx, cnp.ndarray Wh, cnp.ndarray b,
                    ptrdiff_t T, ptrdiff_t D, object lengths):
    """Room for a forward pass over (N, T, D), or None where the shapes do not fit; lengths is a private array."""
    cdef ptrdiff_t N = dim(x, 0), H = dim(h0, 1), G = 4 * H if lstm else H
    cdef Sequence s
    if (not has_shape(h0, 2, N, H) or not has_shape(Wx, 2, D, G) or not has_shape(Wh, 2, H, G)
            or not has_shape(b, 1, G)):
        return None
    s = Sequence()
    if lengths is None:
        s.allocate(NULL, N, T, D, H, lstm, cnp.PyArray_TYPE(x))
    else:
        lengths = np.require(checks.as_lengths(lengths, N, T), requirements="CA")
        s.allocate(<ptrdiff_t*> data(lengths), N, T, D, H, lstm, cnp.PyArray_TYPE(x))
    s.x, s.Wx, s.Wh = x, Wx, Wh
    s.step = cnp.PyArray_NDIM(x) == 2
    return s


cdef int forward_of(Sequence s, cnp.ndarray out, cnp.ndarray c_out, cnp.ndarray h0, cnp.ndarray c0,
                    cnp.ndarray b) except -1:
    if s.kind == cnp.NPY_FLOAT32:
        run_forward(s, <float*> data(out), NULL if c_out is None else <float*> data(c_out), <float*> data(s.x),
                    <float*> data(h0), NULL if c0 is None else <float*> data(c0), <float*> data(s.Wx),
                    <float*> data(s.Wh), <float*> data(b))
    else:
        run_forward(s, <double*> data(out), NULL if c_out is None else <double*> data(c_out), <double*> data(s.x),
                    <double*> data(h0), NULL if c0 is None else <double*> data(c0), <double*> data(s.Wx),
                    <double*> data(s.Wh), <double*> data(b))
    return 0


cdef tuple backward_of(Sequence s, cnp.ndarray dh, cnp.ndarray dc, bint with_c):
    """dx, dh0, dc0 (None unless with_c), dWx, dWh, db."""
    cdef ptrdiff_t G = s.batch.gates
    cdef cnp.ndarray dx = new_like(s.x)
    cdef cnp.ndarray dh0 = new(s.kind, 2, s.N, s.H), dWx = new(s.kind, 2, s.D, G)
    cdef cnp.ndarray dWh = new(s.kind, 2, s.H, G), db = new(s.kind, 1, G)
    cdef cnp.ndarray dc0 = new(s.kind, 2, s.N, s.H) if with_c else None
    if s.kind == cnp.NPY_FLOAT32:
        run_backward(s, <float*> data(dx), <float*> data(dh0), <float*> data(dc0) if with_c else NULL,
                     <float*> data(dWx), <float*> data(dWh), <float*> data(db), <float*> data(dh),
                     NULL if dc is None else <float*> data(dc), <float*> data(s.x), <float*> data(s.Wx),
                     <float*> data(s.Wh))
    else:
        run_backward(s, <double*> data(dx), <double*> data(dh0), <double*> data(dc0) if with_c else NULL,
                     <double*> data(dWx), <double*> data(dWh), <double*> data(db), <double*> data(dh),
                     NULL if dc is None else <double*> data(dc), <double*> data(s.x), <double*> data(s.Wx),
                     <double*> data(s.Wh))
    return dx, dh0, dc0, dWx, dWh, db


cdef Sequence cache_of(object cache, bint lstm, bint step):
    """The cache, if it is one of the forward pass that belongs to this backward pass; in_common() looks into it."""
    if not isinstance(cache, Sequence):
        raise TypeError(f"cache is {type(cache).__name__}; expected the cache of the forward pass")
    cdef Sequence s = cache
    if s.x is None or s.batch.lstm != lstm or s.step != step:
        raise ValueError("cache is that of another forward pass; expected that of "
                         f"{'lstm' if lstm else 'rnn'}{'_step' if step else ''}_forward")
    return s


cdef tuple in_common(Sequence s, tuple names, tuple gradients):
    """The cache and the gradients that came for it, in one dtype."""
    cdef tuple found = floats((*names, "cache"), (*gradients, s.Wh))
    s.check()
    gradients = found[:len(names)]
    return s if cnp.PyArray_TYPE(<cnp.ndarray> found[0]) == s.kind else s.as_double(), gradients


cdef tuple sequence_forward(bint lstm, object twin_forward, object x, object h0, object Wx, object Wh, object b,
                            object lengths):
    cdef cnp.ndarray x_, h0_, Wx_, Wh_, b_, out
    cdef Sequence s
    if lengths is not None:
        lengths = np.array(lengths)  # a copy, so that what is checked is what is used
    x_, h0_, Wx_, Wh_, b_ = floats(("x", "h0", "Wx", "Wh", "b"), (x, h0, Wx, Wh, b))
    s = start(lstm, x_, h0_, Wx_, Wh_, b_, dim(x_, 1), dim(x_, 2), lengths) if cnp.PyArray_NDIM(x_) == 3 else None
    if s is None:
        refuse(twin_forward, (x, h0, Wx, Wh, b))
    out = new(s.kind, 3, s.N, s.T, s.H)
    if s.batch.tokens < area(s.N, s.T):
        memset(data(out), 0, cnp.PyArray_NBYTES(out))
    forward_of(s, out, None, h0_, None, b_)
    return out, s


cdef tuple sequence_backward(object dh, Sequence s):
    s, (dh_,) = in_common(s, ("dh",), (dh,))
    if not has_shape(dh_, 3, s.N, s.T, s.H):
        checks.match_shapes({"N": s.N, "T": s.T, "H": s.H}, dh=(dh_, "N T H"))
    dx, dh0, _, dWx, dWh, db = backward_of(s, dh_, None, False)
    return dx, dh0, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b, lengths=None):
    return sequence_forward(False, twin.rnn_forward, x, h0, Wx, Wh, b, lengths)


def rnn_backward(dh, cache):
    return sequence_backward(dh, cache_of(cache, False, False))


def lstm_forward(x, h0, Wx, Wh, b, lengths=None):
    return sequence_forward(True, twin.lstm_forward, x, h0, Wx, Wh, b, lengths)


def lstm_backward(dh, cache):
    return sequence_backward(dh, cache_of(cache, True, False))


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    cdef cnp.ndarray x_, h_, Wx_, Wh_, b_, out
    cdef Sequence s
    x_, h_, Wx_, Wh_, b_ = floats(("x", "prev_h", "Wx", "Wh", "b"), (x, prev_h, Wx, Wh, b))
    s = start(False, x_, h_, Wx_, Wh_, b_, 1, dim(x_, 1), None) if cnp.PyArray_NDIM(x_) == 2 else None
    if s is None:
        refuse(twin.rnn_step_forward, (x, prev_h, Wx, Wh, b))
    out = new(s.kind, 2, s.N, s.H)
    forward_of(s, out, None, h_, None, b_)
    return out, s


def rnn_step_backward(dnext_h, cache):
    s, (dh_,) = in_common(cache_of(cache, False, True), ("dnext_h",), (dnext_h,))
    if not has_shape(dh_, 2, (<Sequence> s).N, (<Sequence> s).H):
        checks.match_shapes({"N": (<Sequence> s).N, "H": (<Sequence> s).H}, dnext_h=(dh_, "N H"))
    dx, dh0, _, dWx, dWh, db = backward_of(s, dh_, None, False)
    return dx, dh0, dWx, dWh, db


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    cdef cnp.ndarray x_, h_, c_, Wx_, Wh_, b_, out, c_out
    cdef Sequence s
    x_, h_, c_, Wx_, Wh_, b_ = floats(("x", "prev_h", "prev_c", "Wx", "Wh", "b"), (x, prev_h, prev_c, Wx, Wh, b))
    s = start(True, x_, h_, Wx_, Wh_, b_, 1, dim(x_, 1), None) if cnp.PyArray_NDIM(x_) == 2 else None
    if s is None or not has_shape(c_, 2, s.N, s.H):
        refuse(twin.lstm_step_forward, (x, prev_h, prev_c, Wx, Wh, b))
    out = new(s.kind, 2, s.N, s.H)
    c_out = new(s.kind, 2, s.N, s.H)
    forward_of(s, out, c_out, h_, c_, b_)
    return out, c_out, s


def lstm_step_backward(dnext_h, dnext_c, cache):
    s, (dh_, dc_) = in_common(cache_of(cache, True, True), ("dnext_h", "dnext_c"), (dnext_h, dnext_c))
    sizes = {"N": (<Sequence> s).N, "H": (<Sequence> s).H}
    if not has_shape(dh_, 2, sizes["N"], sizes["H"]) or not has_shape(dc_, 2, sizes["N"], sizes["H"]):
        checks.match_shapes(sizes, dnext_h=(dh_, "N H"), dnext_c=(dc_, "N H"))
    return backward_of(s, dh_, dc_, True)
