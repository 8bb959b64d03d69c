"""Optimizer steps, clipping and averages over NumPy arrays, each in one pass over its arrays."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from . cimport kernels
from .arrays cimport data, new, new_like, overlap
from .runtime cimport denormals_flush, denormals_restore, share, threads_for

cnp.import_array()

cdef enum Rule:
    SGD, MOMENTUM, RMSPROP, ADAM, CLIP, SCALE, AVERAGE


cdef enum:
    SQUARES_BLOCK = 65536  # elements of a partial sum of squares


cdef struct Step:
    Rule rule
    double rate           # learning rate, limit of clipping, factor of scaling, rate of averaging
    double first, second  # momentum; decay rate; beta1 and beta2
    double epsilon, keep


cdef void step_part(const Step* step, floating* w, floating* new_a, floating* new_b, const floating* a,
                    const floating* b, const floating* dw, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    """Apply a rule to elements [first, last)."""
    cdef ptrdiff_t n = last - first
    cdef uint64_t mode
    if n <= 0:
        return
    mode = denormals_flush()
    w, dw = w + first, dw + first
    if step.rule == CLIP:
        kernels.clip(w, n, step.rate)
    elif step.rule == SCALE:
        kernels.scale(w, n, step.rate)
    elif step.rule == AVERAGE:
        kernels.average(w, dw, n, step.rate)
    elif step.rule == SGD:
        kernels.sgd(w, dw, n, step.rate)
    elif step.rule == MOMENTUM:
        kernels.sgd_momentum(w, new_a + first, a + first, dw, n, step.rate, step.first)
    elif step.rule == RMSPROP:
        kernels.rmsprop(w, new_a + first, a + first, dw, n, step.rate, step.first, step.epsilon)
    else:
        kernels.adam(w, new_a + first, new_b + first, a + first, b + first, dw, n, step.rate, step.first, step.second,
                     step.epsilon, step.keep)
    denormals_restore(mode)


cdef void run(const Step* step, floating* w, floating* new_a, floating* new_b, const floating* a, const floating* b,
              const floating* dw, ptrdiff_t n) noexcept:
    # bound by memory bandwidth: count each element as 10 operations
    cdef int threads = threads_for(10.0 * n)
    cdef ptrdiff_t q
    with nogil:
        if threads == 1:
            step_part(step, w, new_a, new_b, a, b, dw, 0, n)
        else:
            for q in prange(threads, num_threads=threads, schedule="static"):
                step_part(step, w, new_a, new_b, a, b, dw, share(n, q, threads, 64), share(n, q + 1, threads, 64))


cdef inline bint alike(object array, cnp.ndarray w, bint writeable) noexcept:
    """Return whether an array is a C-contiguous ndarray of the shape and dtype of w that shares no memory with it."""
    cdef cnp.ndarray a
    if type(array) is not np.ndarray:
        return False
    a = array
    return (cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(w) and cnp.PyArray_SAMESHAPE(a, w)
            and (cnp.PyArray_ISCARRAY(a) if writeable else cnp.PyArray_ISCARRAY_RO(a)) and not overlap(a, w))


def fits(w, tuple others=(), bint in_place=False):
    """Return whether the functions below accept w together with `others`, a gradient and state.

    w must be a writeable C-contiguous array of float32 or float64. The others must have its shape and dtype, no two
    arrays may share memory, and with in_place set the state, which is overwritten, must be writeable.
    """
    cdef Py_ssize_t k, earlier
    if type(w) is not np.ndarray or not cnp.PyArray_ISCARRAY(<cnp.ndarray> w):
        return False
    if cnp.PyArray_TYPE(<cnp.ndarray> w) not in (cnp.NPY_FLOAT32, cnp.NPY_FLOAT64):
        return False
    for k in range(len(others)):
        if not alike(others[k], w, in_place and k > 0):
            return False
        for earlier in range(k):
            if overlap(others[k], others[earlier]):
                return False
    return True


cdef int check(object w, tuple others, bint in_place) except -1:
    if not fits(w, others, in_place):
        raise ValueError("w is not supported with these arrays; expected arrays that fits() accepts")
    return 0


cdef int apply(const Step* step, cnp.ndarray w, cnp.ndarray new_a, cnp.ndarray new_b, cnp.ndarray a, cnp.ndarray b,
               cnp.ndarray dw) except -1:
    if cnp.PyArray_TYPE(w) == cnp.NPY_FLOAT32:
        run(step, <float*> data(w), NULL if new_a is None else <float*> data(new_a),
            NULL if new_b is None else <float*> data(new_b), NULL if a is None else <float*> data(a),
            NULL if b is None else <float*> data(b), <float*> data(dw), cnp.PyArray_SIZE(w))
    else:
        run(step, <double*> data(w), NULL if new_a is None else <double*> data(new_a),
            NULL if new_b is None else <double*> data(new_b), NULL if a is None else <double*> data(a),
            NULL if b is None else <double*> data(b), <double*> data(dw), cnp.PyArray_SIZE(w))
    return 0


# Each rule changes w and returns the new state, in new arrays unless in_place is set. Arrays must pass fits().

def sgd(w, dw, double learning_rate):
    """w -= learning_rate * dw. Return ()."""
    cdef Step step = Step(SGD, learning_rate, 0, 0, 0, 1)
    check(w, (dw,), False)
    apply(&step, w, None, None, None, None, dw)
    return ()


def sgd_momentum(w, dw, velocity, double learning_rate, double momentum, bint in_place):
    """velocity = momentum * velocity - learning_rate * dw; w += velocity. Return (velocity,)."""
    cdef Step step = Step(MOMENTUM, learning_rate, momentum, 0, 0, 1)
    check(w, (dw, velocity), in_place)
    v = velocity if in_place else new_like(w)
    apply(&step, w, v, None, velocity, None, dw)
    return (v,)


def rmsprop(w, dw, cache, double learning_rate, double decay_rate, double epsilon, bint in_place):
    """cache = decay_rate * cache + (1 - decay_rate) * dw**2; w -= learning_rate * dw / (sqrt(cache) + epsilon).

    Return (cache,).
    """
    cdef Step step = Step(RMSPROP, learning_rate, decay_rate, 0, epsilon, 1)
    check(w, (dw, cache), in_place)
    c = cache if in_place else new_like(w)
    apply(&step, w, c, None, cache, None, dw)
    return (c,)


def adam(w, dw, m, v, double alpha, double beta1, double beta2, double epsilon, double keep, bint in_place):
    """m, v = moving averages of dw and dw**2; w = keep * w - alpha * m / (sqrt(v) + epsilon). Return (m, v)."""
    cdef Step step = Step(ADAM, alpha, beta1, beta2, epsilon, keep)
    check(w, (dw, m, v), in_place)
    next_m, next_v = (m, v) if in_place else (new_like(w), new_like(w))
    apply(&step, w, next_m, next_v, m, v, dw)
    return next_m, next_v


# ---- Several parameters together -------------------------------------------------------------------------------------

cdef enum:
    UPDATE_BLOCK = 16384  # elements that a thread takes at a time
    MOST_ARRAYS = 4       # w, dw, m and v


# A rule for one parameter; its blocks are counted over all parameters.
cdef struct Update:
    Step step
    void* w
    void* a
    void* b
    const void* dw
    ptrdiff_t n, first_block


def fit_together(list updates):
    """Return whether tuples (w, dw, states...) pass fits() in place, have one dtype and share no memory at all."""
    cdef list arrays = []
    cdef tuple update
    cdef Py_ssize_t k, earlier
    for update in updates:
        if len(update) > MOST_ARRAYS or not fits(update[0], update[1:], True):
            return False
        if cnp.PyArray_TYPE(<cnp.ndarray> update[0]) != cnp.PyArray_TYPE(<cnp.ndarray> updates[0][0]):
            return False
        arrays.extend(update)
    for k in range(len(arrays)):
        for earlier in range(k):
            if overlap(arrays[k], arrays[earlier]):
                return False
    return True


cdef void block_of(const Update* updates, ptrdiff_t count, ptrdiff_t block, const floating* like) noexcept nogil:
    """Apply a block of the parameter that it belongs to. `like` gives the dtype."""
    cdef const Update* update = updates
    cdef ptrdiff_t k, first
    for k in range(1, count):
        if updates[k].first_block <= block:
            update = updates + k
    first = (block - update.first_block) * UPDATE_BLOCK
    step_part(&update.step, <floating*> update.w, <floating*> update.a, <floating*> update.b,
              <const floating*> update.a, <const floating*> update.b, <const floating*> update.dw, first,
              min(first + UPDATE_BLOCK, update.n))


cdef int apply_each(Update* updates, list arrays) except -1:
    """Apply rules to tuples (w, dw, states...) in place, in one parallel region."""
    cdef ptrdiff_t k, block, blocks = 0, total = 0, count = len(arrays)
    cdef const float* single = NULL
    cdef const double* double_ = NULL
    cdef bint is_single
    cdef int threads
    if not fit_together(arrays):
        raise ValueError("the arrays are not supported together; expected arrays that fit_together() accepts")
    for k in range(count):
        updates[k].w, updates[k].dw = data(arrays[k][0]), data(arrays[k][1])
        updates[k].a = data(arrays[k][2]) if len(arrays[k]) > 2 else NULL
        updates[k].b = data(arrays[k][3]) if len(arrays[k]) > 3 else NULL
        updates[k].n = cnp.PyArray_SIZE(arrays[k][0])
        updates[k].first_block = blocks
        blocks += (updates[k].n + UPDATE_BLOCK - 1) // UPDATE_BLOCK
        total += updates[k].n
    if blocks == 0:
        return 0
    is_single = cnp.PyArray_TYPE(arrays[0][0]) == cnp.NPY_FLOAT32
    # bound by memory bandwidth, as above
    threads = threads_for(10.0 * total)
    with nogil:
        for block in prange(blocks, num_threads=threads, schedule="dynamic"):
            if is_single:
                block_of(updates, count, block, single)
            else:
                block_of(updates, count, block, double_)
    return 0


def adam_each(list arrays, list rates):
    """Adam in place for tuples (w, dw, m, v), each with its (alpha, beta1, beta2, epsilon, keep); see adam()."""
    cdef Py_ssize_t k
    cdef double alpha, beta1, beta2, epsilon, keep
    cdef Update* updates = <Update*> PyMem_Calloc(max(len(arrays), 1), sizeof(Update))
    if updates == NULL:
        raise MemoryError
    try:
        for k in range(len(arrays)):
            alpha, beta1, beta2, epsilon, keep = rates[k]
            updates[k].step = Step(ADAM, alpha, beta1, beta2, epsilon, keep)
        apply_each(updates, arrays)
    finally:
        PyMem_Free(updates)


def average_each(list arrays, double rate):
    """Do mean += rate * (w - mean) for pairs (mean, w)."""
    cdef Py_ssize_t k
    cdef Update* updates = <Update*> PyMem_Calloc(max(len(arrays), 1), sizeof(Update))
    if updates == NULL:
        raise MemoryError
    try:
        for k in range(len(arrays)):
            updates[k].step = Step(AVERAGE, rate, 0, 0, 0, 1)
        apply_each(updates, arrays)
    finally:
        PyMem_Free(updates)


# ---- Gradients and averages ------------------------------------------------------------------------------------------
# Each changes its first argument, which must pass fits().

def clip(x, double limit):
    """x = min(max(x, -limit), limit)."""
    cdef Step step = Step(CLIP, limit, 0, 0, 0, 1)
    check(x, (), False)
    apply(&step, x, None, None, None, None, x)


def scale(x, double factor):
    """x *= factor."""
    cdef Step step = Step(SCALE, factor, 0, 0, 0, 1)
    check(x, (), False)
    apply(&step, x, None, None, None, None, x)


def average(mean, w, double rate):
    """mean += rate * (w - mean)."""
    cdef Step step = Step(AVERAGE, rate, 0, 0, 0, 1)
    check(mean, (w,), False)
    apply(&step, mean, None, None, None, None, w)


cdef double squares(const floating* x, ptrdiff_t n, double* sums, ptrdiff_t blocks) noexcept:
    # the blocks do not depend on the number of threads, so neither does the sum
    cdef ptrdiff_t q
    cdef int threads = threads_for(4.0 * n)
    cdef double total = 0
    with nogil:
        for q in prange(blocks, num_threads=threads, schedule="static"):
            sums[q] = kernels.sum_of_squares(x + q * SQUARES_BLOCK,
                                             min(<ptrdiff_t> SQUARES_BLOCK, n - q * SQUARES_BLOCK))
        for q in range(blocks):
            total += sums[q]
    return total


def sum_of_squares(cnp.ndarray x):
    """Return the sum of x * x, accumulated in float64. x must be contiguous, float32 or float64."""
    cdef ptrdiff_t n = cnp.PyArray_SIZE(x), blocks = (n + SQUARES_BLOCK - 1) // SQUARES_BLOCK
    cdef cnp.ndarray sums
    if not cnp.PyArray_ISCARRAY_RO(x):
        raise ValueError("x is not contiguous or not aligned; expected a contiguous array")
    sums = new(cnp.NPY_FLOAT64, 1, blocks)
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        return squares(<const float*> data(x), n, <double*> data(sums), blocks)
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64:
        return squares(<const double*> data(x), n, <double*> data(sums), blocks)
    raise TypeError(f"x has dtype {x.dtype}; expected float32 or float64")
