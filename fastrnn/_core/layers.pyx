"""Affine map, embedding, softmax loss and sigmoid over NumPy arrays: check, allocate, release the GIL, run."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, floats, has_shape, ids_of, new, new_like, refuse, wrap_ids
from .kernels cimport TOO_LARGE, Workspace, area, packed_size, share, threads_for, tiles_size

from .. import checks
from ..reference import layers as twin_layers
from ..reference import rnn_layers as twin

cnp.import_array()

# Up to FEW rows a product reads the weights as they lie, row by row; up to MODERATE in tiles; above it packs them.
cdef enum:
    FEW = 4
    MODERATE = 64


# ---- Affine map ------------------------------------------------------------------------------------------------------

cdef int affine(floating* out, floating* x, floating* w, floating* b, ptrdiff_t M, ptrdiff_t N,
                ptrdiff_t K) except -1:
    """out (M, N) = x (M, K) w (K, N) + b."""
    cdef int threads = threads_for(2.0 * M * N * K)
    cdef int lap
    cdef size_t size = sizeof(floating)
    cdef Workspace scratch
    cdef floating* packed
    cdef floating* tiles
    if M == 0 or N == 0:
        return 0
    if M <= MODERATE:
        with nogil:
            columns_product(out, N, x, K, w, N, b, M, N, K, threads)
        return 0
    scratch = Workspace()
    for lap in range(2):
        scratch.begin(lap)
        packed = <floating*> scratch.take(packed_size(K, N, size), size)
        tiles = <floating*> scratch.take(tiles_size(M, K, size), size)
    with nogil:
        kernels.pack(packed, 0, <floating*> NULL, w, NULL, N, 1, K, N, threads)
        kernels.pack_tiles(tiles, x, NULL, K, NULL, 1, M, K, threads)
        kernels.multiply(out, N, tiles, packed, b, M, N, K, False, threads)
    return 0


cdef void columns_product(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                          ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                          int threads) noexcept nogil:
    cdef ptrdiff_t q
    if M == 0 or N == 0:
        return
    if threads == 1:
        columns_part(C, ldc, A, lda, B, ldb, bias, M, K, 0, N)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        columns_part(C, ldc, A, lda, B, ldb, bias, M, K, share(N, q, threads, 64),
                     share(N, q + 1, threads, 64))


cdef void columns_part(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B, ptrdiff_t ldb,
                       const floating* bias, ptrdiff_t M, ptrdiff_t K, ptrdiff_t n0, ptrdiff_t n1) noexcept nogil:
    cdef const floating* part = NULL
    cdef uint64_t mode
    if n1 <= n0:
        return
    mode = kernels.denormals_flush()
    if bias != NULL:
        part = bias + n0
    if M <= FEW:
        kernels.gemm_thin(C + n0, ldc, A, lda, B + n0, ldb, part, M, n1 - n0, K, False)
    else:
        kernels.gemm_unpacked(C + n0, ldc, A, lda, 1, B + n0, ldb, part, M, n1 - n0, K, False)
    kernels.denormals_restore(mode)


cdef int affine_gradients(floating* dx, floating* dw, floating* db, floating* dout, floating* x, floating* w,
                          ptrdiff_t M, ptrdiff_t N, ptrdiff_t K) except -1:
    """dx (M, K) = dout (M, N) w', dw (K, N) = x' dout, db (N,) = the column sums of dout."""
    cdef int threads = threads_for(4.0 * M * N * K)
    cdef int lap
    cdef size_t size = sizeof(floating)
    cdef Workspace scratch = Workspace()
    cdef floating* w_packed
    cdef floating* dout_tiles
    cdef floating* dout_packed
    cdef floating* x_tiles
    if N == 0 and K == 0:
        return 0
    if M <= FEW:
        with nogil:
            transposed_product(dx, K, dout, N, w, N, M, K, N, threads)
            outer_product(dw, N, db, x, K, dout, N, K, N, M, threads)
        return 0
    for lap in range(2):
        scratch.begin(lap)
        w_packed = <floating*> scratch.take(packed_size(N, K, size), size)
        dout_tiles = <floating*> scratch.take(tiles_size(M, N, size), size)
        dout_packed = <floating*> scratch.take(packed_size(M, N, size), size)
        x_tiles = <floating*> scratch.take(tiles_size(K, M, size), size)
    with nogil:
        kernels.pack(w_packed, 0, <floating*> NULL, w, NULL, 1, N, N, K, threads)
        kernels.pack_tiles(dout_tiles, dout, NULL, N, NULL, 1, M, N, threads)
        kernels.multiply(dx, K, dout_tiles, w_packed, <floating*> NULL, M, K, N, False, threads)
        kernels.pack(dout_packed, 0, db, dout, NULL, N, 1, M, N, threads)
        kernels.pack_tiles(x_tiles, x, NULL, 1, NULL, K, K, M, threads)
        kernels.multiply(dw, N, x_tiles, dout_packed, <floating*> NULL, K, N, M, False, threads)
    return 0


cdef void transposed_product(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                             ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    cdef ptrdiff_t q
    if threads == 1:
        kernels.gemm_thin_transposed(C, ldc, A, lda, B, ldb, M, N, K, False)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        kernels.gemm_thin_transposed(C + share(N, q, threads, 1), ldc, A, lda, B + share(N, q, threads, 1) * ldb, ldb,
                                     M, share(N, q + 1, threads, 1) - share(N, q, threads, 1), K, False)


cdef void outer_product(floating* C, ptrdiff_t ldc, floating* colsum, const floating* A, ptrdiff_t lda,
                        const floating* B, ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                        int threads) noexcept nogil:
    cdef ptrdiff_t q
    if threads == 1:
        kernels.gemm_outer(C, ldc, colsum, A, lda, B, ldb, M, N, K, False)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        kernels.gemm_outer(C + share(M, q, threads, 1) * ldc, ldc, colsum if q == 0 else <floating*> NULL,
                           A + share(M, q, threads, 1), lda, B, ldb,
                           share(M, q + 1, threads, 1) - share(M, q, threads, 1), N, K, False)


cdef cnp.ndarray affine_of(cnp.ndarray x, cnp.ndarray w, cnp.ndarray b, cnp.ndarray out, ptrdiff_t M):
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        affine(<float*> data(out), <float*> data(x), <float*> data(w), <float*> data(b), M, dim(w, 1), dim(w, 0))
    else:
        affine(<double*> data(out), <double*> data(x), <double*> data(w), <double*> data(b), M, dim(w, 1), dim(w, 0))
    return out


cdef tuple affine_gradients_of(cnp.ndarray dout, cnp.ndarray x, cnp.ndarray w, ptrdiff_t M):
    cdef int kind = cnp.PyArray_TYPE(x)
    cdef ptrdiff_t K = dim(w, 0), N = dim(w, 1)
    cdef cnp.ndarray dx = new_like(x)
    cdef cnp.ndarray dw = new(kind, 2, K, N), db = new(kind, 1, N)
    if kind == cnp.NPY_FLOAT32:
        affine_gradients(<float*> data(dx), <float*> data(dw), <float*> data(db), <float*> data(dout),
                         <float*> data(x), <float*> data(w), M, N, K)
    else:
        affine_gradients(<double*> data(dx), <double*> data(dw), <double*> data(db), <double*> data(dout),
                         <double*> data(x), <double*> data(w), M, N, K)
    return dx, dw, db


cdef inline bint has_parts(object cache, Py_ssize_t count):
    return type(cache) is tuple and len(<tuple> cache) == count


cdef ptrdiff_t row_size(cnp.ndarray x) except? -2:
    """The elements of x (N, d_1, ..., d_k) in each row; -1 where it has no axis of rows."""
    cdef ptrdiff_t size = 1
    cdef int axis
    for axis in range(1, cnp.PyArray_NDIM(x)):
        if dim(x, axis) == 0:
            return 0
        size = area(size, dim(x, axis))
    if size >= TOO_LARGE:
        raise MemoryError(f"x has shape {np.shape(x)}; no memory holds weights for rows of such a size")
    return size if cnp.PyArray_NDIM(x) > 0 else -1


def affine_forward(x, w, b):
    cdef cnp.ndarray x_, w_, b_
    x_, w_, b_ = floats(("x", "w", "b"), (x, w, b))
    cdef ptrdiff_t N = dim(x_, 0), D = row_size(x_)
    if D < 0 or not has_shape(w_, 2, D, dim(w_, 1)) or not has_shape(b_, 1, dim(w_, 1)):
        refuse(twin_layers.affine_forward, (x, w, b))
    return affine_of(x_, w_, b_, new(cnp.PyArray_TYPE(x_), 2, N, dim(w_, 1)), N), (x_, w_, b_)


def affine_backward(dout, cache):
    cdef cnp.ndarray dout_, x_, w_
    x, w, _ = cache if has_parts(cache, 3) else checks.parts_of(cache, "x w b")
    dout_, x_, w_ = floats(("dout", "x", "w"), (dout, x, w))
    cdef ptrdiff_t D = row_size(x_)
    if D < 0 or not has_shape(w_, 2, D, dim(w_, 1)) or not has_shape(dout_, 2, dim(x_, 0), dim(w_, 1)):
        refuse(twin_layers.affine_backward, (dout, cache))
    return affine_gradients_of(dout_, x_, w_, dim(x_, 0))


def temporal_affine_forward(x, w, b):
    cdef cnp.ndarray x_, w_, b_, out
    x_, w_, b_ = floats(("x", "w", "b"), (x, w, b))
    cdef ptrdiff_t N = dim(x_, 0), T = dim(x_, 1), M = dim(w_, 1)
    if cnp.PyArray_NDIM(x_) != 3 or not has_shape(w_, 2, dim(x_, 2), M) or not has_shape(b_, 1, M):
        refuse(twin.temporal_affine_forward, (x, w, b))
    out = affine_of(x_, w_, b_, new(cnp.PyArray_TYPE(x_), 3, N, T, M), area(N, T))
    return out, (x_, w_, b_, out)


def temporal_affine_backward(dout, cache):
    cdef cnp.ndarray dout_, x_, w_
    x, w, _, _ = cache if has_parts(cache, 4) else checks.parts_of(cache, "x w b out")
    dout_, x_, w_ = floats(("dout", "x", "w"), (dout, x, w))
    if (cnp.PyArray_NDIM(x_) != 3 or not has_shape(w_, 2, dim(x_, 2), dim(w_, 1))
            or not has_shape(dout_, 3, dim(x_, 0), dim(x_, 1), dim(w_, 1))):
        refuse(twin.temporal_affine_backward, (dout, cache))
    return affine_gradients_of(dout_, x_, w_, area(dim(x_, 0), dim(x_, 1)))


# ---- Embedding -------------------------------------------------------------------------------------------------------

def word_embedding_forward(x, W):
    cdef cnp.ndarray x_ = ids_of("x", x), W_, out, ids
    (W_,) = floats(("W",), (W,))
    cdef ptrdiff_t V = dim(W_, 0), D = dim(W_, 1)
    if cnp.PyArray_NDIM(x_) != 2 or cnp.PyArray_NDIM(W_) != 2:
        refuse(twin.word_embedding_forward, (x, W))
    # the cache keeps ids of its own, wrapped already
    ids = new(cnp.NPY_INTP, 2, dim(x_, 0), dim(x_, 1))
    if not wrap_ids(<ptrdiff_t*> data(ids), <cnp.npy_intp*> data(x_), dim(x_, 0) * dim(x_, 1), V):
        refuse(twin.word_embedding_forward, (x, W))
    out = new(cnp.PyArray_TYPE(W_), 3, dim(x_, 0), dim(x_, 1), D)
    gather(<char*> data(out), <char*> data(W_), <ptrdiff_t*> data(ids), dim(x_, 0) * dim(x_, 1),
           D * cnp.PyArray_ITEMSIZE(W_))
    return out, (ids, W_)


cdef void gather(char* out, const char* rows, const ptrdiff_t* ids, ptrdiff_t count, ptrdiff_t row_bytes) noexcept:
    # bound by memory: a byte moved counts as an operation
    cdef int threads = threads_for(<double> count * row_bytes)
    cdef ptrdiff_t i
    with nogil:
        if threads == 1:
            for i in range(count):
                memcpy(out + i * row_bytes, rows + ids[i] * row_bytes, row_bytes)
        else:
            for i in prange(count, num_threads=threads, schedule="static"):
                memcpy(out + i * row_bytes, rows + ids[i] * row_bytes, row_bytes)


def word_embedding_backward(dout, cache):
    cdef cnp.ndarray x_, dout_, W_, dW
    cdef bint known
    x, W = cache if has_parts(cache, 2) else checks.parts_of(cache, "x W")
    x_ = ids_of("x", x)
    dout_, W_ = floats(("dout", "W"), (dout, W))
    cdef ptrdiff_t V = dim(W_, 0), D = dim(W_, 1), count
    if (cnp.PyArray_NDIM(x_) != 2 or cnp.PyArray_NDIM(W_) != 2
            or not has_shape(dout_, 3, dim(x_, 0), dim(x_, 1), D)):
        refuse(twin.word_embedding_backward, (dout, cache))
    dW = new(cnp.PyArray_TYPE(W_), 2, V, D)
    count = cnp.PyArray_SIZE(x_)
    if cnp.PyArray_TYPE(W_) == cnp.NPY_FLOAT32:
        known = scatter_add(<float*> data(dW), <float*> data(dout_), <cnp.npy_intp*> data(x_), count, V, D)
    else:
        known = scatter_add(<double*> data(dW), <double*> data(dout_), <cnp.npy_intp*> data(x_), count, V, D)
    if not known:
        refuse(twin.word_embedding_backward, (dout, cache))
    return dW


cdef int scatter_add(floating* dW, const floating* dout, const cnp.npy_intp* x, ptrdiff_t count, ptrdiff_t V,
                     ptrdiff_t D) except -1:
    """dW[v] = the sum of dout[i] over the i with x[i] == v, in the order of i: counting sort, then word by word.

    Returns 0, with nothing in dW, where an id lies outside [-V, V).
    """
    cdef int threads = threads_for((<double> count + V) * D)
    cdef int lap
    cdef Workspace scratch = Workspace()
    cdef ptrdiff_t v
    cdef ptrdiff_t words = V if D > 0 else 0  # without elements there is nothing to add up
    cdef ptrdiff_t* start
    cdef ptrdiff_t* row
    cdef ptrdiff_t* ids
    for lap in range(2):
        scratch.begin(lap)
        start = <ptrdiff_t*> scratch.take(words + 1, sizeof(ptrdiff_t))
        row = <ptrdiff_t*> scratch.take(count, sizeof(ptrdiff_t))
        ids = <ptrdiff_t*> scratch.take(count, sizeof(ptrdiff_t))
    # ids are read once: what another thread makes of them meanwhile does no harm
    if not wrap_ids(ids, x, count, V):
        return 0
    if D == 0:
        return 1
    with nogil:
        sort_by_word(start, row, ids, count, V, D)
        if threads == 1:
            for v in range(V):
                kernels.rows_sum(dW + v * D, dout, row + start[v], start[v + 1] - start[v], D)
        else:
            for v in prange(V, num_threads=threads, schedule="dynamic", chunksize=16):
                kernels.rows_sum(dW + v * D, dout, row + start[v], start[v + 1] - start[v], D)
    return 1


cdef void sort_by_word(ptrdiff_t* start, ptrdiff_t* row, const ptrdiff_t* ids, ptrdiff_t count, ptrdiff_t V,
                       ptrdiff_t stride) noexcept nogil:
    """row[start[v]:start[v + 1]] = i * stride for the i with ids[i] == v, in order. start has V + 1 places."""
    cdef ptrdiff_t i, v
    memset(start, 0, (V + 1) * sizeof(ptrdiff_t))
    for i in range(count):
        start[ids[i] + 1] += 1
    for v in range(V):
        start[v + 1] += start[v]
    # each start moves to the end of its word, which is where the next one begins; then all move back by one
    for i in range(count):
        row[start[ids[i]]] = i * stride
        start[ids[i]] += 1
    for v in range(V, 0, -1):
        start[v] = start[v - 1]
    start[0] = 0


# ---- Softmax loss ----------------------------------------------------------------------------------------------------

def temporal_softmax_loss(x, y, mask):
    """Return (loss, dx); mask is a float array or a bool one, weights of the steps."""
    cdef cnp.ndarray x_, y_ = ids_of("y", y), weight, targets, dx
    mask_array = np.asarray(mask).view()
    (x_,) = floats(("x",), (x,))
    cdef ptrdiff_t N = dim(x_, 0), T = dim(x_, 1), V = dim(x_, 2)
    if (cnp.PyArray_NDIM(x_) != 3 or not has_shape(y_, 2, N, T) or mask_array.shape != (N, T)
            or mask_array.dtype.kind not in "biuf"):
        refuse(twin.temporal_softmax_loss, (x, y, mask))
    weight = np.require(mask_array, dtype=np.float64, requirements="CA")
    targets = new(cnp.NPY_INTP, 2, N, T)
    if not wrap_ids(<ptrdiff_t*> data(targets), <cnp.npy_intp*> data(y_), N * T, V):
        refuse(twin.temporal_softmax_loss, (x, y, mask))
    dx = new(cnp.PyArray_TYPE(x_), 3, N, T, V)
    return np.float64(softmax_of(dx, x_, targets, weight, N * T, V, N)), dx


def softmax_loss(x, y):
    cdef cnp.ndarray x_, y_ = ids_of("y", y), targets, dx
    (x_,) = floats(("x",), (x,))
    cdef ptrdiff_t N = dim(x_, 0), C = dim(x_, 1)
    if cnp.PyArray_NDIM(x_) != 2 or not has_shape(y_, 1, N):
        refuse(twin_layers.softmax_loss, (x, y))
    targets = new(cnp.NPY_INTP, 1, N)
    if not wrap_ids(<ptrdiff_t*> data(targets), <cnp.npy_intp*> data(y_), N, C):
        refuse(twin_layers.softmax_loss, (x, y))
    dx = new(cnp.PyArray_TYPE(x_), 2, N, C)
    return np.float64(softmax_of(dx, x_, targets, np.ones(N), N, C, N)), dx


cdef double softmax_of(cnp.ndarray dx, cnp.ndarray x, cnp.ndarray targets, cnp.ndarray weight, ptrdiff_t rows,
                       ptrdiff_t V, ptrdiff_t N) except? -1:
    cdef double* losses
    cdef double total = 0
    cdef ptrdiff_t i
    cdef int lap
    cdef Workspace scratch = Workspace()
    if rows == 0:
        return 0
    for lap in range(2):
        scratch.begin(lap)
        losses = <double*> scratch.take(rows, sizeof(double))
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        softmax_rows(<float*> data(dx), losses, <float*> data(x), <ptrdiff_t*> data(targets),
                     <double*> data(weight), rows, V, N)
    else:
        softmax_rows(<double*> data(dx), losses, <double*> data(x), <ptrdiff_t*> data(targets),
                     <double*> data(weight), rows, V, N)
    # in the order of the rows, so that the sum does not depend on the threads
    for i in range(rows):
        total += losses[i]
    return total / N


cdef void softmax_rows(floating* dx, double* losses, const floating* x, const ptrdiff_t* targets,
                       const double* weight, ptrdiff_t rows, ptrdiff_t V, ptrdiff_t N) noexcept:
    # an exponential counts as twenty operations
    cdef int threads = threads_for(20.0 * rows * V)
    cdef ptrdiff_t i
    with nogil:
        if threads == 1:
            for i in range(rows):
                softmax_row(dx + i * V, losses + i, x + i * V, targets[i], weight[i], V, N)
        else:
            for i in prange(rows, num_threads=threads, schedule="dynamic", chunksize=16):
                softmax_row(dx + i * V, losses + i, x + i * V, targets[i], weight[i], V, N)


cdef inline void softmax_row(floating* dx, double* loss, const floating* x, ptrdiff_t target, double weight,
                             ptrdiff_t V, ptrdiff_t N) noexcept nogil:
    cdef uint64_t mode
    if weight == 0:
        loss[0] = 0
        memset(dx, 0, V * sizeof(floating))
        return
    mode = kernels.denormals_flush()
    loss[0] = weight * kernels.softmax_loss(dx, x, V, target, <floating> (weight / N), 0)
    kernels.denormals_restore(mode)


# ---- Element-wise functions ------------------------------------------------------------------------------------------

cdef object elementwise(str name, object x):
    """The function over all elements; of a single number a NumPy scalar, as NumPy's own functions give."""
    cdef cnp.ndarray x_, y
    (x_,) = floats(("x",), (x,))
    y = new_like(x_)
    if cnp.PyArray_TYPE(x_) == cnp.NPY_FLOAT32:
        elementwise_rows(<float*> data(y), <float*> data(x_), cnp.PyArray_SIZE(x_), ord(name[0]))
    else:
        elementwise_rows(<double*> data(y), <double*> data(x_), cnp.PyArray_SIZE(x_), ord(name[0]))
    return y if cnp.PyArray_NDIM(y) else y[()]


cdef void elementwise_rows(floating* y, const floating* x, ptrdiff_t n, int which) noexcept:
    cdef int threads = threads_for(20.0 * n)
    cdef ptrdiff_t q
    with nogil:
        if threads == 1:
            elementwise_part(y, x, n, which)
        else:
            for q in prange(threads, num_threads=threads, schedule="static"):
                elementwise_part(y + share(n, q, threads, 64), x + share(n, q, threads, 64),
                                 share(n, q + 1, threads, 64) - share(n, q, threads, 64), which)


cdef inline void elementwise_part(floating* y, const floating* x, ptrdiff_t n, int which) noexcept nogil:
    if which == c"e":
        kernels.exp(y, x, n)
    elif which == c"l":
        kernels.log(y, x, n)
    elif which == c"t":
        kernels.tanh(y, x, n)
    else:
        kernels.sigmoid(y, x, n)


def sigmoid(x):
    """1 / (1 + exp(-x)), at most 4 ULP off."""
    return elementwise("sigmoid", x)


def tanh(x):
    """Hyperbolic tangent, at most 4 ULP off."""
    return elementwise("tanh", x)


def exp(x):
    """Exponential function, at most 4 ULP off."""
    return elementwise("exp", x)


def log(x):
    """Natural logarithm, at most 4 ULP off."""
    return elementwise("log", x)
