"""Conversion of arguments, allocation of results, and inline access to arrays."""

cimport numpy as cnp
from libc.stddef cimport ptrdiff_t

from .runtime cimport TOO_LARGE

cdef tuple floats(tuple names, tuple arrays)
cdef cnp.ndarray ids_of(str name, object ids)
cdef int raise_error(object check, tuple arguments) except -1
cdef bint wrap_ids(ptrdiff_t* wrapped, const cnp.npy_intp* ids, ptrdiff_t count, ptrdiff_t size) noexcept nogil
cdef cnp.ndarray new(int typenum, int ndim, ptrdiff_t d0, ptrdiff_t d1=*, ptrdiff_t d2=*)
cdef cnp.ndarray new_like(cnp.ndarray a)

cdef inline bint has_large_axis(cnp.ndarray a) noexcept:
    """Return whether an axis is so long that sizes may overflow; such an array has no elements."""
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[axis] >= TOO_LARGE:
            return True
    return False

cdef inline bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Return whether two contiguous arrays share memory."""
    cdef char* first = <char*> cnp.PyArray_DATA(a)
    cdef char* second = <char*> cnp.PyArray_DATA(b)
    return first < second + cnp.PyArray_NBYTES(b) and second < first + cnp.PyArray_NBYTES(a)

cdef inline bint has_shape(cnp.ndarray a, int ndim, ptrdiff_t d0, ptrdiff_t d1=-1, ptrdiff_t d2=-1) noexcept:
    """Return whether an array has `ndim` axes of these sizes."""
    cdef cnp.npy_intp* shape = cnp.PyArray_DIMS(a)
    return (cnp.PyArray_NDIM(a) == ndim and (ndim < 1 or shape[0] == d0) and (ndim < 2 or shape[1] == d1)
            and (ndim < 3 or shape[2] == d2))

cdef inline ptrdiff_t dim(cnp.ndarray a, int axis) noexcept:
    """Return the size of an axis, or -1 if there is no such axis."""
    return cnp.PyArray_DIMS(a)[axis] if axis < cnp.PyArray_NDIM(a) else -1

cdef inline void* data(cnp.ndarray a) noexcept:
    """Return the address of the first element."""
    return cnp.PyArray_DATA(a)
