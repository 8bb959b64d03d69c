"""An LSTM with scaled dot-product attention over a grid, on NumPy arrays: whole sequences and single steps.

The places of a grid are vectors of H columns; they are copied from (H, P) to (P, H) once for each row of the batch, so
that scores, softmax and context of a step read them from the cache as whole vectors. Each thread takes every
`threads`-th row through the whole sequence. The order of every sum is independent of the number of threads.
"""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, floats, has_shape, new, new_like, raise_error
from .cell cimport Cell, row_backward, row_forward
from .products cimport (
    Operands, gathered, gathered_transposed, leading_dimension, matrix, multiply, multiply_panels, multiply_strided,
    pack_panels, panels_size, take_operands, tiles_size, transposed,
)
from .runtime cimport Slices, Workspace, area, denormals_flush, denormals_restore, find_cell, slice_of, threads_for
from .time_loop cimport Batch, batch_size, batch_sort, state_before

from .. import checks

cnp.import_array()

cdef const Cell* LSTM = find_cell("lstm")


cdef inline double scale_of(ptrdiff_t H) noexcept nogil:
    """Return the factor of the scores of vectors of H columns."""
    return 1 / sqrt(<double> max(H, <ptrdiff_t> 1))


cdef inline ptrdiff_t places_of(cnp.ndarray A) noexcept:
    """Return the number of places of a grid (N, H, ...); 0 if it is no grid or has none."""
    cdef ptrdiff_t P = 1
    cdef int axis
    for axis in range(2, cnp.PyArray_NDIM(A)):
        P = area(P, cnp.PyArray_DIMS(A)[axis])
    return P if cnp.PyArray_NDIM(A) > 2 else 0


cdef inline bint is_grid(cnp.ndarray A, ptrdiff_t N, ptrdiff_t H) noexcept:
    return places_of(A) > 0 and dim(A, 0) == N and dim(A, 1) == H


cdef void turn(floating* places, ptrdiff_t ld, const floating* A, ptrdiff_t P, ptrdiff_t H) noexcept nogil:
    """Copy one grid (H, P) to places (P, H), whose rows are `ld` elements apart."""
    cdef ptrdiff_t p, j
    for p in range(P):
        for j in range(H):
            places[p * ld + j] = A[j * P + p]


# ---- Cache -----------------------------------------------------------------------------------------------------------

cdef class AttentionCache:
    """The cache of a forward pass, for its backward pass. It cannot be copied or pickled."""
    cdef Batch batch             # without rows and steps if there is nothing to compute
    cdef int typenum             # NumPy's number of the dtype
    cdef bint single_step        # x is (N, D), and the initial states are arguments
    cdef ptrdiff_t N, T, D, H, P
    cdef tuple inputs, shapes    # x, A, Wx, Wh, Wattn and their shapes
    cdef cnp.ndarray lengths     # private, or None
    cdef cnp.ndarray order       # memory of the batch
    cdef cnp.ndarray position    # (tokens,) row of each token in an array (N * T, ...)
    cdef cnp.ndarray gates, h, c  # (tokens, ldg), (N + tokens, ldh)
    cdef cnp.ndarray context, weight  # (tokens, ldh), (tokens, P): of the places, as attended to at each token

    def __reduce__(self):
        raise TypeError("cache is an AttentionCache, which cannot be copied or pickled; expected the cache itself")

    cdef int allocate(self, tuple inputs, bint single_step, cnp.ndarray lengths) except -1:
        """Allocate the memory for checked arguments; lengths are intp, or None."""
        cdef cnp.ndarray x = inputs[0], A = inputs[1]
        cdef ptrdiff_t N, T, t, r
        cdef size_t size
        cdef ptrdiff_t* position
        self.inputs, self.lengths, self.single_step = inputs, lengths, single_step
        self.shapes = tuple([np.shape(array) for array in inputs])
        self.typenum = cnp.PyArray_TYPE(x)
        self.N, self.T = dim(x, 0), 1 if single_step else dim(x, 1)
        self.D, self.H, self.P = dim(x, 1 if single_step else 2), dim(A, 1), places_of(A)
        N, T = self.N, self.T
        size = 4 if self.typenum == cnp.NPY_FLOAT32 else 8
        if N == 0 or self.H == 0:  # nothing to compute, however long the other axes are
            N, T, lengths = 0, 0, None
        self.order = new(cnp.NPY_INTP, 1, batch_size(N, T))
        batch_sort(&self.batch, data(self.order), NULL if lengths is None else <ptrdiff_t*> data(lengths), N, T,
                   self.H, LSTM, size, False)
        self.position = new(cnp.NPY_INTP, 1, self.batch.tokens)
        position = <ptrdiff_t*> data(self.position)
        for t in range(T):
            for r in range(self.batch.active[t]):
                position[self.batch.offset[t] + r] = self.batch.row[r] * T + t
        self.gates = new(self.typenum, 2, self.batch.tokens, self.batch.ldg)
        self.h = new(self.typenum, 2, N + self.batch.tokens, self.batch.ldh)
        self.c = new(self.typenum, 2, N + self.batch.tokens, self.batch.ldh)
        self.context = new(self.typenum, 2, self.batch.tokens, self.batch.ldh)
        self.weight = new(self.typenum, 2, self.batch.tokens, self.P if N else 0)
        return 0

    cdef int check(self) except -1:
        """Raise ValueError if an array of the forward pass has changed its shape, dtype or order since."""
        for name, array, shape in zip(("x", "A", "Wx", "Wh", "Wattn"), self.inputs, self.shapes):
            if (np.shape(array) != shape or cnp.PyArray_TYPE(<cnp.ndarray> array) != self.typenum
                    or not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array)):
                raise ValueError(f"cache has {name} with dtype {array.dtype} and shape {np.shape(array)}; expected "
                                 f"{name} as it was in the forward pass")
        return 0

    cdef AttentionCache as_double(self):
        """Return the cache in float64, for a gradient in float64."""
        cdef AttentionCache wide = AttentionCache()
        cdef ptrdiff_t H = self.batch.H, G = self.batch.G
        wide.allocate(tuple([np.require(array, dtype=np.float64, requirements="CA") for array in self.inputs]),
                      self.single_step, self.lengths)
        wide.gates[:, :G] = self.gates[:, :G]
        for to, source in ((wide.h, self.h), (wide.c, self.c), (wide.context, self.context)):
            to[:, :H] = source[:, :H]
        wide.weight[...] = self.weight
        return wide


# ---- Forward ---------------------------------------------------------------------------------------------------------

cdef int run_forward(AttentionCache s, floating* out, floating* c_out, const floating* x, const floating* h0,
                     const floating* c0, const floating* A, const floating* Wx, const floating* Wh,
                     const floating* Wattn, const floating* b) except -1:
    """Run the forward pass. h0 and c0 are (N, H), or NULL for the mean of the grids; c_out is (N, H) or NULL."""
    cdef Batch* batch = &s.batch
    cdef int pass_, k
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t D = s.D, H = batch.H, P = s.P, G = batch.G, tokens = batch.tokens, N = batch.N, i, r
    cdef int threads = threads_for(2.0 * tokens * ((D + 2 * H) * G + 2 * P * H))
    cdef int across = <int> max(<ptrdiff_t> 1, min(<ptrdiff_t> threads, N))
    cdef Workspace scratch = Workspace()
    cdef floating* gates = <floating*> data(s.gates)
    cdef floating* h = <floating*> data(s.h)
    cdef floating* c = <floating*> data(s.c)
    cdef floating* context = <floating*> data(s.context)
    cdef floating* weight = <floating*> data(s.weight)
    cdef ptrdiff_t* position = <ptrdiff_t*> data(s.position)
    cdef ptrdiff_t* x_at
    cdef floating* places
    cdef floating* Wh_panels
    cdef floating* Wattn_panels
    cdef Operands operands
    for pass_ in range(2):
        scratch.begin(pass_)
        x_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        places = <floating*> scratch.take(area(N, area(P, batch.ldh)), size)
        Wh_panels = <floating*> scratch.take(panels_size(H, G, size), size)
        Wattn_panels = <floating*> scratch.take(panels_size(H, G, size), size)
        operands = take_operands(scratch, tokens, G, D, size, False)
    with nogil:
        for i in range(tokens):
            x_at[i] = position[i] * D
        if h0 != NULL:
            for r in range(N):
                memcpy(h + r * batch.ldh, h0 + batch.row[r] * H, H * size)
                memcpy(c + r * batch.ldh, c0 + batch.row[r] * H, H * size)
        multiply(gates, batch.ldg, gathered(x, x_at), matrix(Wx, G), operands, b, <floating*> NULL, tokens, G, D,
                 threads)
        pack_panels(Wh_panels, 0, <floating*> NULL, matrix(Wh, G), H, G, False, threads)
        pack_panels(Wattn_panels, 0, <floating*> NULL, matrix(Wattn, G), H, G, False, threads)
        if across == 1:
            rows_forward(batch, gates, h, c, context, weight, places, out, position, A, h0 == NULL, P, Wh_panels,
                         Wattn_panels, 0, 1)
        else:
            for k in prange(across, num_threads=across, schedule="static"):
                rows_forward(batch, gates, h, c, context, weight, places, out, position, A, h0 == NULL, P, Wh_panels,
                             Wattn_panels, k, across)
        if c_out != NULL:
            for r in range(N):
                memcpy(c_out + r * H, c + (N + r) * batch.ldh, H * size)
    return 0


cdef void rows_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* context,
                       floating* weight, floating* places, floating* out, const ptrdiff_t* position, const floating* A,
                       bint from_mean, ptrdiff_t P, const floating* Wh_panels, const floating* Wattn_panels,
                       ptrdiff_t first, ptrdiff_t stride) noexcept nogil:
    """Run all steps of rows first, first + stride, ...; gates start with the products of the inputs."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, G = batch.G, N = batch.N
    cdef ptrdiff_t r = first, t, token, rows, j, p
    cdef floating* grid
    cdef floating* to
    cdef uint64_t mode = denormals_flush()
    while r < N:
        grid = places + r * P * ldh
        turn(grid, ldh, A + batch.row[r] * H * P, P, H)
        if from_mean:
            for j in range(H):
                h[r * ldh + j] = grid[j]
            for p in range(1, P):
                for j in range(H):
                    h[r * ldh + j] += grid[p * ldh + j]
            for j in range(H):
                h[r * ldh + j] /= P
            memcpy(c + r * ldh, h + r * ldh, H * sizeof(floating))
        r += stride
    for t in range(batch.T):
        if batch.active[t] <= first:
            break
        rows = (batch.active[t] - first + stride - 1) // stride
        r = first
        while r < batch.active[t]:
            token = batch.offset[t] + r
            kernels.attend(context + token * ldh, weight + token * P, <const floating*> h
                           + state_before(batch, t, r) * ldh, <const floating*> places + r * P * ldh, ldh, P, H,
                           scale_of(H))
            r += stride
        to = gates + (batch.offset[t] + first) * ldg
        multiply_strided(to, stride * ldg, <const floating*> h + state_before(batch, t, first) * ldh, stride * ldh,
                         Wh_panels, <const floating*> NULL, rows, G, H, True, False)
        multiply_strided(to, stride * ldg, <const floating*> context + (batch.offset[t] + first) * ldh, stride * ldh,
                         Wattn_panels, <const floating*> NULL, rows, G, H, True, False)
        r = first
        while r < batch.active[t]:
            token = batch.offset[t] + r
            row_forward(batch.cell, gates + token * ldg, h + (N + token) * ldh, c + (N + token) * ldh,
                        out + position[token] * H, <const floating*> NULL,
                        <const floating*> h + state_before(batch, t, r) * ldh,
                        <const floating*> c + state_before(batch, t, r) * ldh, H)
            r += stride
    denormals_restore(mode)


# ---- Backward --------------------------------------------------------------------------------------------------------

cdef int run_backward(AttentionCache s, floating* dx, floating* dh0, floating* dc0, floating* dA, floating* dWx,
                      floating* dWh, floating* dWattn, floating* db, const floating* dh, const floating* dc_last,
                      const floating* x, const floating* A, const floating* Wx, const floating* Wh,
                      const floating* Wattn) except -1:
    """Run the backward pass. dh0, dc0 and dc_last are (N, H), or all NULL: the initial states are means of grids."""
    cdef Batch* batch = &s.batch
    cdef int pass_, k
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t D = s.D, H = batch.H, P = s.P, G = batch.G, tokens = batch.tokens, N = batch.N, i, r, t
    cdef ptrdiff_t grids = area(N, area(P, batch.ldh))
    cdef int threads = threads_for(4.0 * tokens * ((D + 2 * H) * G + 2 * P * H))
    cdef int across = <int> max(<ptrdiff_t> 1, min(<ptrdiff_t> threads, N))
    cdef Workspace scratch = Workspace()
    cdef floating* gates = <floating*> data(s.gates)
    cdef floating* h = <floating*> data(s.h)
    cdef floating* c = <floating*> data(s.c)
    cdef floating* context = <floating*> data(s.context)
    cdef floating* weight = <floating*> data(s.weight)
    cdef ptrdiff_t* position = <ptrdiff_t*> data(s.position)
    cdef ptrdiff_t* x_at
    cdef ptrdiff_t* h_at
    cdef ptrdiff_t* context_at
    cdef floating* da
    cdef floating* dstate
    cdef floating* dc
    cdef floating* dcontext
    cdef floating* dscore
    cdef floating* places
    cdef floating* dplaces
    cdef floating* dx_tokens
    cdef floating* Wh_panels
    cdef floating* Wattn_panels
    cdef Operands dx_operands, dWx_operands, dWh_operands
    for pass_ in range(2):
        scratch.begin(pass_)
        x_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        h_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        context_at = <ptrdiff_t*> scratch.take(tokens, sizeof(ptrdiff_t))
        da = <floating*> scratch.take(area(tokens, batch.ldg), size)
        dstate = <floating*> scratch.take(area(N, batch.ldh), size)
        dc = <floating*> scratch.take(area(N, batch.ldh), size)
        dcontext = <floating*> scratch.take(area(N, batch.ldh), size)
        dscore = <floating*> scratch.take(area(N, P), size)
        places = <floating*> scratch.take(grids, size)
        dplaces = <floating*> scratch.take(grids, size)
        dx_tokens = <floating*> scratch.take(area(tokens, D), size)
        Wh_panels = <floating*> scratch.take(panels_size(G, H, size), size)
        Wattn_panels = <floating*> scratch.take(panels_size(G, H, size), size)
        dx_operands = take_operands(scratch, tokens, D, G, size, False)
        dWx_operands = take_operands(scratch, D, G, tokens, size, False)
        dWh_operands = dWx_operands
        dWh_operands.tiles = scratch.take(tiles_size(H, tokens, size), size)
    with nogil:
        for t in range(batch.T):
            for r in range(batch.active[t]):
                i = batch.offset[t] + r
                x_at[i] = position[i] * D
                h_at[i] = state_before(batch, t, r) * batch.ldh
                context_at[i] = i * batch.ldh
        memset(dstate, 0, N * batch.ldh * size)
        memset(dc, 0, N * batch.ldh * size)
        if dc_last != NULL:
            for r in range(N):
                memcpy(dc + r * batch.ldh, dc_last + batch.row[r] * H, H * size)
        pack_panels(Wh_panels, 0, <floating*> NULL, transposed(Wh, G), G, H, False, threads)
        pack_panels(Wattn_panels, 0, <floating*> NULL, transposed(Wattn, G), G, H, False, threads)
        if across == 1:
            rows_backward(batch, da, dstate, dc, dcontext, dscore, dplaces, places, dA, dh, position, gates, h, c,
                          weight, A, dh0 == NULL, P, Wh_panels, Wattn_panels, 0, 1)
        else:
            for k in prange(across, num_threads=across, schedule="static"):
                rows_backward(batch, da, dstate, dc, dcontext, dscore, dplaces, places, dA, dh, position, gates, h, c,
                              weight, A, dh0 == NULL, P, Wh_panels, Wattn_panels, k, across)
        if dh0 != NULL:
            for r in range(N):
                memcpy(dh0 + batch.row[r] * H, dstate + r * batch.ldh, H * size)
                memcpy(dc0 + batch.row[r] * H, dc + r * batch.ldh, H * size)
        multiply(dWx, G, gathered_transposed(x, x_at), matrix(da, batch.ldg), dWx_operands, <const floating*> NULL, db,
                 D, G, tokens, threads)
        multiply_panels(dWh, G, gathered_transposed(h, h_at), dWh_operands, <const floating*> NULL, H, G, tokens,
                        threads)
        multiply_panels(dWattn, G, gathered_transposed(context, context_at), dWh_operands, <const floating*> NULL, H,
                        G, tokens, threads)
        multiply(dx_tokens, D, matrix(da, batch.ldg), transposed(Wx, G), dx_operands, <const floating*> NULL,
                 <floating*> NULL, tokens, D, G, threads)
        memset(dx, 0, area(area(s.N, s.T), D) * size)
        for i in range(tokens):
            memcpy(dx + x_at[i], dx_tokens + i * D, D * size)
    return 0


cdef void rows_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dcontext,
                        floating* dscore, floating* dplaces, floating* places, floating* dA, const floating* dh,
                        const ptrdiff_t* position, const floating* gates, const floating* h, const floating* c,
                        const floating* weight, const floating* A, bint from_mean, ptrdiff_t P,
                        const floating* Wh_panels, const floating* Wattn_panels, ptrdiff_t first,
                        ptrdiff_t stride) noexcept nogil:
    """Run all steps of rows first, first + stride, ... backward, and add up the gradients of their grids."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, G = batch.G, N = batch.N
    cdef ptrdiff_t r = first, t, token, rows, before, j, p
    cdef floating* grid
    cdef floating initial
    cdef uint64_t mode = denormals_flush()
    while r < N:
        turn(places + r * P * ldh, ldh, A + batch.row[r] * H * P, P, H)
        memset(dplaces + r * P * ldh, 0, P * ldh * sizeof(floating))
        r += stride
    for t in range(batch.T - 1, -1, -1):
        if batch.active[t] <= first:
            continue
        rows = (batch.active[t] - first + stride - 1) // stride
        r = first
        while r < batch.active[t]:
            token = batch.offset[t] + r
            before = state_before(batch, t, r) * ldh
            row_backward(batch.cell, da + token * ldg, dstate + r * ldh, dc + r * ldh, dh + position[token] * H,
                         gates + token * ldg, h + (N + token) * ldh, c + (N + token) * ldh, h + before, c + before, H)
            r += stride
        token = batch.offset[t] + first
        multiply_strided(dstate + first * ldh, stride * ldh, <const floating*> da + token * ldg, stride * ldg,
                         Wh_panels, <const floating*> NULL, rows, H, G, False, False)
        multiply_strided(dcontext + first * ldh, stride * ldh, <const floating*> da + token * ldg, stride * ldg,
                         Wattn_panels, <const floating*> NULL, rows, H, G, False, False)
        r = first
        while r < batch.active[t]:
            token = batch.offset[t] + r
            kernels.attend_backward(dstate + r * ldh, dplaces + r * P * ldh, dscore + r * P,
                                    <const floating*> dcontext + r * ldh, h + state_before(batch, t, r) * ldh,
                                    weight + token * P, <const floating*> places + r * P * ldh, ldh, P, H,
                                    scale_of(H))
            r += stride
    r = first
    while r < N:
        grid = dA + batch.row[r] * H * P
        for j in range(H):
            initial = (dstate[r * ldh + j] + dc[r * ldh + j]) / P if from_mean else 0
            for p in range(P):
                grid[j * P + p] = dplaces[(r * P + p) * ldh + j] + initial
        r += stride
    denormals_restore(mode)


# ---- Passes over NumPy arrays ----------------------------------------------------------------------------------------

cdef int forward(AttentionCache s, cnp.ndarray out, cnp.ndarray c_out, cnp.ndarray h0, cnp.ndarray c0,
                 cnp.ndarray b) except -1:
    cdef cnp.ndarray x, A, Wx, Wh, Wattn
    x, A, Wx, Wh, Wattn = s.inputs
    if s.batch.tokens < area(s.N, s.T):
        memset(data(out), 0, cnp.PyArray_NBYTES(out))
    if s.typenum == cnp.NPY_FLOAT32:
        run_forward(s, <float*> data(out), NULL if c_out is None else <float*> data(c_out), <float*> data(x),
                    NULL if h0 is None else <float*> data(h0), NULL if c0 is None else <float*> data(c0),
                    <float*> data(A), <float*> data(Wx), <float*> data(Wh), <float*> data(Wattn), <float*> data(b))
    else:
        run_forward(s, <double*> data(out), NULL if c_out is None else <double*> data(c_out), <double*> data(x),
                    NULL if h0 is None else <double*> data(h0), NULL if c0 is None else <double*> data(c0),
                    <double*> data(A), <double*> data(Wx), <double*> data(Wh), <double*> data(Wattn),
                    <double*> data(b))
    return 0


cdef tuple backward(AttentionCache s, cnp.ndarray dh, cnp.ndarray dc):
    """Return dx, dh0, dc0 (both None if dc is None), dA, dWx, dWh, dWattn, db."""
    cdef cnp.ndarray x, A, Wx, Wh, Wattn
    x, A, Wx, Wh, Wattn = s.inputs
    cdef ptrdiff_t G = 4 * s.H
    cdef cnp.ndarray dx = new_like(x), dA = new_like(A), dWx = new(s.typenum, 2, s.D, G)
    cdef cnp.ndarray dWh = new(s.typenum, 2, s.H, G), dWattn = new(s.typenum, 2, s.H, G), db = new(s.typenum, 1, G)
    cdef cnp.ndarray dh0 = None, dc0 = None
    if dc is not None:
        dh0, dc0 = new(s.typenum, 2, s.N, s.H), new(s.typenum, 2, s.N, s.H)
    if s.typenum == cnp.NPY_FLOAT32:
        run_backward(s, <float*> data(dx), NULL if dh0 is None else <float*> data(dh0),
                     NULL if dc0 is None else <float*> data(dc0), <float*> data(dA), <float*> data(dWx),
                     <float*> data(dWh), <float*> data(dWattn), <float*> data(db), <float*> data(dh),
                     NULL if dc is None else <float*> data(dc), <float*> data(x), <float*> data(A),
                     <float*> data(Wx), <float*> data(Wh), <float*> data(Wattn))
    else:
        run_backward(s, <double*> data(dx), NULL if dh0 is None else <double*> data(dh0),
                     NULL if dc0 is None else <double*> data(dc0), <double*> data(dA), <double*> data(dWx),
                     <double*> data(dWh), <double*> data(dWattn), <double*> data(db), <double*> data(dh),
                     NULL if dc is None else <double*> data(dc), <double*> data(x), <double*> data(A),
                     <double*> data(Wx), <double*> data(Wh), <double*> data(Wattn))
    return dx, dh0, dc0, dA, dWx, dWh, dWattn, db


cdef AttentionCache check_cache(object cache, bint single_step):
    """Return the cache if it is one of the forward pass of this op. promote() checks its arrays."""
    cdef AttentionCache s
    if not isinstance(cache, AttentionCache):
        raise TypeError(f"cache is {type(cache).__name__}; expected the cache of the forward pass")
    s = cache
    names = "attention_forward", "attention_step_forward"
    if s.inputs is None:
        raise ValueError(f"cache is that of no forward pass; expected that of {names[single_step]}")
    if s.single_step != single_step:
        raise ValueError(f"cache is that of {names[s.single_step]}; expected that of {names[single_step]}")
    return s


cdef tuple promote(AttentionCache s, tuple names, tuple gradients):
    """Return the cache and the gradients in one dtype."""
    cdef tuple found = floats((*names, "cache"), (*gradients, s.inputs[3]))
    s.check()
    gradients = found[:len(names)]
    return s if cnp.PyArray_TYPE(<cnp.ndarray> found[0]) == s.typenum else s.as_double(), gradients


def attention_forward(x, A, Wx, Wh, Wattn, b, lengths=None):
    cdef cnp.ndarray x_, A_, Wx_, Wh_, Wattn_, b_, out, lengths_ = None
    cdef AttentionCache s = AttentionCache()
    cdef ptrdiff_t N, D, H
    if lengths is not None:
        lengths = np.array(lengths)  # a copy, so that no other code can change the lengths after the check
    x_, A_, Wx_, Wh_, Wattn_, b_ = floats(("x", "A", "Wx", "Wh", "Wattn", "b"), (x, A, Wx, Wh, Wattn, b))
    N, D, H = dim(x_, 0), dim(x_, 2), dim(A_, 1)
    if (cnp.PyArray_NDIM(x_) != 3 or not is_grid(A_, N, H) or not has_shape(Wx_, 2, D, 4 * H)
            or not has_shape(Wh_, 2, H, 4 * H) or not has_shape(Wattn_, 2, H, 4 * H) or not has_shape(b_, 1, 4 * H)):
        raise_error(checks.attention_forward, (x_, A_, Wx_, Wh_, Wattn_, b_))
    if lengths is not None:
        lengths_ = np.require(checks.as_lengths(lengths, N, dim(x_, 1)), requirements="CA")
    s.allocate((x_, A_, Wx_, Wh_, Wattn_), False, lengths_)
    out = new(s.typenum, 3, s.N, s.T, s.H)
    forward(s, out, None, None, None, b_)
    return out, s


def attention_backward(dh, cache):
    cdef AttentionCache s
    s, (dh_,) = promote(check_cache(cache, False), ("dh",), (dh,))
    if not has_shape(dh_, 3, s.N, s.T, s.H):
        checks.match_shapes({"N": s.N, "T": s.T, "H": s.H}, dh=(dh_, "N T H"))
    dx, _, _, dA, dWx, dWh, dWattn, db = backward(s, dh_, None)
    return dx, dA, dWx, dWh, dWattn, db


def attention_step_forward(x, prev_h, prev_c, A, Wx, Wh, Wattn, b):
    cdef cnp.ndarray x_, h_, c_, A_, Wx_, Wh_, Wattn_, b_, out, c_out
    cdef AttentionCache s = AttentionCache()
    cdef ptrdiff_t N, D, H
    x_, h_, c_, A_, Wx_, Wh_, Wattn_, b_ = floats(("x", "prev_h", "prev_c", "A", "Wx", "Wh", "Wattn", "b"),
                                                  (x, prev_h, prev_c, A, Wx, Wh, Wattn, b))
    N, D, H = dim(x_, 0), dim(x_, 1), dim(h_, 1)
    if (cnp.PyArray_NDIM(x_) != 2 or not has_shape(h_, 2, N, H) or not has_shape(c_, 2, N, H)
            or not is_grid(A_, N, H) or not has_shape(Wx_, 2, D, 4 * H) or not has_shape(Wh_, 2, H, 4 * H)
            or not has_shape(Wattn_, 2, H, 4 * H) or not has_shape(b_, 1, 4 * H)):
        raise_error(checks.attention_step_forward, (x_, h_, c_, A_, Wx_, Wh_, Wattn_, b_))
    s.allocate((x_, A_, Wx_, Wh_, Wattn_), True, None)
    out, c_out = new(s.typenum, 2, s.N, s.H), new(s.typenum, 2, s.N, s.H)
    forward(s, out, c_out, h_, c_, b_)
    return out, c_out, s


def attention_step_backward(dnext_h, dnext_c, cache):
    cdef AttentionCache s
    s, (dh_, dc_) = promote(check_cache(cache, True), ("dnext_h", "dnext_c"), (dnext_h, dnext_c))
    if not has_shape(dh_, 2, s.N, s.H) or not has_shape(dc_, 2, s.N, s.H):
        checks.match_shapes({"N": s.N, "H": s.H}, dnext_h=(dh_, "N H"), dnext_c=(dc_, "N H"))
    return backward(s, dh_, dc_)


# ---- Attention alone -------------------------------------------------------------------------------------------------

cdef int attend_all(floating* context, floating* weight, const floating* query, const floating* A, ptrdiff_t N,
                    ptrdiff_t P, ptrdiff_t H) except -1:
    cdef int threads = threads_for(4.0 * N * P * H), pass_, k
    cdef ptrdiff_t ld = leading_dimension(H, sizeof(floating))
    cdef Workspace scratch = Workspace()
    cdef Slices places
    for pass_ in range(2):
        scratch.begin(pass_)
        places = scratch.take_slices(threads, area(P, ld), sizeof(floating))
    with nogil:
        if threads == 1:
            attend_some(context, weight, query, A, <floating*> places.memory, ld, N, P, H, 0, 1)
        else:
            for k in prange(threads, num_threads=threads, schedule="static"):
                attend_some(context, weight, query, A, <floating*> slice_of(places, k), ld, N, P, H, k, threads)
    return 0


cdef void attend_some(floating* context, floating* weight, const floating* query, const floating* A, floating* places,
                      ptrdiff_t ld, ptrdiff_t N, ptrdiff_t P, ptrdiff_t H, ptrdiff_t first,
                      ptrdiff_t stride) noexcept nogil:
    """Attend with the queries of rows first, first + stride, ..."""
    cdef ptrdiff_t n = first
    cdef uint64_t mode = denormals_flush()
    while n < N:
        turn(places, ld, A + n * H * P, P, H)
        kernels.attend(context + n * H, weight + n * P, query + n * H, <const floating*> places, ld, P, H,
                       scale_of(H))
        n += stride
    denormals_restore(mode)


def dot_product_attention(prev_h, A):
    cdef cnp.ndarray h_, A_, attn, attn_weights
    h_, A_ = floats(("prev_h", "A"), (prev_h, A))
    cdef ptrdiff_t N = dim(h_, 0), H = dim(h_, 1)
    if cnp.PyArray_NDIM(h_) != 2 or not is_grid(A_, N, H):
        raise_error(checks.dot_product_attention, (h_, A_))
    cdef ptrdiff_t P = places_of(A_) if N > 0 else 0
    attn = new_like(h_)
    attn_weights = np.empty((N, *np.shape(A_)[2:]), h_.dtype)
    if cnp.PyArray_TYPE(h_) == cnp.NPY_FLOAT32:
        attend_all(<float*> data(attn), <float*> data(attn_weights), <float*> data(h_), <float*> data(A_), N, P, H)
    else:
        attend_all(<double*> data(attn), <double*> data(attn_weights), <double*> data(h_), <double*> data(A_), N, P, H)
    return attn, attn_weights
