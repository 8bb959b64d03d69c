"""Optimiser steps over NumPy arrays: one pass over a parameter, its gradient and its state."""

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
                part(step, w, new_a, new_b, a, b, dw, min(n, q * chunk), n if q == threads - 1 else min(n, (q + 1) * chunk))


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


# All arrays of a call are C-contiguous, of one shape and one dtype, float32 or float64; fastrnn.optim sees to it.

def sgd(cnp.ndarray w, cnp.ndarray dw, double learning_rate):
    """w -= learning_rate dw."""
    cdef Step step = Step(SGD, learning_rate, 0, 0, 0)
    apply(&step, w, None, None, None, None, dw)


def sgd_momentum(cnp.ndarray w, cnp.ndarray dw, cnp.ndarray velocity, cnp.ndarray out, double learning_rate,
                 double momentum):
    """out = momentum velocity - learning_rate dw; w += out."""
    cdef Step step = Step(MOMENTUM, learning_rate, momentum, 0, 0)
    apply(&step, w, out, None, velocity, None, dw)


def rmsprop(cnp.ndarray w, cnp.ndarray dw, cnp.ndarray cache, cnp.ndarray out, double learning_rate,
            double decay_rate, double epsilon):
    """out = decay_rate cache + (1 - decay_rate) dw^2; w -= learning_rate dw / (sqrt(out) + epsilon)."""
    cdef Step step = Step(RMSPROP, learning_rate, decay_rate, 0, epsilon)
    apply(&step, w, out, None, cache, None, dw)


def adam(cnp.ndarray w, cnp.ndarray dw, cnp.ndarray m, cnp.ndarray v, cnp.ndarray out_m, cnp.ndarray out_v,
         double alpha, double beta1, double beta2, double epsilon):
    """out_m, out_v = the moving averages after dw; w -= alpha out_m / (sqrt(out_v) + epsilon)."""
    cdef Step step = Step(ADAM, alpha, beta1, beta2, epsilon)
    apply(&step, w, out_m, out_v, m, v, dw)
