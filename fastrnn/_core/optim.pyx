"""Optimiser steps, clipping and averages over NumPy arrays: one pass over a parameter, its gradient and its state."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from . cimport kernels
from .arrays cimport data, new_like, overlap
from .kernels cimport share, threads_for

cnp.import_array()

cdef enum Rule:
    SGD, MOMENTUM, RMSPROP, ADAM, CLIP, SCALE, AVERAGE


cdef enum:
    SQUARES_RUN = 65536  # elements whose squares one thread adds up at a time


cdef struct Step:
    Rule rule
    double rate, first, second, epsilon, keep  # of the rule: momentum; decay rate; beta1 and beta2; limit; factor


cdef void part(const Step* step, floating* w, floating* new_a, floating* new_b, const floating* a, const floating* b,
               const floating* dw, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    cdef ptrdiff_t n = last - first
    cdef uint64_t mode
    if n <= 0:
        return
    mode = kernels.denormals_flush()
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
    kernels.denormals_restore(mode)


cdef void run(const Step* step, floating* w, floating* new_a, floating* new_b, const floating* a, const floating* b,
              const floating* dw, ptrdiff_t n) noexcept:
    # bound by memory: an element counts as ten operations
    cdef int threads = threads_for(10.0 * n)
    cdef ptrdiff_t q
    with nogil:
        if threads == 1:
            part(step, w, new_a, new_b, a, b, dw, 0, n)
        else:
            for q in prange(threads, num_threads=threads, schedule="static"):
                part(step, w, new_a, new_b, a, b, dw, share(n, q, threads, 64), share(n, q + 1, threads, 64))


cdef inline bint alike(object array, cnp.ndarray w, bint writeable) noexcept:
    """Whether an array is NumPy's own, of the shape and dtype of w, C-contiguous, and elsewhere in memory."""
    cdef cnp.ndarray a
    if type(array) is not np.ndarray:
        return False
    a = array
    return (cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(w) and cnp.PyArray_SAMESHAPE(a, w)
            and (cnp.PyArray_ISCARRAY(a) if writeable else cnp.PyArray_ISCARRAY_RO(a)) and not overlap(a, w))


def fits(w, tuple others=(), bint in_place=False):
    """Whether the functions below take w, and `others` beside it: a gradient, and state that in_place is written over.

    w is a writeable C-contiguous array of float32 or float64, the others are of its shape and dtype, and no two of them
    share memory.
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
        raise ValueError("arrays that fits() refuses")
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


# Each rule changes w and returns the new state, in arrays of its own unless in_place. What fits() refuses raises.

def sgd(w, dw, double learning_rate):
    """w -= learning_rate dw. Returns ()."""
    cdef Step step = Step(SGD, learning_rate, 0, 0, 0, 1)
    check(w, (dw,), False)
    apply(&step, w, None, None, None, None, dw)
    return ()


def sgd_momentum(w, dw, velocity, double learning_rate, double momentum, bint in_place):
    """v = momentum velocity - learning_rate dw; w += v. Returns (v,)."""
    cdef Step step = Step(MOMENTUM, learning_rate, momentum, 0, 0, 1)
    check(w, (dw, velocity), in_place)
    v = velocity if in_place else new_like(w)
    apply(&step, w, v, None, velocity, None, dw)
    return (v,)


def rmsprop(w, dw, cache, double learning_rate, double decay_rate, double epsilon, bint in_place):
    """c = decay_rate cache + (1 - decay_rate) dw^2; w -= learning_rate dw / (sqrt(c) + epsilon). Returns (c,)."""
    cdef Step step = Step(RMSPROP, learning_rate, decay_rate, 0, epsilon, 1)
    check(w, (dw, cache), in_place)
    c = cache if in_place else new_like(w)
    apply(&step, w, c, None, cache, None, dw)
    return (c,)


def adam(w, dw, m, v, double alpha, double beta1, double beta2, double epsilon, double keep, bint in_place):
    """m, v = their moving averages after dw; w = keep w - alpha m / (sqrt(v) + epsilon). Returns (m, v)."""
    cdef Step step = Step(ADAM, alpha, beta1, beta2, epsilon, keep)
    check(w, (dw, m, v), in_place)
    next_m, next_v = (m, v) if in_place else (new_like(w), new_like(w))
    apply(&step, w, next_m, next_v, m, v, dw)
    return next_m, next_v


# ---- Gradients and averages ------------------------------------------------------------------------------------------
# Each changes its first argument. What fits() refuses raises.

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
    """mean += rate (w - mean)."""
    cdef Step step = Step(AVERAGE, rate, 0, 0, 0, 1)
    check(mean, (w,), False)
    apply(&step, mean, None, None, None, None, w)


cdef double squares(const floating* x, ptrdiff_t n, double[::1] sums) noexcept:
    # The runs do not depend on the number of threads, so neither does the sum.
    cdef ptrdiff_t q, runs = sums.shape[0]
    cdef int threads = threads_for(4.0 * n)
    cdef double total = 0
    with nogil:
        for q in prange(runs, num_threads=threads, schedule="static"):
            sums[q] = kernels.sum_of_squares(x + q * SQUARES_RUN, min(<ptrdiff_t> SQUARES_RUN, n - q * SQUARES_RUN))
        for q in range(runs):
            total += sums[q]
    return total


def sum_of_squares(cnp.ndarray x):
    """The sum of x * x, added up in float64; x is contiguous, of float32 or float64."""
    cdef ptrdiff_t n = cnp.PyArray_SIZE(x)
    cdef double[::1] sums
    if not cnp.PyArray_ISCARRAY_RO(x):
        raise ValueError("x is not contiguous and aligned; expected an array that is")
    sums = np.empty((n + SQUARES_RUN - 1) // SQUARES_RUN)
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        return squares(<const float*> data(x), n, sums)
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT64:
        return squares(<const double*> data(x), n, sums)
    raise TypeError(f"x has dtype {x.dtype}; expected float32 or float64")
