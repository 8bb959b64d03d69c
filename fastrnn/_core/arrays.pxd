"""NumPy arrays as the core wants them: of one dtype, C-contiguous, aligned."""

cimport numpy as cnp
from libc.stddef cimport ptrdiff_t

from .kernels cimport TOO_LARGE

cdef tuple floats(tuple names, tuple arrays)
cdef cnp.ndarray ids_of(str name, object ids)
cdef int refuse(object twin, tuple arguments) except -1
cdef bint wrap_ids(ptrdiff_t* wrapped, const cnp.npy_intp* ids, ptrdiff_t count, ptrdiff_t size) noexcept nogil
cdef cnp.ndarray new(int typenum, int ndim, ptrdiff_t d0, ptrdiff_t d1=*, ptrdiff_t d2=*)
cdef cnp.ndarray new_like(cnp.ndarray a)

cdef inline bint has_large_axis(cnp.ndarray a) noexcept:
    """Whether an axis is so long that sizes computed from it may overflow. The array then has no elements."""
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIMS(a)[axis] >= TOO_LARGE:
            return True
    return False

cdef inline bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two contiguous arrays share memory."""
    cdef char* first = <char*> cnp.PyArray_DATA(a)
    cdef char* second = <char*> cnp.PyArray_DATA(b)
    return first < second + cnp.PyArray_NBYTES(b) and second < first + cnp.PyArray_NBYTES(a)

cdef inline bint has_shape(cnp.ndarray a, int ndim, ptrdiff_t d0, ptrdiff_t d1=-1, ptrdiff_t d2=-1) noexcept:
    cdef cnp.npy_intp* shape = cnp.PyArray_DIMS(a)
    return (cnp.PyArray_NDIM(a) == ndim and (ndim < 1 or shape[0] == d0) and (ndim < 2 or shape[1] == d1)
            and (ndim < 3 or shape[2] == d2))

cdef inline ptrdiff_t dim(cnp.ndarray a, int axis) noexcept:
    """The size of an axis, -1 where there is no such axis."""
    return cnp.PyArray_DIMS(a)[axis] if axis < cnp.PyArray_NDIM(a) else -1

cdef inline void* data(cnp.ndarray a) noexcept:
    return cnp.PyArray_DATA(a)
