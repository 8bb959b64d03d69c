"""C functions for the captioner."""

from libc.stddef cimport ptrdiff_t

cdef void sort_by_word(ptrdiff_t* start, ptrdiff_t* row, const ptrdiff_t* ids, ptrdiff_t count, ptrdiff_t V,
                       ptrdiff_t stride) noexcept nogil
