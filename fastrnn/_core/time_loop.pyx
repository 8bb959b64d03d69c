"""The time loops over a ragged batch, forward and backward (BPTT), over preallocated buffers.

The rows of a batch are sorted by length, longest first, and a sequence runs in time-major order over *tokens*: token
``offset[t] + r`` is step t of the r-th row. The active rows of a step are contiguous, so the cost of a ragged batch is
that of its tokens. The rows are divided into chains (row_chains()), and a thread takes the next step of the chain that
is furthest behind; no chain waits for another. With few rows, the threads divide the columns (by_columns()). The order
of every sum is independent of the number of threads.
"""

from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memset

from .cell cimport Cell, row_backward, row_forward
from .products cimport (
    depth_of, gathered, leading_dimension, matrix, multiply_rows, multiply_strided, pack_rows, pack_tiles, round_row,
    tile_height, tiles_size,
)
from .runtime cimport (
    MAX_CHAINS, MAX_TILE_HEIGHT, Team, Worker, Workspace, area, denormals_flush, denormals_restore, next_block,
    next_step, panel_width, share, slice_of, team_start, worker_of,
)

# See by_columns().
cdef enum:
    ROWS_PER_THREAD = 20
    LARGE_WEIGHTS = 1 << 18  # elements of Wh
    COLUMN_PARTS = 4         # for each thread

# See row_chains() and steps_together().
cdef enum:
    CHAIN_ROWS = 28
    TOGETHER = 4000000       # multiplications


# ---- Batches ---------------------------------------------------------------------------------------------------------

cdef ptrdiff_t batch_size(ptrdiff_t N, ptrdiff_t T) noexcept nogil:
    """Return the number of ptrdiff_t in the memory of batch_sort()."""
    return N + 2 * T + 1


cdef void batch_sort(Batch* batch, void* memory, const ptrdiff_t* lengths, ptrdiff_t N, ptrdiff_t T, ptrdiff_t H,
                     const Cell* cell, size_t size, bint bfloat16) noexcept nogil:
    """Fill in a batch of rows with these lengths (all T if NULL) by counting sort, which is stable."""
    cdef ptrdiff_t n, t, r
    batch.cell, batch.bfloat16 = cell, bfloat16
    batch.N, batch.T, batch.H, batch.G = N, T, H, cell.gates * H
    batch.ldh = leading_dimension(H, size)
    batch.ldg = leading_dimension(batch.G, size)
    batch.row = <ptrdiff_t*> memory
    batch.active = batch.row + N
    batch.offset = batch.active + T
    if lengths == NULL:
        for n in range(N):
            batch.row[n] = n
        for t in range(T):
            batch.active[t] = N
    else:
        # active[t] is the number of rows longer than t, and also where the rows of length t start in the sorted order
        memset(batch.active, 0, T * sizeof(ptrdiff_t))
        for n in range(N):
            if lengths[n] > 0:
                batch.active[lengths[n] - 1] += 1
        for t in range(T - 2, -1, -1):
            batch.active[t] += batch.active[t + 1]
        # until it is filled in below, offset holds the place of the next row of each length
        for t in range(T + 1):
            batch.offset[t] = batch.active[t] if t < T else 0
        for n in range(N):
            r = batch.offset[lengths[n]]
            batch.offset[lengths[n]] += 1
            batch.row[r] = n
    batch.offset[0] = 0
    for t in range(T):
        batch.offset[t + 1] = batch.offset[t] + batch.active[t]
    batch.tokens = batch.offset[T]


cdef inline bint by_columns(const Batch* batch, int threads) noexcept nogil:
    """Return whether the threads divide the columns of each step rather than the rows of the batch.

    A thread with few rows is bound by memory, because it reads all weights at each step. With some of the columns it
    reads only its part of the weights, which stays in its cache from step to step. This saves more time than the two
    barriers per step cost.
    """
    return (threads > 1 and batch.N < ROWS_PER_THREAD * threads and batch.N >= 4
            and batch.H * batch.G >= LARGE_WEIGHTS)


cdef inline ptrdiff_t rows_of_chain(const Batch* batch, int threads) noexcept nogil:
    """Return the largest number of rows of a chain."""
    cdef ptrdiff_t chains
    if batch.T == 0:
        return 0
    chains = row_chains(batch, threads)
    return (batch.active[0] + chains - 1) // chains


cdef int row_chains(const Batch* batch, int threads) noexcept nogil:
    """Return the number of chains of a batch: the q-th consists of the steps of every chains-th row from the q-th on.

    There are more than threads, so that the others go on with the rows of a thread that is held up. Each has about two
    tiles of rows, because a product of fewer reads the weights too often.
    """
    cdef ptrdiff_t rows = batch.active[0], chains
    if threads == 1:
        return 1
    chains = (rows + CHAIN_ROWS * threads - 1) // (CHAIN_ROWS * threads) * threads
    return <int> max(<ptrdiff_t> 1, min(chains, min(rows, <ptrdiff_t> MAX_CHAINS)))


cdef ptrdiff_t steps_together(const Batch* batch, int chains, int threads) noexcept nogil:
    """Return the number of steps of a chain that a thread runs at a time, so that taking them costs little."""
    if threads == 1:
        return batch.T
    return 1 + <ptrdiff_t> (TOGETHER / (1.0 + batch.active[0] // chains * batch.H * batch.G))


cdef ptrdiff_t column_parts(ptrdiff_t most, ptrdiff_t columns, size_t size) noexcept nogil:
    """Return the number of parts, up to `most`, into which the panels of a step are divided."""
    cdef ptrdiff_t width = panel_width(size)
    return max(<ptrdiff_t> 1, min(most, (columns + width - 1) // width))


# ---- Forward ---------------------------------------------------------------------------------------------------------

cdef inline ptrdiff_t depth_forward(const Batch* batch, ptrdiff_t D) noexcept nogil:
    """Return the depth of rows [x, previous h]."""
    return depth_of(D, batch.bfloat16) + depth_of(batch.H, batch.bfloat16)


cdef inline ptrdiff_t ld_rounded(ptrdiff_t columns) noexcept nogil:
    """Return the row stride for `columns` elements that are rounded to bfloat16."""
    return leading_dimension(depth_of(columns, True), sizeof(float))


cdef Scratch take_forward(Workspace workspace, const Batch* batch, ptrdiff_t D, int threads, size_t size) noexcept:
    """Take the scratch memory of steps_forward() with inputs of size D from a workspace."""
    cdef ptrdiff_t rows = rows_of_chain(batch, 1 if by_columns(batch, threads) else threads)
    cdef Scratch scratch
    scratch.tiles = workspace.take_slices(threads, tiles_size(rows, depth_forward(batch, D), size), size)
    scratch.rounded = workspace.take(rounded_size(batch.N, batch.H), size) if batch.bfloat16 and D == 0 else NULL
    return scratch


cdef ptrdiff_t rounded_size(ptrdiff_t N, ptrdiff_t columns) noexcept nogil:
    """Return the number of pairs in N rounded rows."""
    return area(N, ld_rounded(columns))


cdef void steps_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                        const floating* bias, const floating* weights, Scratch scratch, int threads) noexcept nogil:
    """Call team_steps_forward() with `threads` threads."""
    cdef Team team
    cdef int k
    team_start(&team, threads, False)
    if threads == 1:
        steps_forward_of(&team, 0, batch, gates, h, c, out, out_at, x, x_at, D, bias, weights, scratch)
        return
    for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        steps_forward_of(&team, k, batch, gates, h, c, out, out_at, x, x_at, D, bias, weights, scratch)


cdef void steps_forward_of(Team* team, int k, const Batch* batch, floating* gates, floating* h, floating* c,
                           floating* out, const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at,
                           ptrdiff_t D, const floating* bias, const floating* weights, Scratch scratch) noexcept nogil:
    cdef Worker me = worker_of(team, k)
    team_steps_forward(batch, gates, h, c, out, out_at, x, x_at, D, bias, weights, scratch, &me)


cdef void team_steps_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                             const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                             const floating* bias, const floating* weights, Scratch scratch,
                             Worker* me) noexcept nogil:
    """Run all steps.

    The input (D,) of a token is at x[x_at[token]], and `weights` are the panels of Wx stacked on Wh, (D + H, G). If D
    is 0, x[x_at[token]] is the product (G,) of the input with Wx plus bias, `weights` are the panels of Wh alone, and
    of scratch only the rounded rows of h are used, in bfloat16. gates (tokens, G) receives the activations; h and c
    (N + tokens, H) start with the N initial states; out[out_at[token]], unless out is NULL, receives a copy of h.
    """
    cdef ptrdiff_t t, q, parts, done = 0
    cdef int chains, chain
    cdef floating* rounded = <floating*> scratch.rounded if batch.bfloat16 and D == 0 else NULL
    cdef floating* tiles = <floating*> slice_of(scratch.tiles, me.k)
    if batch.T == 0:
        return
    if rounded != NULL:
        q = next_block(me, batch.active[0], -1)
        while q >= 0:
            round_row(rounded + q * ld_rounded(batch.H), <const floating*> h + q * batch.ldh, batch.H)
            q = next_block(me, batch.active[0], q)
    if by_columns(batch, me.threads):
        parts = column_parts(me.threads if D > 0 else COLUMN_PARTS * me.threads, batch.G, sizeof(floating))
        for t in range(batch.T):
            q = next_block(me, parts, -1)
            while q >= 0:
                columns_forward(batch, gates, h, x, x_at, D, bias, weights, tiles, rounded, t, q, parts)
                q = next_block(me, parts, q)
            q = next_block(me, me.threads, -1)
            while q >= 0:
                gates_forward(batch, gates, h, c, out, out_at, x, x_at, D, rounded, t, q, me.threads)
                q = next_block(me, me.threads, q)
        return
    chains = row_chains(batch, me.threads)
    chain = next_step(me, chains, batch.T, -1, &done)
    while chain >= 0:
        done = rows_forward(batch, gates, h, c, out, out_at, x, x_at, D, bias, weights, tiles, rounded, chain, chains,
                            done, steps_together(batch, chains, me.threads))
        chain = next_step(me, chains, batch.T, chain, &done)


cdef void columns_forward(const Batch* batch, floating* gates, const floating* h, const floating* x,
                          const ptrdiff_t* x_at, ptrdiff_t D, const floating* bias, const floating* weights,
                          floating* tiles, const floating* rounded, ptrdiff_t t, ptrdiff_t q,
                          ptrdiff_t parts) noexcept nogil:
    """Compute the q-th part of the columns of the products at step t."""
    cdef ptrdiff_t width = panel_width(sizeof(floating))
    cdef ptrdiff_t n0 = share(batch.G, q, parts, width), n1 = share(batch.G, q + 1, parts, width)
    cdef uint64_t mode
    if n1 <= n0 or batch.active[t] == 0:
        return
    mode = denormals_flush()
    products_forward(batch, gates + n0, h, x, x_at, D, bias + n0 if bias != NULL else <const floating*> NULL,
                     weights + n0 * depth_forward(batch, D), n1 - n0, tiles, rounded, t, 0, 1)
    denormals_restore(mode)


cdef ptrdiff_t rows_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                            const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                            const floating* bias, const floating* weights, floating* tiles, floating* rounded,
                            ptrdiff_t first, ptrdiff_t stride, ptrdiff_t done, ptrdiff_t steps) noexcept nogil:
    """Run some steps of rows first, first + stride, ..., after `done` ones. Return how many are done then."""
    cdef ptrdiff_t t
    cdef uint64_t mode = denormals_flush()
    for t in range(done, min(done + steps, batch.T)):
        if batch.active[t] <= first:
            done = batch.T  # there are no more
            break
        products_forward(batch, gates, <const floating*> h, x, x_at, D, bias, weights, batch.G, tiles,
                         <const floating*> rounded, t, first, stride)
        gates_forward(batch, gates, h, c, out, out_at, x, x_at, D, rounded, t, first, stride)
        done = t + 1
    denormals_restore(mode)
    return done


cdef void products_forward(const Batch* batch, floating* gates, const floating* h, const floating* x,
                           const ptrdiff_t* x_at, ptrdiff_t D, const floating* bias, const floating* weights,
                           ptrdiff_t columns, floating* tiles, const floating* rounded, ptrdiff_t t, ptrdiff_t first,
                           ptrdiff_t stride) noexcept nogil:
    """Compute the products at step t of rows first, first + stride, ... with the `columns` columns of the weights."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, H = batch.H, depth = depth_forward(batch, D)
    cdef ptrdiff_t rows = (batch.active[t] - first + stride - 1) // stride
    cdef ptrdiff_t height = tile_height(rows, sizeof(floating))
    cdef ptrdiff_t count = (rows + height - 1) // height
    cdef ptrdiff_t q
    cdef const floating* state = h + state_before(batch, t, first) * ldh
    cdef floating* to = gates + (batch.offset[t] + first) * ldg
    if D == 0:
        if rounded != NULL:
            state, ldh = rounded + first * ld_rounded(H), ld_rounded(H)
        multiply_strided(to, stride * ldg, state, stride * ldh, weights, <const floating*> NULL, rows, columns, depth,
                         False, batch.bfloat16)
        return
    # each row of a tile is [x, previous h]
    for q in range(count):
        pack_inputs(tiles + q * height * depth, x, x_at + batch.offset[t] + first, stride, q * height,
                    min(height, rows - q * height), height, D, batch.bfloat16)
    pack_tiles(tiles + height * depth_of(D, batch.bfloat16), height * depth, matrix(state, stride * ldh), rows, H,
               height, 0, count, batch.bfloat16)
    multiply_rows(to, stride * ldg, <const floating*> tiles, weights, bias, rows, columns, depth, False,
                  batch.bfloat16)


cdef void gates_forward(const Batch* batch, floating* gates, floating* h, floating* c, floating* out,
                        const ptrdiff_t* out_at, const floating* x, const ptrdiff_t* x_at, ptrdiff_t D,
                        floating* rounded, ptrdiff_t t, ptrdiff_t first, ptrdiff_t stride) noexcept nogil:
    """Apply the gates at step t to rows first, first + stride, ..."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, r = first, token, previous
    cdef floating* h_out = NULL
    cdef const floating* input = NULL
    cdef uint64_t mode = denormals_flush()
    while r < batch.active[t]:
        token = batch.offset[t] + r
        previous = state_before(batch, t, r) * ldh
        if out != NULL:
            h_out = out + out_at[token]
        if D == 0:
            input = x + x_at[token]
        row_forward(batch.cell, gates + token * ldg, h + (batch.N + token) * ldh, c + (batch.N + token) * ldh, h_out,
                    input, <const floating*> h + previous, <const floating*> c + previous, batch.H)
        if rounded != NULL:
            round_row(rounded + r * ld_rounded(batch.H), <const floating*> h + (batch.N + token) * ldh, batch.H)
        r += stride
    denormals_restore(mode)


cdef void pack_inputs(floating* tile, const floating* x, const ptrdiff_t* x_at, ptrdiff_t stride, ptrdiff_t first,
                      ptrdiff_t rows, ptrdiff_t height, ptrdiff_t D, bint bfloat16) noexcept nogil:
    """Pack the inputs of every stride-th token into one tile."""
    cdef ptrdiff_t[MAX_TILE_HEIGHT] row
    cdef ptrdiff_t i
    for i in range(rows):
        row[i] = x_at[(first + i) * stride]
    pack_tiles(tile, 0, gathered(x, row), rows, D, height, 0, 1, bfloat16)


# ---- Backward --------------------------------------------------------------------------------------------------------

cdef Scratch take_backward(Workspace workspace, const Batch* batch, int threads, size_t size) noexcept:
    """Take the scratch memory of steps_backward() with dx from a workspace.

    In bfloat16, these are rounded rows of da. Otherwise without dx it needs none.
    """
    cdef Scratch scratch
    scratch.tiles.memory, scratch.tiles.step, scratch.rounded = NULL, 0, NULL
    if batch.bfloat16:
        scratch.rounded = workspace.take(rounded_size(batch.N, batch.G), size)
    else:
        scratch.tiles = workspace.take_slices(threads, tiles_size(rows_of_chain(batch, threads), batch.G, size), size)
    return scratch


cdef void steps_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                         ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh, const ptrdiff_t* dh_at,
                         const floating* gates, const floating* h, const floating* c, const floating* Wh_transposed,
                         const floating* Wx_transposed, Scratch scratch, int threads) noexcept nogil:
    """Call team_steps_backward() with `threads` threads."""
    cdef Team team
    cdef int k
    team_start(&team, threads, False)
    if threads == 1:
        steps_backward_of(&team, 0, batch, da, dstate, dc, dx, dx_step, dx_row, D, dh, dh_at, gates, h, c,
                          Wh_transposed, Wx_transposed, scratch)
        return
    for k in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        steps_backward_of(&team, k, batch, da, dstate, dc, dx, dx_step, dx_row, D, dh, dh_at, gates, h, c,
                          Wh_transposed, Wx_transposed, scratch)


cdef void steps_backward_of(Team* team, int k, const Batch* batch, floating* da, floating* dstate, floating* dc,
                            floating* dx, ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh,
                            const ptrdiff_t* dh_at, const floating* gates, const floating* h, const floating* c,
                            const floating* Wh_transposed, const floating* Wx_transposed,
                            Scratch scratch) noexcept nogil:
    cdef Worker me = worker_of(team, k)
    team_steps_backward(batch, da, dstate, dc, dx, dx_step, dx_row, D, dh, dh_at, gates, h, c, Wh_transposed,
                        Wx_transposed, scratch, &me)


cdef void team_steps_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                              ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh,
                              const ptrdiff_t* dh_at, const floating* gates, const floating* h, const floating* c,
                              const floating* Wh_transposed, const floating* Wx_transposed, Scratch scratch,
                              Worker* me) noexcept nogil:
    """Run all steps backward.

    da (tokens, G) receives the gradient of the pre-activations, and may be gates. dstate and dc (N, H) start with the
    gradient of the state after the last step of each row, and receive that of the initial state. The gradient of the
    loss with respect to h of a token is at dh[dh_at[token]].

    dx receives the gradient of the inputs, unless it is NULL: that of row r at step t at t * dx_step + r * dx_row, for
    a batch of equal lengths, or that of a token at token * dx_row if dx_step is 0.
    """
    cdef ptrdiff_t t, q, parts, done = 0
    cdef int chains, chain
    cdef floating* rounded = <floating*> scratch.rounded if batch.bfloat16 else NULL
    cdef floating* tiles = <floating*> slice_of(scratch.tiles, me.k)
    if batch.T == 0:
        return
    if by_columns(batch, me.threads):
        parts = column_parts(COLUMN_PARTS * me.threads, batch.H, sizeof(floating))
        for t in range(batch.T - 1, -1, -1):
            q = next_block(me, me.threads, -1)
            while q >= 0:
                gates_backward(batch, da, dstate, dc, dh, dh_at, gates, h, c, rounded, t, q, me.threads)
                q = next_block(me, me.threads, q)
            q = next_block(me, parts, -1)
            while q >= 0:
                columns_backward(batch, da, dstate, dx, dx_step, dx_row, D, Wh_transposed, Wx_transposed,
                                 <const floating*> rounded, t, q, parts)
                q = next_block(me, parts, q)
        return
    chains = row_chains(batch, me.threads)
    chain = next_step(me, chains, batch.T, -1, &done)
    while chain >= 0:
        done = rows_backward(batch, da, dstate, dc, dx, dx_step, dx_row, D, dh, dh_at, gates, h, c, Wh_transposed,
                             Wx_transposed, tiles, rounded, chain, chains, done,
                             steps_together(batch, chains, me.threads))
        chain = next_step(me, chains, batch.T, chain, &done)


cdef inline floating* dx_of(const Batch* batch, floating* dx, ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t t,
                            ptrdiff_t r) noexcept nogil:
    """Return the address of the gradient of the input of row r at step t."""
    return dx + t * dx_step + r * dx_row if dx_step > 0 else dx + (batch.offset[t] + r) * dx_row


cdef void columns_backward(const Batch* batch, const floating* da, floating* dstate, floating* dx, ptrdiff_t dx_step,
                           ptrdiff_t dx_row, ptrdiff_t D, const floating* Wh_transposed, const floating* Wx_transposed,
                           const floating* rounded, ptrdiff_t t, ptrdiff_t q, ptrdiff_t parts) noexcept nogil:
    """Compute the q-th part of the columns of dstate and of dx at step t."""
    cdef ptrdiff_t width = panel_width(sizeof(floating)), H = batch.H
    cdef ptrdiff_t depth = depth_of(batch.G, batch.bfloat16), lda = batch.ldg
    cdef ptrdiff_t n0 = share(H, q, parts, width), n1 = share(H, q + 1, parts, width)
    cdef const floating* no_bias = NULL
    cdef const floating* da_step = da + batch.offset[t] * batch.ldg
    cdef uint64_t mode = denormals_flush()
    if rounded != NULL:
        da_step, lda = rounded, ld_rounded(batch.G)
    if n1 > n0:
        multiply_strided(dstate + n0, batch.ldh, da_step, lda, Wh_transposed + n0 * depth, no_bias, batch.active[t],
                         n1 - n0, depth, batch.cell.direct, batch.bfloat16)
    n0, n1 = share(D, q, parts, width), share(D, q + 1, parts, width)
    if dx != NULL and n1 > n0:
        multiply_strided(dx_of(batch, dx, dx_step, dx_row, t, 0) + n0, dx_row, da_step, lda, Wx_transposed + n0 * depth,
                         no_bias, batch.active[t], n1 - n0, depth, False, batch.bfloat16)
    denormals_restore(mode)


cdef ptrdiff_t rows_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, floating* dx,
                             ptrdiff_t dx_step, ptrdiff_t dx_row, ptrdiff_t D, const floating* dh,
                             const ptrdiff_t* dh_at, const floating* gates, const floating* h, const floating* c,
                             const floating* Wh_transposed, const floating* Wx_transposed, floating* tiles,
                             floating* rounded, ptrdiff_t first, ptrdiff_t stride, ptrdiff_t done,
                             ptrdiff_t steps) noexcept nogil:
    """Run some steps of rows first, first + stride, ... backward, after `done` ones. Return how many are done then."""
    cdef ptrdiff_t t, rows
    cdef ptrdiff_t ldh = batch.ldh, H = batch.H, G = batch.G, lda = batch.ldg
    cdef ptrdiff_t depth = depth_of(G, batch.bfloat16)
    cdef const floating* no_bias = NULL
    cdef const floating* da_step
    cdef uint64_t mode = denormals_flush()
    while done < batch.T and batch.active[batch.T - 1 - done] <= first:
        done += 1
    steps = min(steps, batch.T - done)
    for t in range(batch.T - 1 - done, batch.T - 1 - done - steps, -1):
        rows = (batch.active[t] - first + stride - 1) // stride
        gates_backward(batch, da, dstate, dc, dh, dh_at, gates, h, c, rounded, t, first, stride)
        da_step = da + (batch.offset[t] + first) * batch.ldg
        if rounded != NULL:
            da_step, lda = rounded + first * ld_rounded(G), ld_rounded(G)
        if dx == NULL or rounded != NULL:
            multiply_strided(dstate + first * ldh, stride * ldh, da_step, stride * lda, Wh_transposed, no_bias, rows,
                             H, depth, batch.cell.direct, batch.bfloat16)
            if dx != NULL:
                multiply_strided(dx_of(batch, dx, dx_step, dx_row, t, first), stride * dx_row, da_step, stride * lda,
                                 Wx_transposed, no_bias, rows, D, depth, False, batch.bfloat16)
            continue
        # pack the rows once for two products
        pack_rows(tiles, matrix(da_step, stride * lda), rows, G, False)
        multiply_rows(dstate + first * ldh, stride * ldh, <const floating*> tiles, Wh_transposed, no_bias, rows, H, G,
                      batch.cell.direct, False)
        multiply_rows(dx_of(batch, dx, dx_step, dx_row, t, first), stride * dx_row, <const floating*> tiles,
                      Wx_transposed, no_bias, rows, D, G, False, False)
    denormals_restore(mode)
    return done + steps


cdef void gates_backward(const Batch* batch, floating* da, floating* dstate, floating* dc, const floating* dh,
                         const ptrdiff_t* dh_at, const floating* gates, const floating* h, const floating* c,
                         floating* rounded, ptrdiff_t t, ptrdiff_t first, ptrdiff_t stride) noexcept nogil:
    """Backward pass of the gates at step t, for rows first, first + stride, ..."""
    cdef ptrdiff_t ldg = batch.ldg, ldh = batch.ldh, r = first, token, previous
    cdef uint64_t mode = denormals_flush()
    while r < batch.active[t]:
        token = batch.offset[t] + r
        previous = state_before(batch, t, r) * ldh
        row_backward(batch.cell, da + token * ldg, dstate + r * ldh, dc + r * ldh, dh + dh_at[token],
                     gates + token * ldg, h + (batch.N + token) * ldh, c + (batch.N + token) * ldh, h + previous,
                     c + previous, batch.H)
        if rounded != NULL:
            round_row(rounded + r * ld_rounded(batch.G), <const floating*> da + token * ldg, batch.G)
        r += stride
    denormals_restore(mode)
