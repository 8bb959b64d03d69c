"""What the captioner shares with the layers."""

from cython cimport floating
from libc.stddef cimport ptrdiff_t

cdef void sort_by_word(ptrdiff_t* start, ptrdiff_t* row, const ptrdiff_t* ids, ptrdiff_t count, ptrdiff_t V,
                       ptrdiff_t stride) noexcept nogil
cdef void columns_product(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                          ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                          int threads) noexcept nogil
