"""Every matrix product of the core: packing, multiplying and the division among threads.

A large product packs both operands, the left one into tiles and the right one into panels (src_c/kernels.h). A product
of few rows reads the right operand unpacked. The result does not depend on the number of threads.
"""

from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from . cimport kernels
from .runtime cimport (
    Workspace, area, denormals_flush, denormals_restore, max_tile_height, panel_width, share,
)

cdef enum:
    FEW_ROWS = 4              # up to this many rows, multiply_columns() is bound by reading B
    CACHED_BYTES = 448 << 10  # of the second-level cache, for the tiles of A


# ---- Sizes -----------------------------------------------------------------------------------------------------------

cdef ptrdiff_t leading_dimension(ptrdiff_t columns, size_t size) noexcept nogil:
    """Return the row stride for `columns` elements, an odd multiple of 64 bytes: rows must not share cache sets."""
    cdef ptrdiff_t lines = (area(columns, size) + 63) // 64
    return (lines | 1) * 64 // <ptrdiff_t> size


cdef ptrdiff_t tile_height(ptrdiff_t M, size_t size) noexcept nogil:
    """Return the height that divides M rows into tiles of nearly equal height."""
    cdef ptrdiff_t most = max_tile_height(size)
    cdef ptrdiff_t tiles = (M + most - 1) // most
    return (M + tiles - 1) // tiles if tiles > 0 else most


cdef ptrdiff_t tiles_size(ptrdiff_t M, ptrdiff_t K, size_t size) noexcept nogil:
    """Return the number of elements of A (M, K) packed into tiles. It does not decrease when M or K grow."""
    cdef ptrdiff_t height = tile_height(M, size)
    return area((M + height - 1) // height * height, K)


cdef ptrdiff_t panels_size(ptrdiff_t K, ptrdiff_t N, size_t size) noexcept nogil:
    """Return the number of elements of B (K, N) packed into panels."""
    cdef ptrdiff_t width = panel_width(size)
    return area((N + width - 1) // width * width, K)


cdef Operands take_operands(Workspace workspace, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, size_t size) noexcept:
    """Take memory for the packed operands of C (M, N) = A (M, K) B (K, N) from a workspace."""
    cdef Operands packed
    packed.tiles = workspace.take(tiles_size(M, K, size), size)
    packed.panels = workspace.take(panels_size(K, N, size), size)
    return packed


# ---- In one thread ---------------------------------------------------------------------------------------------------

cdef void pack_rows(floating* tiles, Matrix A, ptrdiff_t M, ptrdiff_t K) noexcept nogil:
    """Pack A (M, K) into tiles."""
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    kernels.gemm_pack_rows(tiles, height * K, <const floating*> A.data, A.row, A.rs, A.col, A.cs, M, K, height, 0,
                           (M + height - 1) // height)


cdef void multiply_rows(floating* C, ptrdiff_t ldc, const floating* tiles, const floating* panels,
                        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, bint accumulate) noexcept nogil:
    """C (M, N) = A B + bias, or C += A B, with A packed by pack_rows() and B by pack_panels()."""
    kernels.gemm_tiles(C, ldc, tiles, tile_height(M, sizeof(floating)), panels, bias, M, N, K, accumulate)


cdef void multiply_columns(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                           ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t K, ptrdiff_t n0, ptrdiff_t n1,
                           bint accumulate) noexcept nogil:
    """Columns [n0, n1) of C = A (M, K) B + bias, or of C += A B, with B unpacked."""
    cdef const floating* part = NULL
    cdef uint64_t mode
    if n1 <= n0:
        return
    mode = denormals_flush()
    if bias != NULL:
        part = bias + n0
    if M <= FEW_ROWS:
        kernels.gemm_thin(C + n0, ldc, A, lda, B + n0, ldb, part, M, n1 - n0, K, accumulate)
    else:
        kernels.gemm_unpacked(C + n0, ldc, A, lda, 1, B + n0, ldb, part, M, n1 - n0, K, accumulate)
    denormals_restore(mode)


# ---- Divided among threads -------------------------------------------------------------------------------------------

cdef void pack_panels(floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K, ptrdiff_t N,
                      int threads) noexcept nogil:
    """Pack B (K, N) into panels `step` elements apart, or one after the other if step is 0; see gemm_pack()."""
    cdef ptrdiff_t width = panel_width(sizeof(floating))
    cdef ptrdiff_t count = (N + width - 1) // width
    cdef ptrdiff_t q
    if step == 0:
        step = width * K
    if threads == 1:
        kernels.gemm_pack(panels, step, colsum, <const floating*> B.data, B.row, B.rs, B.cs, K, N, 0, count)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        kernels.gemm_pack(panels + share(count, q, threads, 1) * step, step, colsum, <const floating*> B.data, B.row,
                          B.rs, B.cs, K, N, share(count, q, threads, 1), share(count, q + 1, threads, 1))


cdef void pack_tiles(floating* tiles, Matrix A, ptrdiff_t M, ptrdiff_t K, int threads) noexcept nogil:
    """Pack A (M, K) into tiles."""
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    cdef ptrdiff_t count = (M + height - 1) // height
    cdef ptrdiff_t q
    if threads == 1:
        pack_rows(tiles, A, M, K)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        kernels.gemm_pack_rows(tiles + share(count, q, threads, 1) * height * K, height * K, <const floating*> A.data,
                               A.row, A.rs, A.col, A.cs, M, K, height, share(count, q, threads, 1),
                               share(count, q + 1, threads, 1))


cdef void multiply_packed(floating* C, ptrdiff_t ldc, const floating* tiles, const floating* panels,
                          const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    cdef ptrdiff_t width = panel_width(sizeof(floating))
    cdef ptrdiff_t panel_count = (N + width - 1) // width
    cdef ptrdiff_t tile_count = (M + height - 1) // height
    cdef ptrdiff_t across, down, task
    if M == 0 or N == 0:
        return
    # Each task takes few enough rows for their tiles to stay in the second-level cache. Several tasks for each thread,
    # so that a thread that is held up does not hold up the others.
    down = min(tile_count, 1 + M * K * <ptrdiff_t> sizeof(floating) // CACHED_BYTES)
    if threads > 1:
        across = min(panel_count, (6 * threads + down - 1) // down)
        down = min(tile_count, max(down, (6 * threads + across - 1) // across))
        for task in prange(across * down, num_threads=threads, schedule="dynamic"):
            multiply_part(C, ldc, tiles, height, panels, bias, K,
                          share(N, task % across, across, width), share(N, task % across + 1, across, width),
                          share(M, task // across, down, height), share(M, task // across + 1, down, height))
    else:
        for task in range(down):
            multiply_part(C, ldc, tiles, height, panels, bias, K, 0, N, share(M, task, down, height),
                          share(M, task + 1, down, height))


cdef void multiply_part(floating* C, ptrdiff_t ldc, const floating* tiles, ptrdiff_t height, const floating* panels,
                        const floating* bias, ptrdiff_t K, ptrdiff_t n0, ptrdiff_t n1, ptrdiff_t m0,
                        ptrdiff_t m1) noexcept nogil:
    cdef uint64_t mode = denormals_flush()
    kernels.gemm_tiles(C + m0 * ldc + n0, ldc, tiles + m0 * K, height, panels + n0 * K,
                       bias + n0 if bias != NULL else <const floating*> NULL, m1 - m0, n1 - n0, K, False)
    denormals_restore(mode)


cdef void multiply_panels(floating* C, ptrdiff_t ldc, Matrix A, Operands packed, const floating* bias, ptrdiff_t M,
                          ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    """C (M, N) = A (M, K) B + bias, with B packed in packed.panels already. bias may be NULL."""
    pack_tiles(<floating*> packed.tiles, A, M, K, threads)
    multiply_packed(C, ldc, <const floating*> packed.tiles, <const floating*> packed.panels, bias, M, N, K, threads)


cdef void multiply(floating* C, ptrdiff_t ldc, Matrix A, Matrix B, Operands packed, const floating* bias,
                   floating* colsum, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    """C (M, N) = A (M, K) B (K, N) + bias; colsum (N,) = the column sums of B. bias and colsum may be NULL."""
    pack_panels(<floating*> packed.panels, 0, colsum, B, K, N, threads)
    multiply_panels(C, ldc, A, packed, bias, M, N, K, threads)


cdef void multiply_unpacked(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                            ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                            int threads) noexcept nogil:
    """C (M, N) = A (M, K) B (K, N) + bias for a moderate number of rows M, with B unpacked. bias may be NULL."""
    cdef ptrdiff_t q
    if M == 0 or N == 0:
        return
    if threads == 1:
        multiply_columns(C, ldc, A, lda, B, ldb, bias, M, K, 0, N, False)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        multiply_columns(C, ldc, A, lda, B, ldb, bias, M, K, share(N, q, threads, 64), share(N, q + 1, threads, 64),
                         False)


cdef void multiply_transposed(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B,
                              ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    """C (M, N) = A (M, K) B' for a few rows M, with B (N, K) unpacked."""
    cdef ptrdiff_t q
    if threads == 1:
        kernels.gemm_thin_transposed(C, ldc, A, lda, B, ldb, M, N, K, False)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        kernels.gemm_thin_transposed(C + share(N, q, threads, 1), ldc, A, lda, B + share(N, q, threads, 1) * ldb, ldb,
                                     M, share(N, q + 1, threads, 1) - share(N, q, threads, 1), K, False)


cdef void multiply_outer(floating* C, ptrdiff_t ldc, floating* colsum, const floating* A, ptrdiff_t lda,
                         const floating* B, ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                         int threads) noexcept nogil:
    """C (M, N) = A' B for a few rows K, with A (K, M) and B (K, N) unpacked; colsum (N,) = the column sums of B."""
    cdef ptrdiff_t q
    if threads == 1:
        kernels.gemm_outer(C, ldc, colsum, A, lda, B, ldb, M, N, K, False)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        kernels.gemm_outer(C + share(M, q, threads, 1) * ldc, ldc, colsum if q == 0 else <floating*> NULL,
                           A + share(M, q, threads, 1), lda, B, ldb,
                           share(M, q + 1, threads, 1) - share(M, q, threads, 1), N, K, False)
