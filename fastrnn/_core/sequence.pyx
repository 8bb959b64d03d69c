"""The RNN and LSTM layers over NumPy arrays: whole sequences and single steps, forward and backward."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from .arrays cimport data, dim, floats, has_shape, new, new_like, raise_error
from .cell cimport Cell, row_backward, row_forward
from .products cimport (
    Operands, depth_of, gathered_transposed, leading_dimension, matrix, multiply, multiply_columns, multiply_panels,
    multiply_rows, multiply_strided, pack_panels, pack_some, pack_tiles, panels_size, take_operands, tile_height,
    tiles_size, transposed,
)
from .runtime cimport (
    TOO_LARGE, Slices, Workspace, area, denormals_flush, denormals_restore, find_cell, panel_width, share, slice_of,
    threads_for,
)
from .time_loop cimport (
    Batch, Scratch, batch_size, batch_sort, state_before, steps_backward, steps_forward, take_backward, take_forward,
)

from .. import checks

cnp.import_array()

cdef const Cell* RNN = find_cell("rnn")
cdef const Cell* LSTM = find_cell("lstm")

cdef enum:
    MODERATE_ROWS = 64  # up to this many rows, a single step does not pay for packing the weights
    MANY_ROWS = 256     # up to this many, it packs a panel at a time, which stays in the cache until it is used


# ---- Cache -----------------------------------------------------------------------------------------------------------

cdef class ForwardCache:
    """The cache of a forward pass, for its backward pass. It cannot be copied or pickled."""
    cdef Batch batch             # without rows and steps if there is nothing to compute
    cdef Workspace memory        # of the arrays below
    cdef int typenum             # NumPy's number of the dtype
    cdef bint single_step        # x is (N, D)
    cdef ptrdiff_t N, T, D, H
    cdef cnp.ndarray x, Wx, Wh
    cdef ptrdiff_t* position     # (tokens,) row of each token in an array (N * T, ...)
    cdef void* gates
    cdef void* h
    cdef void* c

    def __reduce__(self):
        raise TypeError("cache is a ForwardCache, which cannot be copied or pickled; expected the cache itself")

    cdef int allocate(self, const ptrdiff_t* lengths, ptrdiff_t N, ptrdiff_t T, ptrdiff_t D, ptrdiff_t H,
                      const Cell* cell, int typenum, bint bfloat16) except -1:
        """Allocate the memory for rows of these lengths, all T if lengths is NULL."""
        cdef int pass_
        cdef size_t size = 4 if typenum == cnp.NPY_FLOAT32 else 8
        cdef ptrdiff_t t, r, tokens, states, activations
        cdef void* batch_memory
        self.N, self.T, self.D, self.H = N, T, D, H
        if N == 0 or H == 0:  # nothing to compute, however long the other axes are
            N, T, lengths = 0, 0, NULL
        tokens = area(N, T)
        if lengths != NULL:
            tokens = 0
            for r in range(N):
                tokens = min(tokens + lengths[r], TOO_LARGE)
        states = area(N + tokens, leading_dimension(H, size))
        activations = area(tokens, leading_dimension(cell.gates * H, size))
        self.memory = Workspace()
        for pass_ in range(2):
            self.memory.begin(pass_)
            batch_memory = self.memory.take(batch_size(N, T), sizeof(ptrdiff_t))
            self.position = <ptrdiff_t*> self.memory.take(tokens, sizeof(ptrdiff_t))
            self.h = self.memory.take(states, size)
            self.c = self.memory.take(states, size)
            self.gates = self.memory.take(activations, size)
        batch_sort(&self.batch, batch_memory, lengths, N, T, H, cell, size, bfloat16)
        for t in range(T):
            for r in range(self.batch.active[t]):
                self.position[self.batch.offset[t] + r] = self.batch.row[r] * T + t
        self.typenum = typenum
        return 0

    cdef int check(self) except -1:
        """Raise ValueError if an array of the forward pass has changed its shape, dtype or order since."""
        cdef ptrdiff_t G = self.batch.G
        if self.single_step:
            self.check_one("x", self.x, has_shape(self.x, 2, self.N, self.D))
        else:
            self.check_one("x", self.x, has_shape(self.x, 3, self.N, self.T, self.D))
        self.check_one("Wx", self.Wx, has_shape(self.Wx, 2, self.D, G))
        self.check_one("Wh", self.Wh, has_shape(self.Wh, 2, self.H, G))
        return 0

    cdef int check_one(self, str name, cnp.ndarray array, bint same) except -1:
        if not same or cnp.PyArray_TYPE(array) != self.typenum or not cnp.PyArray_ISCARRAY_RO(array):
            raise ValueError(f"cache has {name} with dtype {array.dtype} and shape {np.shape(array)}; expected {name} "
                             "as it was in the forward pass")
        return 0

    cdef ForwardCache as_double(self):
        """Return the cache in float64, for a gradient in float64."""
        cdef ForwardCache wide = ForwardCache()
        cdef Batch* batch = &self.batch
        cdef ptrdiff_t r, t, rows = batch.N + batch.tokens
        lengths = np.zeros(batch.N, dtype=np.intp)
        cdef ptrdiff_t* length = <ptrdiff_t*> data(lengths)
        for t in range(batch.T):
            for r in range(batch.active[t]):
                length[batch.row[r]] += 1
        wide.allocate(length, self.N, self.T, self.D, self.H, batch.cell, cnp.NPY_FLOAT64, False)
        wide.single_step = self.single_step
        wide.x, wide.Wx, wide.Wh = (np.require(array, dtype=np.float64, requirements="CA")
                                    for array in (self.x, self.Wx, self.Wh))
        widen(<double*> wide.h, wide.batch.ldh, <float*> self.h, batch.ldh, rows, batch.H)
        if batch.cell.has_c:
            widen(<double*> wide.c, wide.batch.ldh, <float*> self.c, batch.ldh, rows, batch.H)
        widen(<double*> wide.gates, wide.batch.ldg, <float*> self.gates, batch.ldg, batch.tokens, batch.G)
        return wide


cdef void widen(double* to, ptrdiff_t ldt, const float* source, ptrdiff_t lds, ptrdiff_t rows, ptrdiff_t n) noexcept:
    cdef ptrdiff_t i, j
    for i in range(rows):
        for j in range(n):
            to[i * ldt + j] = source[i * lds + j]


# ---- Passes over C arrays --------------------------------------------------------------------------------------------

cdef int run_forward(ForwardCache s, floating* out, floating* c_out, const floating* x, const floating* h0,
                     const floating* c0, const floating* Wx, const floating* Wh, const floating* b) except -1:
    """Run the forward pass. out is (N, T, H); c_out is NULL or, if T is 1, (N, H)."""
    cdef Batch* batch = &s.batch
    cdef int pass_
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t D = s.D, H = batch.H, G = batch.G, tokens = batch.tokens, N = batch.N, i, r
    cdef int threads = threads_for(2.0 * tokens * (D + H) * G)
    cdef int across = <int> max(<ptrdiff_t> 1, min(<ptrdiff_t> threads, batch.N))
    cdef bint bfloat16 = batch.bfloat16
    cdef bint packing = batch.T > 1 or N > MODERATE_ROWS or tokens < area(N, batch.T) or bfloat16
    cdef bint by_panels = packing and single_by_panels(s)
    cdef Slices panels
    cdef Workspace scratch = Workspace()
    cdef floating* gates = <floating*> s.gates
    cdef floating* h = <floating*> s.h
    cdef floating* c = <floating*> s.c
    cdef ptrdiff_t* x_at
    cdef ptrdiff_t* out_at
    cdef floating* weights = NULL
    cdef floating* tiles = NULL
    cdef Scratch loop_scratch
    cdef ptrdiff_t depth = depth_of(D, bfloat16) + depth_of(H, bfloat16), step = depth * panel_width(size)
    for pass_ in range(2):
        scratch.begin(pass_)
        x_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        out_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        if by_panels:
            tiles = <floating*> scratch.take(tiles_size(N, depth, size), size)
            panels = scratch.take_slices(threads, panels_size(depth, 1, size), size)
        elif packing:
            weights = <floating*> scratch.take(panels_size(depth, G, size), size)
            loop_scratch = take_forward(scratch, batch, D, across, size)
    with nogil:
        for r in range(N):
            memcpy(h + r * batch.ldh, h0 + batch.row[r] * H, H * size)
            if c0 != NULL:
                memcpy(c + r * batch.ldh, c0 + batch.row[r] * H, H * size)
            elif batch.cell.has_c:
                memset(c + r * batch.ldh, 0, H * size)
        for i in range(tokens):
            x_at[i] = s.position[i] * D
            out_at[i] = s.position[i] * H
        if D == 0:
            x = b  # the input product of every token is the bias
        if by_panels:
            panels_forward(batch, gates, h, c, out, x, D, Wx, Wh, b, tiles, panels, threads)
        elif packing:
            # the panels of Wx stacked on Wh
            pack_panels(weights, step, <floating*> NULL, matrix(Wx, G), D, G, bfloat16, threads)
            pack_panels(weights + depth_of(D, bfloat16) * panel_width(size), step, <floating*> NULL, matrix(Wh, G), H,
                        G, bfloat16, threads)
            steps_forward(batch, gates, h, c, out, out_at, x, x_at, D, b, weights, loop_scratch, across)
        else:
            single_forward(batch, gates, h, c, out, x, D, Wx, Wh, b, threads)
        if c_out != NULL:
            for r in range(N):
                memcpy(c_out + r * H, c + (N + r) * batch.ldh, H * size)
    return 0


cdef void single_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                         const floating* x, ptrdiff_t D, const floating* Wx, const floating* Wh, const floating* b,
                         int threads) noexcept nogil:
    """Run one step of a moderate number of rows, all active, with unpacked weights. Threads divide the columns."""
    cdef ptrdiff_t q
    if threads == 1:
        single_columns(batch, gates, h, x, D, Wx, Wh, b, 0, batch.G)
    else:
        for q in prange(threads, num_threads=threads, schedule="static"):
            single_columns(batch, gates, h, x, D, Wx, Wh, b, share(batch.G, q, threads, 64),
                           share(batch.G, q + 1, threads, 64))
    single_rows(batch, gates, h, c, out, threads)


cdef void single_rows(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                      int threads) noexcept nogil:
    """Apply the gates of a single step, or of none: a batch of T = 0 has no tokens. Threads divide the rows."""
    cdef ptrdiff_t q
    if threads == 1:
        some_rows(batch, gates, h, c, out, 0, batch.tokens)
    else:
        for q in prange(threads, num_threads=threads, schedule="static"):
            some_rows(batch, gates, h, c, out, share(batch.tokens, q, threads, 1),
                      share(batch.tokens, q + 1, threads, 1))


cdef void some_rows(const Batch* batch, floating* gates, floating* h, floating* c, floating* out, ptrdiff_t first,
                    ptrdiff_t last) noexcept nogil:
    cdef ptrdiff_t r, ldh = batch.ldh
    cdef uint64_t mode = denormals_flush()
    for r in range(first, last):
        row_forward(batch.cell, gates + r * batch.ldg, h + (batch.N + r) * ldh, c + (batch.N + r) * ldh,
                    out + r * batch.H, <const floating*> NULL, <const floating*> h + r * ldh,
                    <const floating*> c + r * ldh, batch.H)
    denormals_restore(mode)


cdef void single_columns(const Batch* batch, floating* gates, const floating* h, const floating* x, ptrdiff_t D,
                         const floating* Wx, const floating* Wh, const floating* b, ptrdiff_t n0,
                         ptrdiff_t n1) noexcept nogil:
    multiply_columns(gates, batch.ldg, x, D, Wx, batch.G, b, batch.tokens, D, n0, n1, False)
    multiply_columns(gates, batch.ldg, h, batch.ldh, Wh, batch.G, <const floating*> NULL, batch.tokens, batch.H, n0, n1,
                     True)


cdef bint single_by_panels(ForwardCache s) noexcept:
    """Return whether a pass is a single step that packs its weights a panel at a time, which changes no bit."""
    return s.batch.T == 1 and s.batch.tokens == s.batch.N <= MANY_ROWS and s.D > 0 and not s.batch.bfloat16


cdef void panels_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                         const floating* x, ptrdiff_t D, const floating* Wx, const floating* Wh, const floating* b,
                         floating* tiles, Slices panels, int threads) noexcept nogil:
    """Run one step of many rows, all active. Threads divide the panels of the weights."""
    cdef ptrdiff_t q, N = batch.N, depth = D + batch.H, height = tile_height(N, sizeof(floating))
    cdef ptrdiff_t count = (N + height - 1) // height
    # each row of a tile is [x, previous h]
    pack_tiles(tiles, height * depth, matrix(x, D), N, D, height, 0, count, False)
    pack_tiles(tiles + height * D, height * depth, matrix(h, batch.ldh), N, batch.H, height, 0, count, False)
    if threads == 1:
        some_panels_forward(batch, gates, D, Wx, Wh, b, tiles, <floating*> panels.memory, 0, 1)
    else:
        for q in prange(threads, num_threads=threads, schedule="static"):
            some_panels_forward(batch, gates, D, Wx, Wh, b, tiles, <floating*> slice_of(panels, q), q, threads)
    single_rows(batch, gates, h, c, out, threads)


cdef void some_panels_forward(const Batch* batch, floating* gates, ptrdiff_t D, const floating* Wx, const floating* Wh,
                              const floating* b, const floating* tiles, floating* panel, ptrdiff_t q,
                              int threads) noexcept nogil:
    """Compute the q-th part of the columns of the products. Each panel is one of Wx stacked on one of Wh."""
    cdef ptrdiff_t width = panel_width(sizeof(floating)), G = batch.G, H = batch.H
    cdef ptrdiff_t count = (G + width - 1) // width, p
    cdef uint64_t mode = denormals_flush()
    for p in range(share(count, q, threads, 1), share(count, q + 1, threads, 1)):
        pack_some(panel, width * D, <floating*> NULL, matrix(Wx, G), D, G, p, p + 1, False)
        pack_some(panel + width * D, width * H, <floating*> NULL, matrix(Wh, G), H, G, p, p + 1, False)
        multiply_rows(gates + p * width, batch.ldg, tiles, <const floating*> panel, b + p * width, batch.N,
                      min(width, G - p * width), D + H, False, False)
    denormals_restore(mode)


cdef void panels_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx, ptrdiff_t D,
                          const floating* dh, const floating* gates, const floating* h, const floating* c,
                          const floating* Wx, const floating* Wh, Slices panels, int threads) noexcept nogil:
    """Run one step backward, all rows active. Threads divide the rows, then the panels of the transposed weights."""
    cdef ptrdiff_t q
    if threads == 1:
        some_rows_backward(batch, da, dstate, dc, dh, gates, h, c, 0, batch.N)
        some_panels_backward(batch, da, dstate, dx, D, Wx, Wh, <floating*> panels.memory, 0, 1)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        some_rows_backward(batch, da, dstate, dc, dh, gates, h, c, share(batch.N, q, threads, 1),
                           share(batch.N, q + 1, threads, 1))
    for q in prange(threads, num_threads=threads, schedule="static"):
        some_panels_backward(batch, da, dstate, dx, D, Wx, Wh, <floating*> slice_of(panels, q), q, threads)


cdef void some_rows_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, const floating* dh,
                             const floating* gates, const floating* h, const floating* c, ptrdiff_t first,
                             ptrdiff_t last) noexcept nogil:
    cdef ptrdiff_t r, ldh = batch.ldh, ldg = batch.ldg
    cdef uint64_t mode = denormals_flush()
    for r in range(first, last):
        row_backward(batch.cell, da + r * ldg, dstate + r * ldh, dc + r * ldh, dh + r * batch.H, gates + r * ldg,
                     h + (batch.N + r) * ldh, c + (batch.N + r) * ldh, h + r * ldh, c + r * ldh, batch.H)
    denormals_restore(mode)


cdef void some_panels_backward(const Batch* batch, const floating* da, floating* dstate, floating* dx, ptrdiff_t D,
                               const floating* Wx, const floating* Wh, floating* panel, ptrdiff_t q,
                               int threads) noexcept nogil:
    """Compute the q-th part of the columns of dstate and dx, which are counted in this order."""
    cdef ptrdiff_t width = panel_width(sizeof(floating)), G = batch.G, H = batch.H
    cdef ptrdiff_t of_h = (H + width - 1) // width, count = of_h + (D + width - 1) // width, k, p
    cdef const floating* no_bias = NULL
    cdef uint64_t mode = denormals_flush()
    for k in range(share(count, q, threads, 1), share(count, q + 1, threads, 1)):
        if k < of_h:
            p = k
            pack_some(panel, width * G, <floating*> NULL, transposed(Wh, G), G, H, p, p + 1, False)
            multiply_strided(dstate + p * width, batch.ldh, da, batch.ldg, <const floating*> panel, no_bias, batch.N,
                             min(width, H - p * width), G, batch.cell.direct, False)
        else:
            p = k - of_h
            pack_some(panel, width * G, <floating*> NULL, transposed(Wx, G), G, D, p, p + 1, False)
            multiply_strided(dx + p * width, D, da, batch.ldg, <const floating*> panel, no_bias, batch.N,
                             min(width, D - p * width), G, False, False)
    denormals_restore(mode)


cdef int run_backward(ForwardCache s, floating* dx, floating* dh0, floating* dc0, floating* dWx, floating* dWh,
                      floating* db, const floating* dh, const floating* dc_last, const floating* x,
                      const floating* Wx, const floating* Wh) except -1:
    """Run the backward pass. dc_last is NULL or the gradient (N, H) of the last c; dc0 is (N, H) or NULL."""
    cdef Batch* batch = &s.batch
    cdef int pass_
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t D = s.D, H = batch.H, G = batch.G, tokens = batch.tokens, N = batch.N
    cdef ptrdiff_t places = area(s.N, s.T)
    cdef int threads = threads_for(4.0 * tokens * (D + H) * G)
    cdef int across = <int> max(<ptrdiff_t> 1, min(<ptrdiff_t> threads, batch.N))
    cdef bint ragged = tokens < places, bfloat16 = batch.bfloat16
    cdef bint by_panels = single_by_panels(s)
    cdef Workspace scratch = Workspace()
    cdef ptrdiff_t i, r, t
    cdef ptrdiff_t* dh_at
    cdef ptrdiff_t* x_at
    cdef ptrdiff_t* h_at
    cdef floating* da
    cdef floating* dstate
    cdef floating* dc
    cdef floating* Wh_panels = NULL
    cdef floating* Wx_panels = NULL
    cdef Slices panels
    cdef floating* dx_tokens = dx
    cdef Scratch loop_scratch
    cdef Operands dWx_operands, dWh_operands
    cdef const floating* no_bias = NULL
    for pass_ in range(2):
        scratch.begin(pass_)
        dh_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        x_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        h_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        da = <floating*> scratch.take(area(tokens, batch.ldg), size)
        dstate = <floating*> scratch.take(area(N, batch.ldh), size)
        dc = <floating*> scratch.take(area(N, batch.ldh), size)
        if by_panels:
            panels = scratch.take_slices(threads, panels_size(G, 1, size), size)
        else:
            Wh_panels = <floating*> scratch.take(panels_size(depth_of(G, bfloat16), H, size), size)
            Wx_panels = <floating*> scratch.take(panels_size(depth_of(G, bfloat16), D, size), size)
            loop_scratch = take_backward(scratch, batch, across, size)
        dWx_operands = take_operands(scratch, D, G, tokens, size, bfloat16)
        dWh_operands = dWx_operands
        dWh_operands.tiles = scratch.take(tiles_size(H, depth_of(tokens, bfloat16), size), size)
        if ragged:
            dx_tokens = <floating*> scratch.take(area(tokens, D), size)
    with nogil:
        for t in range(batch.T):
            for r in range(batch.active[t]):
                i = batch.offset[t] + r
                dh_at[i] = s.position[i] * H
                x_at[i] = s.position[i] * D
                h_at[i] = state_before(batch, t, r) * batch.ldh
        memset(dstate, 0, N * batch.ldh * size)
        memset(dc, 0, N * batch.ldh * size)
        if dc_last != NULL:
            for r in range(N):
                memcpy(dc + r * batch.ldh, dc_last + batch.row[r] * H, H * size)
        if by_panels:
            panels_backward(batch, da, dstate, dc, dx, D, dh, <const floating*> s.gates, <const floating*> s.h,
                            <const floating*> s.c, Wx, Wh, panels, threads)
        else:
            pack_panels(Wh_panels, 0, <floating*> NULL, transposed(Wh, G), G, H, bfloat16, threads)
            pack_panels(Wx_panels, 0, <floating*> NULL, transposed(Wx, G), G, D, bfloat16, threads)
            steps_backward(batch, da, dstate, dc, dx_tokens, 0 if ragged else D, D if ragged else s.T * D, D, dh, dh_at,
                           <floating*> s.gates, <floating*> s.h, <floating*> s.c, Wh_panels, Wx_panels, loop_scratch,
                           across)
        for r in range(N):
            memcpy(dh0 + batch.row[r] * H, dstate + r * batch.ldh, H * size)
            if dc0 != NULL:
                memcpy(dc0 + batch.row[r] * H, dc + r * batch.ldh, H * size)

        multiply(dWx, G, gathered_transposed(x, x_at), matrix(da, batch.ldg), dWx_operands, no_bias, db, D, G, tokens,
                 threads)
        multiply_panels(dWh, G, gathered_transposed(s.h, h_at), dWh_operands, no_bias, H, G, tokens, threads)

        if ragged:
            memset(dx, 0, area(places, D) * size)
            for i in range(tokens):
                memcpy(dx + x_at[i], dx_tokens + i * D, D * size)
    return 0


# ---- Passes over NumPy arrays ----------------------------------------------------------------------------------------

cdef ForwardCache new_cache(const Cell* cell, cnp.ndarray x, cnp.ndarray h0, cnp.ndarray Wx, cnp.ndarray Wh,
                            cnp.ndarray b, ptrdiff_t T, ptrdiff_t D, object lengths, bint bfloat16):
    """Return a cache for a forward pass over (N, T, D), or None if the shapes do not match. lengths is a copy."""
    cdef ptrdiff_t N = dim(x, 0), H = dim(h0, 1), G = cell.gates * H
    cdef ForwardCache s
    if (not has_shape(h0, 2, N, H) or not has_shape(Wx, 2, D, G) or not has_shape(Wh, 2, H, G)
            or not has_shape(b, 1, G)):
        return None
    s = ForwardCache()
    if lengths is None:
        s.allocate(NULL, N, T, D, H, cell, cnp.PyArray_TYPE(x), bfloat16)
    else:
        lengths = np.require(checks.as_lengths(lengths, N, T), requirements="CA")
        s.allocate(<ptrdiff_t*> data(lengths), N, T, D, H, cell, cnp.PyArray_TYPE(x), bfloat16)
    s.x, s.Wx, s.Wh = x, Wx, Wh
    s.single_step = cnp.PyArray_NDIM(x) == 2
    return s


cdef int forward(ForwardCache s, cnp.ndarray out, cnp.ndarray c_out, cnp.ndarray h0, cnp.ndarray c0,
                 cnp.ndarray b) except -1:
    if s.typenum == cnp.NPY_FLOAT32:
        run_forward(s, <float*> data(out), NULL if c_out is None else <float*> data(c_out), <float*> data(s.x),
                    <float*> data(h0), NULL if c0 is None else <float*> data(c0), <float*> data(s.Wx),
                    <float*> data(s.Wh), <float*> data(b))
    else:
        run_forward(s, <double*> data(out), NULL if c_out is None else <double*> data(c_out), <double*> data(s.x),
                    <double*> data(h0), NULL if c0 is None else <double*> data(c0), <double*> data(s.Wx),
                    <double*> data(s.Wh), <double*> data(b))
    return 0


cdef tuple backward(ForwardCache s, cnp.ndarray dh, cnp.ndarray dc, bint with_c):
    """Return dx, dh0, dc0 (None unless with_c is set), dWx, dWh, db."""
    cdef ptrdiff_t G = s.batch.G
    cdef cnp.ndarray dx = new_like(s.x)
    cdef cnp.ndarray dh0 = new(s.typenum, 2, s.N, s.H), dWx = new(s.typenum, 2, s.D, G)
    cdef cnp.ndarray dWh = new(s.typenum, 2, s.H, G), db = new(s.typenum, 1, G)
    cdef cnp.ndarray dc0 = new(s.typenum, 2, s.N, s.H) if with_c else None
    if s.typenum == cnp.NPY_FLOAT32:
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


cdef str op_name(const Cell* cell, bint single_step):
    """Return the name of an op, such as "lstm_step"."""
    return cell.name.decode() + ("_step" if single_step else "")


cdef ForwardCache check_cache(object cache, const Cell* cell, bint single_step):
    """Return the cache if it is one of the forward pass of this cell. promote() checks its arrays."""
    cdef ForwardCache s
    if not isinstance(cache, ForwardCache):
        raise TypeError(f"cache is {type(cache).__name__}; expected the cache of the forward pass")
    s = cache
    if s.x is None:
        raise ValueError(f"cache is that of no forward pass; expected that of {op_name(cell, single_step)}_forward")
    if s.batch.cell != cell or s.single_step != single_step:
        raise ValueError(f"cache is that of {op_name(s.batch.cell, s.single_step)}_forward; expected that of "
                         f"{op_name(cell, single_step)}_forward")
    return s


cdef tuple promote(ForwardCache s, tuple names, tuple gradients):
    """Return the cache and the gradients in one dtype."""
    cdef tuple found = floats((*names, "cache"), (*gradients, s.Wh))
    s.check()
    if s.batch.bfloat16 and cnp.PyArray_TYPE(<cnp.ndarray> found[0]) != s.typenum:
        raise TypeError(f"{names[0]} and the cache have the dtype {found[0].dtype}; expected float32, because the "
                        "precision is 'bfloat16'")
    gradients = found[:len(names)]
    return s if cnp.PyArray_TYPE(<cnp.ndarray> found[0]) == s.typenum else s.as_double(), gradients


cdef tuple sequence_forward(const Cell* cell, object x, object h0, object Wx, object Wh, object b, object lengths,
                            object precision):
    cdef cnp.ndarray x_, h0_, Wx_, Wh_, b_, out
    cdef ForwardCache s = None
    if lengths is not None:
        lengths = np.array(lengths)  # a copy, so that no other code can change the lengths after the check
    x_, h0_, Wx_, Wh_, b_ = floats(("x", "h0", "Wx", "Wh", "b"), (x, h0, Wx, Wh, b))
    cdef bint bfloat16 = checks.is_bfloat16(precision, x_.dtype)
    if cnp.PyArray_NDIM(x_) == 3:
        s = new_cache(cell, x_, h0_, Wx_, Wh_, b_, dim(x_, 1), dim(x_, 2), lengths, bfloat16)
    if s is None:
        raise_error(checks.cell_forward, (cell.gates, x_, h0_, Wx_, Wh_, b_))
    out = new(s.typenum, 3, s.N, s.T, s.H)
    if s.batch.tokens < area(s.N, s.T):
        memset(data(out), 0, cnp.PyArray_NBYTES(out))
    forward(s, out, None, h0_, None, b_)
    return out, s


cdef tuple sequence_backward(object dh, ForwardCache s):
    s, (dh_,) = promote(s, ("dh",), (dh,))
    if not has_shape(dh_, 3, s.N, s.T, s.H):
        checks.match_shapes({"N": s.N, "T": s.T, "H": s.H}, dh=(dh_, "N T H"))
    dx, dh0, _, dWx, dWh, db = backward(s, dh_, None, False)
    return dx, dh0, dWx, dWh, db


def rnn_forward(x, h0, Wx, Wh, b, lengths=None, precision="float32"):
    return sequence_forward(RNN, x, h0, Wx, Wh, b, lengths, precision)


def rnn_backward(dh, cache):
    return sequence_backward(dh, check_cache(cache, RNN, False))


def lstm_forward(x, h0, Wx, Wh, b, lengths=None, precision="float32"):
    return sequence_forward(LSTM, x, h0, Wx, Wh, b, lengths, precision)


def lstm_backward(dh, cache):
    return sequence_backward(dh, check_cache(cache, LSTM, False))


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    cdef cnp.ndarray x_, h_, Wx_, Wh_, b_, out
    cdef ForwardCache s = None
    x_, h_, Wx_, Wh_, b_ = floats(("x", "prev_h", "Wx", "Wh", "b"), (x, prev_h, Wx, Wh, b))
    if cnp.PyArray_NDIM(x_) == 2:
        s = new_cache(RNN, x_, h_, Wx_, Wh_, b_, 1, dim(x_, 1), None, False)
    if s is None:
        raise_error(checks.cell_step_forward, (RNN.gates, x_, (h_,), Wx_, Wh_, b_))
    out = new(s.typenum, 2, s.N, s.H)
    forward(s, out, None, h_, None, b_)
    return out, s


def rnn_step_backward(dnext_h, cache):
    cdef ForwardCache s
    s, (dh_,) = promote(check_cache(cache, RNN, True), ("dnext_h",), (dnext_h,))
    if not has_shape(dh_, 2, s.N, s.H):
        checks.match_shapes({"N": s.N, "H": s.H}, dnext_h=(dh_, "N H"))
    dx, dh0, _, dWx, dWh, db = backward(s, dh_, None, False)
    return dx, dh0, dWx, dWh, db


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    cdef cnp.ndarray x_, h_, c_, Wx_, Wh_, b_, out, c_out
    cdef ForwardCache s = None
    x_, h_, c_, Wx_, Wh_, b_ = floats(("x", "prev_h", "prev_c", "Wx", "Wh", "b"), (x, prev_h, prev_c, Wx, Wh, b))
    if cnp.PyArray_NDIM(x_) == 2:
        s = new_cache(LSTM, x_, h_, Wx_, Wh_, b_, 1, dim(x_, 1), None, False)
    if s is None or not has_shape(c_, 2, s.N, s.H):
        raise_error(checks.cell_step_forward, (LSTM.gates, x_, (h_, c_), Wx_, Wh_, b_))
    out = new(s.typenum, 2, s.N, s.H)
    c_out = new(s.typenum, 2, s.N, s.H)
    forward(s, out, c_out, h_, c_, b_)
    return out, c_out, s


def lstm_step_backward(dnext_h, dnext_c, cache):
    cdef ForwardCache s
    s, (dh_, dc_) = promote(check_cache(cache, LSTM, True), ("dnext_h", "dnext_c"), (dnext_h, dnext_c))
    if not has_shape(dh_, 2, s.N, s.H) or not has_shape(dc_, 2, s.N, s.H):
        checks.match_shapes({"N": s.N, "H": s.H}, dnext_h=(dh_, "N H"), dnext_c=(dc_, "N H"))
    return backward(s, dh_, dc_, True)
