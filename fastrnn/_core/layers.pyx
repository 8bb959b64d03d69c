"""Affine layer, word embedding, softmax loss and element-wise functions over NumPy arrays."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, floats, has_shape, ids_of, new, new_like, raise_error, wrap_ids
from .products cimport (
    Operands, matrix, multiply, multiply_outer, multiply_transposed, multiply_unpacked, take_operands, transposed,
)
from .runtime cimport TOO_LARGE, Workspace, area, denormals_flush, denormals_restore, share, threads_for

from .. import checks

cnp.import_array()

cdef enum:
    FEW_ROWS = 4        # up to this many rows, both products of the backward pass use unpacked operands
    MODERATE_ROWS = 64  # up to this many rows, the forward pass does not pay for packing the weights


# ---- Affine layer ----------------------------------------------------------------------------------------------------

cdef int affine(floating* out, floating* x, floating* w, floating* b, ptrdiff_t M, ptrdiff_t N,
                ptrdiff_t K) except -1:
    """out (M, N) = x (M, K) w (K, N) + b."""
    cdef int threads = threads_for(2.0 * M * N * K)
    cdef int pass_
    cdef Workspace scratch
    cdef Operands packed
    if M == 0 or N == 0:
        return 0
    if M <= MODERATE_ROWS:
        with nogil:
            multiply_unpacked(out, N, x, K, w, N, b, M, N, K, threads)
        return 0
    scratch = Workspace()
    for pass_ in range(2):
        scratch.begin(pass_)
        packed = take_operands(scratch, M, N, K, sizeof(floating), False)
    with nogil:
        multiply(out, N, matrix(x, K), matrix(w, N), packed, b, <floating*> NULL, M, N, K, threads)
    return 0


cdef int affine_gradients(floating* dx, floating* dw, floating* db, floating* dout, floating* x, floating* w,
                          ptrdiff_t M, ptrdiff_t N, ptrdiff_t K) except -1:
    """dx (M, K) = dout (M, N) w', dw (K, N) = x' dout, db (N,) = the column sums of dout."""
    cdef int threads = threads_for(4.0 * M * N * K)
    cdef int pass_
    cdef Workspace scratch = Workspace()
    cdef Operands dx_operands, dw_operands
    cdef floating* no_bias = NULL
    if N == 0 and K == 0:
        return 0
    if M <= FEW_ROWS:
        with nogil:
            multiply_transposed(dx, K, dout, N, w, N, M, K, N, threads)
            multiply_outer(dw, N, db, x, K, dout, N, K, N, M, threads)
        return 0
    for pass_ in range(2):
        scratch.begin(pass_)
        dx_operands = take_operands(scratch, M, K, N, sizeof(floating), False)
        dw_operands = take_operands(scratch, K, N, M, sizeof(floating), False)
    with nogil:
        multiply(dx, K, matrix(dout, N), transposed(w, N), dx_operands, no_bias, <floating*> NULL, M, K, N, threads)
        multiply(dw, N, transposed(x, K), matrix(dout, N), dw_operands, no_bias, db, K, N, M, threads)
    return 0


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


cdef inline bint is_tuple_of(object cache, Py_ssize_t count):
    return type(cache) is tuple and len(<tuple> cache) == count


cdef ptrdiff_t row_size(cnp.ndarray x) except? -2:
    """Return the number of elements in a row of x (N, d_1, ..., d_k), or -1 if x has no axes."""
    cdef ptrdiff_t size = 1
    cdef int axis
    for axis in range(1, cnp.PyArray_NDIM(x)):
        if dim(x, axis) == 0:
            return 0
        size = area(size, dim(x, axis))
    if size >= TOO_LARGE:
        raise MemoryError(f"x has shape {np.shape(x)}; expected rows whose weights fit in memory")
    return size if cnp.PyArray_NDIM(x) > 0 else -1


def affine_forward(x, w, b):
    cdef cnp.ndarray x_, w_, b_
    x_, w_, b_ = floats(("x", "w", "b"), (x, w, b))
    cdef ptrdiff_t N = dim(x_, 0), D = row_size(x_)
    if D < 0 or not has_shape(w_, 2, D, dim(w_, 1)) or not has_shape(b_, 1, dim(w_, 1)):
        raise_error(checks.affine_forward, (x_, w_, b_))
    return affine_of(x_, w_, b_, new(cnp.PyArray_TYPE(x_), 2, N, dim(w_, 1)), N), (x_, w_, b_)


def affine_backward(dout, cache):
    cdef cnp.ndarray dout_, x_, w_
    x, w, _ = cache if is_tuple_of(cache, 3) else checks.parts_of(cache, "x w b")
    dout_, x_, w_ = floats(("dout", "x", "w"), (dout, x, w))
    cdef ptrdiff_t D = row_size(x_)
    if D < 0 or not has_shape(w_, 2, D, dim(w_, 1)) or not has_shape(dout_, 2, dim(x_, 0), dim(w_, 1)):
        raise_error(checks.affine_backward, (dout_, x_, w_))
    return affine_gradients_of(dout_, x_, w_, dim(x_, 0))


def temporal_affine_forward(x, w, b):
    cdef cnp.ndarray x_, w_, b_, out
    x_, w_, b_ = floats(("x", "w", "b"), (x, w, b))
    cdef ptrdiff_t N = dim(x_, 0), T = dim(x_, 1), M = dim(w_, 1)
    if cnp.PyArray_NDIM(x_) != 3 or not has_shape(w_, 2, dim(x_, 2), M) or not has_shape(b_, 1, M):
        raise_error(checks.temporal_affine_forward, (x_, w_, b_))
    out = affine_of(x_, w_, b_, new(cnp.PyArray_TYPE(x_), 3, N, T, M), area(N, T))
    return out, (x_, w_, b_, out)


def temporal_affine_backward(dout, cache):
    cdef cnp.ndarray dout_, x_, w_
    x, w, _, _ = cache if is_tuple_of(cache, 4) else checks.parts_of(cache, "x w b out")
    dout_, x_, w_ = floats(("dout", "x", "w"), (dout, x, w))
    if (cnp.PyArray_NDIM(x_) != 3 or not has_shape(w_, 2, dim(x_, 2), dim(w_, 1))
            or not has_shape(dout_, 3, dim(x_, 0), dim(x_, 1), dim(w_, 1))):
        raise_error(checks.temporal_affine_backward, (dout_, x_, w_))
    return affine_gradients_of(dout_, x_, w_, area(dim(x_, 0), dim(x_, 1)))


# ---- Word embedding --------------------------------------------------------------------------------------------------

def word_embedding_forward(x, W):
    cdef cnp.ndarray x_ = ids_of("x", x), W_, out, ids
    (W_,) = floats(("W",), (W,))
    cdef ptrdiff_t V = dim(W_, 0), D = dim(W_, 1)
    if cnp.PyArray_NDIM(x_) != 2 or cnp.PyArray_NDIM(W_) != 2:
        raise_error(checks.word_embedding_forward, (x_, W_))
    # the cache has its own copy of the ids, so that they may change in place
    ids = new(cnp.NPY_INTP, 2, dim(x_, 0), dim(x_, 1))
    if not wrap_ids(<ptrdiff_t*> data(ids), <cnp.npy_intp*> data(x_), dim(x_, 0) * dim(x_, 1), V):
        raise_error(checks.word_embedding_forward, (x_, W_))
    out = new(cnp.PyArray_TYPE(W_), 3, dim(x_, 0), dim(x_, 1), D)
    gather(<char*> data(out), <char*> data(W_), <ptrdiff_t*> data(ids), dim(x_, 0) * dim(x_, 1),
           D * cnp.PyArray_ITEMSIZE(W_))
    return out, (ids, W_)


cdef void gather(char* out, const char* rows, const ptrdiff_t* ids, ptrdiff_t count, ptrdiff_t row_bytes) noexcept:
    # bound by memory bandwidth: count each byte as one operation
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
    x, W = cache if is_tuple_of(cache, 2) else checks.parts_of(cache, "x W")
    x_ = ids_of("x", x)
    dout_, W_ = floats(("dout", "W"), (dout, W))
    cdef ptrdiff_t V = dim(W_, 0), D = dim(W_, 1), count
    if (cnp.PyArray_NDIM(x_) != 2 or cnp.PyArray_NDIM(W_) != 2
            or not has_shape(dout_, 3, dim(x_, 0), dim(x_, 1), D)):
        raise_error(checks.word_embedding_backward, (dout_, x_, W_))
    dW = new(cnp.PyArray_TYPE(W_), 2, V, D)
    count = cnp.PyArray_SIZE(x_)
    if cnp.PyArray_TYPE(W_) == cnp.NPY_FLOAT32:
        known = scatter_add(<float*> data(dW), <float*> data(dout_), <cnp.npy_intp*> data(x_), count, V, D)
    else:
        known = scatter_add(<double*> data(dW), <double*> data(dout_), <cnp.npy_intp*> data(x_), count, V, D)
    if not known:
        raise_error(checks.word_embedding_backward, (dout_, x_, W_))
    return dW


cdef int scatter_add(floating* dW, const floating* dout, const cnp.npy_intp* x, ptrdiff_t count, ptrdiff_t V,
                     ptrdiff_t D) except -1:
    """dW[v] = sum of dout[i] over all i with x[i] == v, in the order of i: a counting sort, then word by word.

    Returns 0 and leaves dW uninitialized if an id is outside [-V, V).
    """
    cdef int threads = threads_for((<double> count + V) * D)
    cdef int pass_
    cdef Workspace scratch = Workspace()
    cdef ptrdiff_t v
    cdef ptrdiff_t words = V if D > 0 else 0  # nothing to add if the rows are empty
    cdef ptrdiff_t* start
    cdef ptrdiff_t* row
    cdef ptrdiff_t* ids
    for pass_ in range(2):
        scratch.begin(pass_)
        start = <ptrdiff_t*> scratch.take(words + 1, sizeof(ptrdiff_t))
        row = <ptrdiff_t*> scratch.take(count, sizeof(ptrdiff_t))
        ids = <ptrdiff_t*> scratch.take(count, sizeof(ptrdiff_t))
    # read the ids once, so that no other thread can change them after the check
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
    """row[start[v]:start[v + 1]] = i * stride for all i with ids[i] == v, in order. start is (V + 1,)."""
    cdef ptrdiff_t i, v
    memset(start, 0, (V + 1) * sizeof(ptrdiff_t))
    for i in range(count):
        start[ids[i] + 1] += 1
    for v in range(V):
        start[v + 1] += start[v]
    # filling in a word moves its start to its end, which is the start of the next word; shift them back afterwards
    for i in range(count):
        row[start[ids[i]]] = i * stride
        start[ids[i]] += 1
    for v in range(V, 0, -1):
        start[v] = start[v - 1]
    start[0] = 0


# ---- Softmax loss ----------------------------------------------------------------------------------------------------

def temporal_softmax_loss(x, y, mask):
    """Return (loss, dx). mask holds the weights of the steps, as bool, integers or floats."""
    cdef cnp.ndarray x_, y_, weight, targets, dx
    (x_,) = floats(("x",), (x,))
    y_ = ids_of("y", y)
    mask_array = np.asarray(mask).view()
    (x_,) = floats(("x",), (x_,))  # last again, see arrays.pyx
    cdef ptrdiff_t N = dim(x_, 0), T = dim(x_, 1), V = dim(x_, 2)
    if (cnp.PyArray_NDIM(x_) != 3 or not has_shape(y_, 2, N, T) or mask_array.shape != (N, T)
            or mask_array.dtype.kind not in "biuf"):
        raise_error(checks.temporal_softmax_loss, (x_, y_, mask_array))
    weight = np.require(mask_array, dtype=np.float64, requirements="CA")
    targets = new(cnp.NPY_INTP, 2, N, T)
    if not wrap_ids(<ptrdiff_t*> data(targets), <cnp.npy_intp*> data(y_), N * T, V):
        raise_error(checks.temporal_softmax_loss, (x_, y_, mask_array))
    dx = new(cnp.PyArray_TYPE(x_), 3, N, T, V)
    return np.float64(softmax_of(dx, x_, targets, weight, N * T, V, N)), dx


def softmax_loss(x, y):
    cdef cnp.ndarray x_, y_, targets, dx
    (x_,) = floats(("x",), (x,))
    y_ = ids_of("y", y)
    (x_,) = floats(("x",), (x_,))  # last again, see arrays.pyx
    cdef ptrdiff_t N = dim(x_, 0), C = dim(x_, 1)
    if cnp.PyArray_NDIM(x_) != 2 or not has_shape(y_, 1, N):
        raise_error(checks.class_loss, (x_, y_))
    targets = new(cnp.NPY_INTP, 1, N)
    if not wrap_ids(<ptrdiff_t*> data(targets), <cnp.npy_intp*> data(y_), N, C):
        raise_error(checks.class_loss, (x_, y_))
    dx = new(cnp.PyArray_TYPE(x_), 2, N, C)
    return np.float64(softmax_of(dx, x_, targets, np.ones(N), N, C, N)), dx


cdef double softmax_of(cnp.ndarray dx, cnp.ndarray x, cnp.ndarray targets, cnp.ndarray weight, ptrdiff_t rows,
                       ptrdiff_t V, ptrdiff_t N) except? -1:
    cdef double* losses
    cdef double total = 0
    cdef ptrdiff_t i
    cdef int pass_
    cdef Workspace scratch = Workspace()
    if rows == 0:
        return 0
    for pass_ in range(2):
        scratch.begin(pass_)
        losses = <double*> scratch.take(rows, sizeof(double))
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        softmax_rows(<float*> data(dx), losses, <float*> data(x), <ptrdiff_t*> data(targets),
                     <double*> data(weight), rows, V, N)
    else:
        softmax_rows(<double*> data(dx), losses, <double*> data(x), <ptrdiff_t*> data(targets),
                     <double*> data(weight), rows, V, N)
    # in the order of the rows, so that the sum does not depend on the number of threads
    for i in range(rows):
        total += losses[i]
    return total / N


cdef void softmax_rows(floating* dx, double* losses, const floating* x, const ptrdiff_t* targets,
                       const double* weight, ptrdiff_t rows, ptrdiff_t V, ptrdiff_t N) noexcept:
    # count an exponential as 20 operations
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
    mode = denormals_flush()
    loss[0] = weight * kernels.softmax_loss(dx, x, V, target, <floating> (weight / N), 0)
    denormals_restore(mode)


# ---- Element-wise functions ------------------------------------------------------------------------------------------

cdef enum Function:
    EXP, LOG, TANH, SIGMOID


cdef object elementwise(Function function, object x):
    """Apply a function to all elements. Return a scalar for an array without axes, as NumPy does."""
    cdef cnp.ndarray x_, y
    (x_,) = floats(("x",), (x,))
    y = new_like(x_)
    if cnp.PyArray_TYPE(x_) == cnp.NPY_FLOAT32:
        elementwise_rows(<float*> data(y), <float*> data(x_), cnp.PyArray_SIZE(x_), function)
    else:
        elementwise_rows(<double*> data(y), <double*> data(x_), cnp.PyArray_SIZE(x_), function)
    return y if cnp.PyArray_NDIM(y) else y[()]


cdef void elementwise_rows(floating* y, const floating* x, ptrdiff_t n, Function function) noexcept:
    cdef int threads = threads_for(20.0 * n)
    cdef ptrdiff_t q
    with nogil:
        if threads == 1:
            elementwise_part(y, x, n, function)
        else:
            for q in prange(threads, num_threads=threads, schedule="static"):
                elementwise_part(y + share(n, q, threads, 64), x + share(n, q, threads, 64),
                                 share(n, q + 1, threads, 64) - share(n, q, threads, 64), function)


cdef inline void elementwise_part(floating* y, const floating* x, ptrdiff_t n, Function function) noexcept nogil:
    if function == EXP:
        kernels.exp(y, x, n)
    elif function == LOG:
        kernels.log(y, x, n)
    elif function == TANH:
        kernels.tanh(y, x, n)
    else:
        kernels.sigmoid(y, x, n)


def sigmoid(x):
    """1 / (1 + exp(-x)), within 4 ULP."""
    return elementwise(SIGMOID, x)


def tanh(x):
    """Hyperbolic tangent, within 4 ULP."""
    return elementwise(TANH, x)


def exp(x):
    """Exponential function, within 4 ULP."""
    return elementwise(EXP, x)


def log(x):
    """Natural logarithm, within 4 ULP."""
    return elementwise(LOG, x)
