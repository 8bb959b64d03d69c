"""Optimiser steps over NumPy arrays: one pass over a parameter, its gradient and its state."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from . cimport kernels
from .arrays cimport data
from .kernels cimport threads_for

cnp.import_array()

cdef enum Rule:
    SGD, MOMENTUM, RMSPROP, ADAM


cdef struct Step:
    Rule rule
    double rate, first, second, epsilon  # of the rule: momentum; decay rate; beta1 and beta2


cdef void part(const Step* step, floating* w, floating* new_a, floating* new_b, const floating* a, const floating* b,
               const floating* dw, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    cdef ptrdiff_t n = last - first
    cdef uint64_t mode
    if n <= 0:
        return
    mode = kernels.denormals_flush()
    w, dw = w + first, dw + first
    if step.rule == SGD:
        kernels.sgd(w, dw, n, step.rate)
    elif step.rule == MOMENTUM:
        kernels.sgd_momentum(w, new_a + first, a + first, dw, n, step.rate, step.first)
    elif step.rule == RMSPROP:
        kernels.rmsprop(w, new_a + first, a + first, dw, n, step.rate, step.first, step.epsilon)
    else:
        kernels.adam(w, new_a + first, new_b + first, a + first, b + first, dw, n, step.rate, step.first, step.second,
                     step.epsilon)
    kernels.denormals_restore(mode)


cdef void run(const Step* step, floating* w, floating* new_a, floating* new_b, const floating* a, const floating* b,
              const floating* dw, ptrdiff_t n) noexcept:
    # bound by memory: an element counts as ten operations
    cdef int threads = threads_for(10.0 * n)
    cdef ptrdiff_t q, chunk = (n // threads + 63) // 64 * 64
    with nogil:
        if threads == 1:
            part(step, w, new_a, new_b, a, b, dw, 0, n)
        else:
            for q in prange(threads, num_threads=threads, schedule="static"):
                part(step, w, new_a, new_b, a, b, dw, min(n, q * chunk),
                     n if q == threads - 1 else min(n, (q + 1) * chunk))


cdef bint fits(object w, object dw, object a, object b) noexcept:
    """Whether w is a writeable C-contiguous float array, and the others, where not None, are of its shape and dtype."""
    cdef object array
    cdef int kind
    if type(w) is not np.ndarray or dw is None:
        return False
    kind = cnp.PyArray_TYPE(<cnp.ndarray> w)
    if kind != cnp.NPY_FLOAT32 and kind != cnp.NPY_FLOAT64:
        return False
    if not cnp.PyArray_ISCARRAY(<cnp.ndarray> w):
        return False
    for array in (dw, a, b):
        if array is None:
            continue
        if (type(array) is not np.ndarray or cnp.PyArray_TYPE(<cnp.ndarray> array) != kind
                or not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array)
                or not cnp.PyArray_SAMESHAPE(<cnp.ndarray> array, <cnp.ndarray> w)):
            return False
    return True


cdef object like(cnp.ndarray w):
    return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(w), cnp.PyArray_DIMS(w), cnp.PyArray_TYPE(w), 0)


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


# Each rule changes w and returns the new state, in arrays of its own unless in_place. It returns None, and does
# nothing, where the arrays are not what the core can work on; fastrnn.optim then makes them so, or says why not.

def sgd(w, dw, double learning_rate):
    """w -= learning_rate dw. Returns True."""
    cdef Step step = Step(SGD, learning_rate, 0, 0, 0)
    if not fits(w, dw, None, None):
        return None
    apply(&step, w, None, None, None, None, dw)
    return True


def sgd_momentum(w, dw, velocity, double learning_rate, double momentum, bint in_place):
    """v = momentum velocity - learning_rate dw; w += v. Returns v."""
    cdef Step step = Step(MOMENTUM, learning_rate, momentum, 0, 0)
    if not fits(w, dw, velocity, None):
        return None
    v = velocity if in_place else like(w)
    apply(&step, w, v, None, velocity, None, dw)
    return v


def rmsprop(w, dw, cache, double learning_rate, double decay_rate, double epsilon, bint in_place):
    """c = decay_rate cache + (1 - decay_rate) dw^2; w -= learning_rate dw / (sqrt(c) + epsilon). Returns c."""
    cdef Step step = Step(RMSPROP, learning_rate, decay_rate, 0, epsilon)
    if not fits(w, dw, cache, None):
        return None
    c = cache if in_place else like(w)
    apply(&step, w, c, None, cache, None, dw)
    return c


def adam(w, dw, m, v, double alpha, double beta1, double beta2, double epsilon, bint in_place):
    """m, v = their moving averages after dw; w -= alpha m / (sqrt(v) + epsilon). Returns (m, v)."""
    cdef Step step = Step(ADAM, alpha, beta1, beta2, epsilon)
    if not fits(w, dw, m, v):
        return None
    next_m, next_v = (m, v) if in_place else (like(w), like(w))
    apply(&step, w, next_m, next_v, m, v, dw)
    return next_m, next_v
