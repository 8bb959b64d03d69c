"""A recurrent cell: its size and the two row kernels that follow the matrix products. See src_c/fastrnn.h."""

from cython cimport floating
from libc.stddef cimport ptrdiff_t

cdef extern from "fastrnn.h" nogil:
    ctypedef struct Cell "frn_cell":
        const char* name
        ptrdiff_t gates  # blocks of H columns in Wx, Wh and b
        bint has_c       # whether the state is (h, c) rather than h alone
        bint direct      # whether h depends on the previous h other than through the gates
        void (*forward_f32)(float*, float*, float*, float*, const float*, const float*, const float*,
                            ptrdiff_t) noexcept nogil
        void (*forward_f64)(double*, double*, double*, double*, const double*, const double*, const double*,
                            ptrdiff_t) noexcept nogil
        void (*backward_f32)(float*, float*, float*, const float*, const float*, const float*, const float*,
                             const float*, const float*, ptrdiff_t) noexcept nogil
        void (*backward_f64)(double*, double*, double*, const double*, const double*, const double*, const double*,
                             const double*, const double*, ptrdiff_t) noexcept nogil


cdef inline void row_forward(const Cell* cell, floating* gates, floating* h, floating* c, floating* h_out,
                             const floating* input, const floating* h_prev, const floating* c_prev,
                             ptrdiff_t H) noexcept nogil:
    if floating is float:
        cell.forward_f32(gates, h, c, h_out, input, h_prev, c_prev, H)
    else:
        cell.forward_f64(gates, h, c, h_out, input, h_prev, c_prev, H)


cdef inline void row_backward(const Cell* cell, floating* da, floating* dh_next, floating* dc, const floating* dh,
                              const floating* gates, const floating* h, const floating* c, const floating* h_prev,
                              const floating* c_prev, ptrdiff_t H) noexcept nogil:
    if floating is float:
        cell.backward_f32(da, dh_next, dc, dh, gates, h, c, h_prev, c_prev, H)
    else:
        cell.backward_f64(da, dh_next, dc, dh, gates, h, c, h_prev, c_prev, H)
