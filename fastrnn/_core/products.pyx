"""Every matrix product of the core: packing, multiplying and the division among threads.

A large product packs both operands, the left one into tiles and the right one into panels (src_c/kernels.h). A product
of few rows reads the right operand unpacked. The result does not depend on the number of threads.

A product of packed operands may be in bfloat16, if its elements are float32: they are rounded while they are packed
(src_c/kernels_bf16.h). Packed elements are pairs then, so sizes and offsets of packed operands count depth_of(K).
"""

from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from . cimport kernels
from .runtime cimport (
    Team, Worker, Workspace, area, denormals_flush, denormals_restore, max_tile_height, next_block, panel_width, share,
    team_start, worker_of,
)

cdef enum:
    FEW_ROWS = 4              # up to this many rows, multiply_columns() is bound by reading B
    CACHED_BYTES = 448 << 10  # of the second-level cache, for the tiles of A
    TILES_TOGETHER = 5        # that a thread packs at a time
    BLOCKS_PER_THREAD = 16    # of a product


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


cdef ptrdiff_t tiles_size(ptrdiff_t M, ptrdiff_t depth, size_t size) noexcept nogil:
    """Return the number of elements of A (M, K) packed into tiles. It does not decrease when M or depth grow."""
    cdef ptrdiff_t height = tile_height(M, size)
    return area((M + height - 1) // height * height, depth)


cdef ptrdiff_t panels_size(ptrdiff_t depth, ptrdiff_t N, size_t size) noexcept nogil:
    """Return the number of elements of B (K, N) packed into panels."""
    cdef ptrdiff_t width = panel_width(size)
    return area((N + width - 1) // width * width, depth)


cdef Operands take_operands(Workspace workspace, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, size_t size,
                            bint bfloat16) noexcept:
    """Take memory for the packed operands of C (M, N) = A (M, K) B (K, N) from a workspace."""
    cdef Operands packed
    cdef ptrdiff_t depth = depth_of(K, bfloat16)
    packed.tiles = workspace.take(tiles_size(M, depth, size), size)
    packed.panels = workspace.take(panels_size(depth, N, size), size)
    packed.bfloat16 = bfloat16
    return packed


# ---- In one thread ---------------------------------------------------------------------------------------------------

cdef void pack_tiles(floating* tiles, ptrdiff_t step, Matrix A, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height,
                     ptrdiff_t first, ptrdiff_t last, bint bfloat16) noexcept nogil:
    """Pack tiles [first, last) of A (M, K), which have `height` rows and are `step` elements apart."""
    if floating is float:
        if bfloat16:
            kernels.gemm_pack_rows_bf16(tiles, step, <const float*> A.data, A.row, A.rs, A.col, A.cs, M, K, height,
                                        first, last)
            return
    kernels.gemm_pack_rows(tiles, step, <const floating*> A.data, A.row, A.rs, A.col, A.cs, M, K, height, first, last)


cdef void pack_rows(floating* tiles, Matrix A, ptrdiff_t M, ptrdiff_t K, bint bfloat16) noexcept nogil:
    """Pack A (M, K) into tiles."""
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    pack_tiles(tiles, height * depth_of(K, bfloat16), A, M, K, height, 0, (M + height - 1) // height, bfloat16)


cdef void multiply_rows(floating* C, ptrdiff_t ldc, const floating* tiles, const floating* panels,
                        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, bint accumulate,
                        bint bfloat16) noexcept nogil:
    """C (M, N) = A B + bias, or C += A B, with A packed by pack_rows() and B by pack_panels()."""
    multiply_tiles(C, ldc, tiles, tile_height(M, sizeof(floating)), panels, bias, M, N, depth, accumulate, bfloat16)


cdef void multiply_tiles(floating* C, ptrdiff_t ldc, const floating* tiles, ptrdiff_t height, const floating* panels,
                         const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, bint accumulate,
                         bint bfloat16) noexcept nogil:
    if floating is float:
        if bfloat16:
            kernels.gemm_tiles_bf16(C, ldc, tiles, height, panels, bias, M, N, depth, accumulate)
            return
    kernels.gemm_tiles(C, ldc, tiles, height, panels, bias, M, N, depth, accumulate)


cdef void round_row(floating* pairs, const floating* x, ptrdiff_t n) noexcept nogil:
    """Round a row of n elements to bfloat16, for multiply_strided(). Only for float32."""
    if floating is float:
        kernels.round_bf16(pairs, x, n)


cdef void multiply_strided(floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* panels,
                           const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t depth, bint accumulate,
                           bint bfloat16) noexcept nogil:
    """C (M, N) = A B + bias, or C += A B, with the rows of A `lda` elements apart and B packed by pack_panels().

    In bfloat16, the rows of A are rows of pairs from round_row().
    """
    if floating is float:
        if bfloat16:
            kernels.gemm_bf16(C, ldc, A, lda, panels, bias, M, N, depth, accumulate)
            return
    kernels.gemm(C, ldc, A, lda, 1, panels, bias, M, N, depth, accumulate)


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


# ---- Shared out to a team --------------------------------------------------------------------------------------------
# All threads of a team call these functions, see src_c/team.h.

cdef void team_pack_panels(floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K, ptrdiff_t N,
                           bint bfloat16, Worker* me) noexcept nogil:
    """Pack B (K, N) into panels `step` elements apart, or one after the other if step is 0; see gemm_pack()."""
    cdef ptrdiff_t width = panel_width(sizeof(floating))
    cdef ptrdiff_t count = (N + width - 1) // width
    cdef ptrdiff_t q
    if step == 0:
        step = width * depth_of(K, bfloat16)
    if me.threads == 1:
        pack_some(panels, step, colsum, B, K, N, 0, count, bfloat16)
        return
    q = next_block(me, count, -1)
    while q >= 0:
        pack_some(panels + q * step, step, colsum, B, K, N, q, q + 1, bfloat16)
        q = next_block(me, count, q)


cdef void pack_some(floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K, ptrdiff_t N,
                    ptrdiff_t first, ptrdiff_t last, bint bfloat16) noexcept nogil:
    """Pack panels [first, last) of B (K, N)."""
    if floating is float:
        if bfloat16:
            kernels.gemm_pack_bf16(panels, step, colsum, <const float*> B.data, B.row, B.rs, B.cs, K, N, first, last)
            return
    kernels.gemm_pack(panels, step, colsum, <const floating*> B.data, B.row, B.rs, B.cs, K, N, first, last)


cdef void team_pack_rows(floating* tiles, Matrix A, ptrdiff_t M, ptrdiff_t K, bint bfloat16, Worker* me) noexcept nogil:
    """Pack A (M, K) into tiles."""
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    cdef ptrdiff_t count = (M + height - 1) // height, step = height * depth_of(K, bfloat16)
    # several tiles together, because A may be transposed: then their rows are contiguous
    cdef ptrdiff_t blocks = (count + TILES_TOGETHER - 1) // TILES_TOGETHER, q, first
    if me.threads == 1:
        pack_rows(tiles, A, M, K, bfloat16)
        return
    q = next_block(me, blocks, -1)
    while q >= 0:
        first = share(count, q, blocks, 1)
        pack_tiles(tiles + first * step, step, A, M, K, height, first, share(count, q + 1, blocks, 1), bfloat16)
        q = next_block(me, blocks, q)


cdef void team_multiply_packed(floating* C, ptrdiff_t ldc, Operands packed, const floating* bias, ptrdiff_t M,
                               ptrdiff_t N, ptrdiff_t depth, Worker* me) noexcept nogil:
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    cdef ptrdiff_t width = panel_width(sizeof(floating))
    cdef ptrdiff_t panel_count = (N + width - 1) // width
    cdef ptrdiff_t tile_count = (M + height - 1) // height
    cdef ptrdiff_t across = 1, down, blocks, q
    if M == 0 or N == 0:
        return
    # Each block takes few enough rows for their tiles to stay in the second-level cache.
    down = min(tile_count, 1 + M * depth * <ptrdiff_t> sizeof(floating) // CACHED_BYTES)
    if me.threads > 1:
        blocks = BLOCKS_PER_THREAD * me.threads
        across = min(panel_count, (blocks + down - 1) // down)
        down = min(tile_count, max(down, (blocks + across - 1) // across))
    q = next_block(me, across * down, -1)
    while q >= 0:
        multiply_part(C, ldc, packed, height, bias, depth,
                      share(N, q % across, across, width), share(N, q % across + 1, across, width),
                      share(M, q // across, down, height), share(M, q // across + 1, down, height))
        q = next_block(me, across * down, q)


cdef void multiply_part(floating* C, ptrdiff_t ldc, Operands packed, ptrdiff_t height, const floating* bias,
                        ptrdiff_t depth, ptrdiff_t n0, ptrdiff_t n1, ptrdiff_t m0, ptrdiff_t m1) noexcept nogil:
    cdef uint64_t mode = denormals_flush()
    multiply_tiles(C + m0 * ldc + n0, ldc, <const floating*> packed.tiles + m0 * depth, height,
                   <const floating*> packed.panels + n0 * depth,
                   bias + n0 if bias != NULL else <const floating*> NULL, m1 - m0, n1 - n0, depth, False,
                   packed.bfloat16)
    denormals_restore(mode)


cdef void team_multiply_panels(floating* C, ptrdiff_t ldc, Matrix A, Operands packed, const floating* bias, ptrdiff_t M,
                               ptrdiff_t N, ptrdiff_t K, Worker* me) noexcept nogil:
    """C (M, N) = A (M, K) B + bias, with B packed in packed.panels already. bias may be NULL."""
    team_pack_rows(<floating*> packed.tiles, A, M, K, packed.bfloat16, me)
    team_multiply_packed(C, ldc, packed, bias, M, N, depth_of(K, packed.bfloat16), me)


cdef void team_multiply(floating* C, ptrdiff_t ldc, Matrix A, Matrix B, Operands packed, const floating* bias,
                        floating* colsum, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, Worker* me) noexcept nogil:
    """C (M, N) = A (M, K) B (K, N) + bias; colsum (N,) = the column sums of B. bias and colsum may be NULL."""
    team_pack_panels(<floating*> packed.panels, 0, colsum, B, K, N, packed.bfloat16, me)
    team_multiply_panels(C, ldc, A, packed, bias, M, N, K, me)


# ---- By a team for one product ---------------------------------------------------------------------------------------

cdef void pack_panels(floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K, ptrdiff_t N,
                      bint bfloat16, int threads) noexcept nogil:
    """Call team_pack_panels() with `threads` threads."""
    cdef Team team
    cdef Worker me
    cdef int k
    team_start(&team, threads, False)
    if threads == 1:
        me = worker_of(&team, 0)
        team_pack_panels(panels, step, colsum, B, K, N, bfloat16, &me)
        return
    for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        pack_panels_of(&team, k, panels, step, colsum, B, K, N, bfloat16)


cdef void pack_panels_of(Team* team, int k, floating* panels, ptrdiff_t step, floating* colsum, Matrix B, ptrdiff_t K,
                         ptrdiff_t N, bint bfloat16) noexcept nogil:
    cdef Worker me = worker_of(team, k)
    team_pack_panels(panels, step, colsum, B, K, N, bfloat16, &me)


cdef void multiply_panels(floating* C, ptrdiff_t ldc, Matrix A, Operands packed, const floating* bias, ptrdiff_t M,
                          ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    """Call team_multiply_panels() with `threads` threads."""
    multiply_by_team(C, ldc, A, NULL, packed, bias, <floating*> NULL, M, N, K, threads)


cdef void multiply(floating* C, ptrdiff_t ldc, Matrix A, Matrix B, Operands packed, const floating* bias,
                   floating* colsum, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    """Call team_multiply() with `threads` threads."""
    multiply_by_team(C, ldc, A, &B, packed, bias, colsum, M, N, K, threads)


cdef void multiply_by_team(floating* C, ptrdiff_t ldc, Matrix A, const Matrix* B, Operands packed, const floating* bias,
                           floating* colsum, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int threads) noexcept nogil:
    cdef Team team
    cdef int k
    team_start(&team, threads, False)
    if threads == 1:
        multiply_of(&team, 0, C, ldc, A, B, packed, bias, colsum, M, N, K)
        return
    for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        multiply_of(&team, k, C, ldc, A, B, packed, bias, colsum, M, N, K)


cdef void multiply_of(Team* team, int k, floating* C, ptrdiff_t ldc, Matrix A, const Matrix* B, Operands packed,
                      const floating* bias, floating* colsum, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K) noexcept nogil:
    """Do the part of the k-th thread. B is packed already if it is NULL."""
    cdef Worker me = worker_of(team, k)
    if B == NULL:
        team_multiply_panels(C, ldc, A, packed, bias, M, N, K, &me)
    else:
        team_multiply(C, ldc, A, B[0], packed, bias, colsum, M, N, K, &me)


# ---- Of few rows, divided among threads ------------------------------------------------------------------------------

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
