"""NumPy arrays as the core wants them: of one dtype, C-contiguous, aligned."""

import numpy as np

cimport numpy as cnp
from libc.stddef cimport ptrdiff_t

from ..reference import checks

cnp.import_array()


cdef tuple floats(tuple names, tuple arrays):
    """The arrays as C-contiguous ones of one dtype, float32 or float64; themselves where they are that already."""
    cdef int first = -1
    cdef object array
    for array in arrays:
        if type(array) is not np.ndarray:
            break
        if first < 0:
            first = cnp.PyArray_TYPE(<cnp.ndarray> array)
        if cnp.PyArray_TYPE(<cnp.ndarray> array) != first or not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array):
            break
    else:
        if first == cnp.NPY_FLOAT32 or first == cnp.NPY_FLOAT64:
            return arrays
    found = checks.as_floats(**dict(zip(names, arrays)))
    return tuple([np.require(array, requirements="CA") for array in found])


cdef cnp.ndarray ids_of(str name, object ids):
    """Word ids as a C-contiguous array of intp."""
    if (type(ids) is np.ndarray and cnp.PyArray_TYPE(<cnp.ndarray> ids) == cnp.NPY_INTP
            and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> ids)):
        return ids
    return np.require(checks.as_integers(**{name: ids})[0], requirements="CA")


cdef int refuse(object twin, tuple arguments) except -1:
    """Raise what the reference raises for these arguments: shapes and ids are explained in one place, there."""
    twin(*arguments)
    raise AssertionError(f"{twin.__name__} of the reference took arguments that the core refused")


cdef bint wrap_ids(ptrdiff_t* wrapped, const cnp.npy_intp* ids, ptrdiff_t count, ptrdiff_t size) noexcept nogil:
    """Ids with negative ones counted from the end; False where one lies outside [-size, size)."""
    cdef ptrdiff_t i, id
    for i in range(count):
        id = ids[i]
        if id < 0:
            id += size
        if id < 0 or id >= size:
            return False
        wrapped[i] = id
    return True


cdef cnp.ndarray new(int typenum, int ndim, ptrdiff_t d0, ptrdiff_t d1=0, ptrdiff_t d2=0):
    """An array that is not initialised."""
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = d0, d1, d2
    return cnp.PyArray_EMPTY(ndim, shape, typenum, 0)
