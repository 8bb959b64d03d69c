"""Conversion of arguments to arrays of one dtype that are C-contiguous and aligned, and allocation of results.

Converting an argument may run code of the caller (``__array__``), which may change the shape or dtype of an array that
was converted before. So a function must call floats() last, even if it has converted the arrays before to raise errors
in the right order, and must not run such code afterwards. Ids are private views.
"""

import numpy as np

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_New
from libc.stddef cimport ptrdiff_t
from libc.string cimport memcpy, memset

from .runtime cimport DEBUGGING, TOO_LARGE, area, block_alloc, block_free, poison, spoil, unpoison

from .. import checks

cdef extern from "numpy/arrayobject.h":
    object PyArray_View(cnp.ndarray array, void* dtype, void* type)

cnp.import_array()


cdef tuple floats(tuple names, tuple arrays):
    """Return the arrays as C-contiguous arrays of one dtype, float32 or float64, without copies if they are already."""
    cdef int first = -1
    cdef object array
    for array in arrays:
        if type(array) is not np.ndarray:
            break
        if has_large_axis(<cnp.ndarray> array):
            break
        if first < 0:
            first = cnp.PyArray_TYPE(<cnp.ndarray> array)
        if cnp.PyArray_TYPE(<cnp.ndarray> array) != first or not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array):
            break
    else:
        if first == cnp.NPY_FLOAT32 or first == cnp.NPY_FLOAT64:
            return arrays
    found = checks.as_floats(**dict(zip(names, arrays)))
    for name, array in zip(names, found):
        refuse_large(name, array)
    return tuple([np.require(array, requirements="CA") for array in found])


cdef int refuse_large(str name, cnp.ndarray array) except -1:
    """Raise MemoryError if an axis is so long that results cannot be allocated."""
    if has_large_axis(array):
        raise MemoryError(f"{name} has shape {np.shape(array)}; expected results that fit in memory")
    return 0


cdef cnp.ndarray ids_of(str name, object ids):
    """Return word ids as a C-contiguous array of intp, a view whose shape and dtype no other code can change."""
    cdef cnp.ndarray found
    if (type(ids) is np.ndarray and cnp.PyArray_TYPE(<cnp.ndarray> ids) == cnp.NPY_INTP
            and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> ids) and not has_large_axis(<cnp.ndarray> ids)):
        return PyArray_View(<cnp.ndarray> ids, NULL, NULL)
    found = checks.as_integers(**{name: ids})[0]
    refuse_large(name, found)
    found = np.require(found, requirements="CA")
    return PyArray_View(found, NULL, NULL)


cdef int raise_error(object check, tuple arguments) except -1:
    """Raise the exception of a function of fastrnn.checks for arguments that an op has refused."""
    check(*arguments)
    raise AssertionError(f"checks.{check.__name__} accepted arguments that the core refused")


cdef bint wrap_ids(ptrdiff_t* wrapped, const cnp.npy_intp* ids, ptrdiff_t count, ptrdiff_t size) noexcept nogil:
    """Convert negative ids, which count from the end. Return False if an id is outside [-size, size)."""
    cdef ptrdiff_t i, id
    for i in range(count):
        id = ids[i]
        if id < 0:
            id += size
        if id < 0 or id >= size:
            return False
        wrapped[i] = id
    return True


# ---- New arrays ------------------------------------------------------------------------------------------------------
#
# Results of 128 KiB and more use blocks of the pool in runtime.pyx, which avoids page faults. The arrays own their
# data: NumPy frees an array with the allocator that created it (NEP 49).

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void* ctx
        void* (*malloc)(void* ctx, size_t size) noexcept
        void* (*calloc)(void* ctx, size_t count, size_t size) noexcept
        void* (*realloc)(void* ctx, void* memory, size_t size) noexcept
        void (*free)(void* ctx, void* memory, size_t size) noexcept
    ctypedef struct PyDataMem_Handler:
        char[127] name
        unsigned char version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object handler)

cdef enum:
    LARGE_BYTES = 128 << 10  # above this, the system allocator maps new pages
    HEADER_BYTES = 64        # before the data: the size of the block and that of the data


cdef void* data_malloc(void* ctx, size_t size) noexcept:
    cdef size_t got
    cdef char* block = <char*> block_alloc(size + HEADER_BYTES, &got) if size < <size_t> TOO_LARGE else NULL
    if block == NULL:
        return NULL
    (<size_t*> block)[0], (<size_t*> block)[1] = got, size
    poison(block, HEADER_BYTES)
    return block + HEADER_BYTES


cdef void* data_calloc(void* ctx, size_t count, size_t size) noexcept:
    cdef void* memory = data_malloc(ctx, area(count, size))
    if memory != NULL:
        memset(memory, 0, count * size)
    return memory


cdef void data_free(void* ctx, void* memory, size_t size) noexcept:
    cdef char* block = <char*> memory - HEADER_BYTES
    if memory != NULL:
        unpoison(block, HEADER_BYTES)
        block_free(block, (<size_t*> block)[0])


cdef void* data_realloc(void* ctx, void* memory, size_t size) noexcept:
    cdef void* grown = data_malloc(ctx, size)
    cdef char* block = <char*> memory - HEADER_BYTES
    if grown != NULL and memory != NULL:
        unpoison(block, HEADER_BYTES)
        memcpy(grown, memory, min(size, (<size_t*> block)[1]))
        data_free(ctx, memory, size)
    return grown


cdef PyDataMem_Handler handler
memcpy(handler.name, b"fastrnn\0", 8)
handler.version = 1
handler.allocator.malloc = data_malloc
handler.allocator.calloc = data_calloc
handler.allocator.realloc = data_realloc
handler.allocator.free = data_free
cdef object handler_capsule = PyCapsule_New(&handler, "mem_handler", NULL)


cdef cnp.ndarray empty(int ndim, const cnp.npy_intp* shape, int typenum):
    """Return an uninitialized array that owns its data."""
    cdef ptrdiff_t size = 8
    cdef int i
    cdef object before = None
    cdef cnp.ndarray array
    for i in range(ndim):
        size = area(size, shape[i])
    if size >= LARGE_BYTES or DEBUGGING:
        before = PyDataMem_SetHandler(handler_capsule)
    try:
        array = cnp.PyArray_EMPTY(ndim, shape, typenum, 0)
        spoil(cnp.PyArray_DATA(array), cnp.PyArray_NBYTES(array))
        return array
    except ValueError:  # NumPy multiplies the axes, even those of an empty array
        raise MemoryError(f"no memory for an array of shape {tuple([shape[i] for i in range(ndim)])}") from None
    finally:
        if before is not None:
            PyDataMem_SetHandler(before)


cdef cnp.ndarray new(int typenum, int ndim, ptrdiff_t d0, ptrdiff_t d1=0, ptrdiff_t d2=0):
    """Return an uninitialized array of up to three axes."""
    cdef cnp.npy_intp[3] shape
    shape[0], shape[1], shape[2] = d0, d1, d2
    return empty(ndim, shape, typenum)


cdef cnp.ndarray new_like(cnp.ndarray a):
    """Return an uninitialized C-contiguous array with the shape and dtype of another."""
    return empty(cnp.PyArray_NDIM(a), cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a))
