"""Every matrix product of the core: packing, multiplying and the division among threads."""

from cython cimport floating
from libc.stddef cimport ptrdiff_t

from .runtime cimport Worker, Workspace


cdef struct Matrix:
    # Where a matrix is: element (i, k) is data[row[i] + col[k]], with i * rs for row[i] where row is NULL and k * cs
    # for col[k] where col is NULL. data points to the element type of the product.
    const void* data
    const ptrdiff_t* row
    ptrdiff_t rs
    const ptrdiff_t* col
    ptrdiff_t cs


cdef inline Matrix matrix(const void* data, ptrdiff_t ld) noexcept nogil:
    """Return a matrix whose rows are `ld` elements apart."""
    return Matrix(data, NULL, ld, NULL, 1)


cdef inline Matrix transposed(const void* data, ptrdiff_t ld) noexcept nogil:
    """Return the transpose of a matrix whose rows are `ld` elements apart."""
    return Matrix(data, NULL, 1, NULL, ld)


cdef inline Matrix gathered(const void* data, const ptrdiff_t* row) noexcept nogil:
    """Return a matrix whose i-th row starts at data[row[i]]."""
    return Matrix(data, row, 0, NULL, 1)


cdef inline Matrix gathered_transposed(const void* data, const ptrdiff_t* row) noexcept nogil:
    """Return the transpose of a matrix whose i-th row starts at data[row[i]]."""
    return Matrix(data, NULL, 1, row, 0)


cdef struct Operands:
    # Memory for the packed operands of a product.
    void* tiles    # A (M, K)
    void* panels   # B (K, N)
    bint bfloat16  # whether they are rounded to bfloat16


cdef inline ptrdiff_t depth_of(ptrdiff_t K, bint bfloat16) noexcept nogil:
    """Return the number of elements of a packed operand along K. In bfloat16, each is a pair (kernels_bf16.h)."""
    return K // 2 + K % 2 if bfloat16 else K


cdef ptrdiff_t leading_dimension(ptrdiff_t columns, size_t size) noexcept nogil
cdef ptrdiff_t tile_height(ptrdiff_t M, size_t size) noexcept nogil
cdef ptrdiff_t tiles_size(ptrdiff_t M, ptrdiff_t depth, size_t size) noexcept nogil
cdef ptrdiff_t panels_size(ptrdiff_t depth, ptrdiff_t N, size_t size) noexcept nogil
cdef Operands take_operands(Workspace workspace, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, size_t size,
                            bint bfloat16) noexcept

# in one thread
cdef void pack_tiles(floating* tiles, ptrdiff_t step, Matrix A, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height,
                     ptrdiff_t first, ptrdiff_t last, bint bfloat16) noexcept nogil
cdef void pack_rows(floating* tiles, Matrix A, ptrdiff_t M, ptrdiff_t K, bint bfloat16) noexcept nogil
cdef void pack_some(floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K, ptrdiff_t N,
                    ptrdiff_t first, ptrdiff_t last, bint bfloat16) noexcept nogil
cdef void multiply_rows(floating* C, ptrdiff_t ldc, const floating* tiles, const floating* panels,
                        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, bint accumulate,
                        bint bfloat16) noexcept nogil
cdef void round_row(floating* pairs, const floating* x, ptrdiff_t n) noexcept nogil
cdef void multiply_strided(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* panels,
                           const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, bint accumulate,
                           bint bfloat16) noexcept nogil
cdef void multiply_columns(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                           ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t K, ptrdiff_t n0, ptrdiff_t n1,
                           bint accumulate) noexcept nogil

# shared out to a team
cdef void team_pack_panels(floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K, ptrdiff_t N,
                           bint bfloat16, Worker* me) noexcept nogil
cdef void team_multiply_panels(floating* C, ptrdiff_t ldc, Matrix A, Operands packed, const floating* bias, ptrdiff_t M,
                               ptrdiff_t N, ptrdiff_t K, Worker* me) noexcept nogil
cdef void team_multiply(floating* C, ptrdiff_t ldc, Matrix A, Matrix B, Operands packed, const floating* bias,
                        floating* colsum, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, Worker* me) noexcept nogil

# by a team of threads of their own
cdef void pack_panels(floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K, ptrdiff_t N,
                      bint bfloat16, int threads) noexcept nogil
cdef void multiply_panels(floating* C, ptrdiff_t ldc, Matrix A, Operands packed, const floating* bias, ptrdiff_t M,
                          ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil
cdef void multiply(floating* C, ptrdiff_t ldc, Matrix A, Matrix B, Operands packed, const floating* bias,
                   floating* colsum, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil
cdef void multiply_unpacked(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                            ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                            int threads) noexcept nogil
cdef void multiply_transposed(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                              ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil
cdef void multiply_outer(floating* C, ptrdiff_t ldc, floating* colsum, const floating* A, ptrdiff_t lda,
                         const floating* B, ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                         int threads) noexcept nogil
