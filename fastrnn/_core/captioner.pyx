"""The training step of the captioner in one call, equivalent to the layers in sequence.

It skips work that does not affect the result: time steps after the last word of a caption, scores of masked positions,
and the input products of repeated words.
"""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, has_shape, ids_of, new, new_like, overlap, wrap_ids
from .layers cimport sort_by_word
from .model cimport BLOCK_ROWS, Model, read_model
from .products cimport (
    Operands, depth_of, gathered, gathered_transposed, matrix, multiply_rows, multiply_strided, pack_rows, panels_size,
    team_multiply, team_pack_panels, tiles_size, transposed,
)
from .runtime cimport (
    Slices, Team, Worker, Workspace, area, denormals_flush, denormals_restore, leave, lock, next_block, random_key,
    seconds, share, slice_of, team_start, threads_for, unlock, worker_of,
)
from .time_loop cimport (
    Batch, Scratch, batch_size, batch_sort, rounded_size, state_before, team_steps_backward, team_steps_forward,
)

from .. import checks
from .model import PARAM_NAMES

cnp.import_array()

cdef enum:
    PARAMS = 8
    WORDS_TOGETHER = 8  # that a thread takes at a time

# the stages of a step, see team_step()
cdef enum:
    UP_TO_SCORES, BACK_TO_STATES, LAST_STAGE


# ---- Time per phase --------------------------------------------------------------------------------------------------

cdef enum:
    CHECK, SORT, WORDS, CLEAR, DROP, INPUTS, PACK, FORWARD, VOCABULARY, BACKWARD, RECURRENT_GRADIENTS, INPUT_GRADIENTS
    VOCABULARY_GRADIENTS, PHASES

cdef double[PHASES] total_time  # read and changed under the lock only
PHASE_NAMES = ("check and copy ids", "sort by length", "distinct words", "clear", "dropout of word vectors",
               "input product", "pack weights", "time loop forward", "vocabulary and softmax", "time loop backward",
               "dWh", "dWx and dW_embed", "dW_vocab")
SERIAL_PHASES = PHASE_NAMES[:DROP]  # in one thread, whatever the number of threads


def profile(bint reset=True):
    """Return the seconds that training steps have spent in each phase since the last reset, by name."""
    cdef double[PHASES] found
    lock()
    memcpy(found, total_time, sizeof(total_time))
    if reset:
        memset(total_time, 0, sizeof(total_time))
    unlock()
    return {name: found[phase] for phase, name in enumerate(PHASE_NAMES)}


# ---- A training step -------------------------------------------------------------------------------------------------

cdef struct Step:
    Model model
    Batch batch
    ptrdiff_t N, T
    int threads
    # regularization: dropout rates and seeds of the word vectors and of the vocabulary's input; label smoothing
    double embed_rate, vocab_rate, smoothing
    uint64_t embed_seed, vocab_seed
    double[PHASES] time        # of the first thread
    double since               # when the present phase began
    # data of the batch
    const ptrdiff_t* lengths   # (N,) steps up to the last scored one
    const ptrdiff_t* inputs    # (N, input_stride) words
    ptrdiff_t input_stride
    const ptrdiff_t* targets   # (N, T + 1) words
    const char* masked         # (N, T)
    const double* weights      # (N,) weights of the captions in the loss, or NULL for ones
    # the batch that these captions are a part of: its number of captions, and the rows (N,) of these in it, which draws
    # depend on; NULL for 0 to N - 1
    double batch_rows
    const ptrdiff_t* rows

    # Index arrays, filled in by prepare(). A distinct word is a word of the batch; with dropout each token has its own
    # word vector and counts as a distinct word.
    ptrdiff_t max_tokens, max_words, words, scored
    void* batch_memory
    ptrdiff_t* index_of_word  # (V,) index among the distinct words
    ptrdiff_t* feature_at     # (N,) offset of the features of each row of the batch
    # (tokens,)
    ptrdiff_t* distinct       # index among the distinct words
    ptrdiff_t* product_at     # offset of the input product
    ptrdiff_t* dh_at          # offset of the gradient of h
    ptrdiff_t* h_prev_at      # offset of the previous h
    ptrdiff_t* word           # word
    ptrdiff_t* place          # n * T + t
    # (scored,) tokens in the loss
    ptrdiff_t* scored_at      # offset of h
    ptrdiff_t* target         # word
    ptrdiff_t* scored_place   # n * T + t
    # (words,) distinct words
    ptrdiff_t* vector_at      # offset of the word vector
    ptrdiff_t* start          # (words + 1,) where the tokens of each word start in by_word; (V + 1,) with dropout
    ptrdiff_t* by_word        # (tokens,) offsets of gates, or of the gradients of word vectors with dropout

    # Buffers. Gradients of the gates replace the gates.
    double* losses            # (scored,)
    void* h                   # (N + tokens, ldh)
    void* c                   # (N + tokens, ldh)
    void* dh                  # (scored + 1, ldh), the last row is zero
    void* h_dropped           # (scored, ldh) the vocabulary's input under dropout, or NULL
    void* vectors             # (tokens, ldw) word vectors under dropout, or NULL
    void* gates               # (tokens, ldg)
    void* products            # (words, ldg)
    void* dproducts           # (words, ldg), in the memory of products, or of gates with dropout
    void* dvectors            # (words, ldw)
    void* dscores             # (scored, ldv)
    void* dstate              # (N, ldh)
    void* dc                  # (N, ldh)
    Slices block_tiles
    Scratch loop_scratch
    # packed weights, and packed operands of the other products, one after the other in the same memory
    void* Wh
    void* Wh_transposed
    void* W_vocab
    void* W_vocab_transposed
    Operands operands
    # the projection of the features is float32: they may be large and differ little
    Operands operands_float32


cdef void take_memory(Step* step, Workspace workspace, size_t size) noexcept:
    """Take the index arrays and buffers from a workspace."""
    cdef size_t index = sizeof(ptrdiff_t)
    cdef ptrdiff_t N = step.N, D = step.model.D, W = step.model.W, H = step.model.H, G = step.model.G, V = step.model.V
    cdef ptrdiff_t ldw = step.model.ldw, ldh = step.model.ldh, ldg = step.model.ldg
    cdef ptrdiff_t tokens = step.max_tokens, words = step.max_words
    cdef ptrdiff_t tiles, panels
    cdef bint bfloat16 = step.model.bfloat16
    step.batch_memory = workspace.take(batch_size(N, step.T), index)
    step.index_of_word = <ptrdiff_t*> workspace.take(V, index)
    step.feature_at = <ptrdiff_t*> workspace.take(N, index)
    step.distinct = <ptrdiff_t*> workspace.take(tokens, index)
    step.product_at = <ptrdiff_t*> workspace.take(tokens, index)
    step.dh_at = <ptrdiff_t*> workspace.take(tokens, index)
    step.h_prev_at = <ptrdiff_t*> workspace.take(tokens, index)
    step.word = <ptrdiff_t*> workspace.take(tokens, index)
    step.place = <ptrdiff_t*> workspace.take(tokens, index)
    step.scored_at = <ptrdiff_t*> workspace.take(tokens, index)
    step.target = <ptrdiff_t*> workspace.take(tokens, index)
    step.scored_place = <ptrdiff_t*> workspace.take(tokens, index)
    step.vector_at = <ptrdiff_t*> workspace.take(words, index)
    step.start = <ptrdiff_t*> workspace.take(V + 1, index)
    step.by_word = <ptrdiff_t*> workspace.take(tokens, index)

    step.losses = <double*> workspace.take(tokens, sizeof(double))
    step.h = workspace.take(area(N + tokens, ldh), size)
    step.c = workspace.take(area(N + tokens, ldh), size)
    step.dh = workspace.take(area(tokens + 1, ldh), size)
    step.h_dropped = workspace.take(area(tokens, ldh), size) if step.vocab_rate > 0 else NULL
    step.vectors = workspace.take(area(tokens, ldw), size) if step.embed_rate > 0 else NULL
    step.gates = workspace.take(area(tokens, ldg), size)
    step.products = workspace.take(area(words, ldg), size)
    step.dproducts = step.gates if step.embed_rate > 0 else step.products
    step.dvectors = workspace.take(area(words, ldw), size)
    step.dscores = workspace.take(area(tokens, step.model.ldv), size)
    step.dstate = workspace.take(area(N, ldh), size)
    step.dc = workspace.take(area(N, ldh), size)
    # of h, and in bfloat16 also of dscores
    step.block_tiles = workspace.take_slices(
        step.threads, tiles_size(BLOCK_ROWS, depth_of(max(H, V) if bfloat16 else H, bfloat16), size), size)
    step.loop_scratch.tiles.memory, step.loop_scratch.tiles.step = NULL, 0
    step.loop_scratch.rounded = workspace.take(rounded_size(N, G), size) if bfloat16 else NULL

    step.Wh = workspace.take(panels_size(depth_of(H, bfloat16), G, size), size)
    step.Wh_transposed = workspace.take(panels_size(depth_of(G, bfloat16), H, size), size)
    step.W_vocab = workspace.take(panels_size(depth_of(H, bfloat16), V, size), size)
    step.W_vocab_transposed = workspace.take(panels_size(depth_of(V, bfloat16), H, size), size)
    # of h0, of products, of dWh and dW_vocab, of dWx, of dvectors and of dW_proj
    tiles = max(tiles_size(N, D, size), tiles_size(words, depth_of(W, bfloat16), size),
                tiles_size(H, depth_of(tokens, bfloat16), size), tiles_size(W, depth_of(words, bfloat16), size),
                tiles_size(words, depth_of(G, bfloat16), size), tiles_size(D, N, size))
    panels = max(panels_size(D, H, size), panels_size(depth_of(W, bfloat16), G, size),
                 panels_size(depth_of(tokens, bfloat16), max(G, V), size),
                 panels_size(depth_of(words, bfloat16), G, size), panels_size(depth_of(G, bfloat16), W, size),
                 panels_size(N, H, size))
    step.operands = step.operands_float32 = Operands(
        workspace.take(tiles, size), workspace.take(panels, size), bfloat16)
    step.operands_float32.bfloat16 = False


cdef inline void charge(Step* step, int phase, double* since, int k) noexcept nogil:
    """Add the time since `since` to a phase, and set it to the present time, if k is 0: the first thread's."""
    cdef double now
    if k == 0:
        now = seconds()
        step.time[phase] += now - since[0]
        since[0] = now


cdef void prepare(Step* step) noexcept nogil:
    """Sort the batch and fill in the index arrays."""
    cdef Batch* batch = &step.batch
    cdef bint embed_dropout = step.embed_rate > 0
    cdef ptrdiff_t* index = step.index_of_word
    cdef ptrdiff_t t, r, n, i, v, token, scored = 0, words = 0
    if embed_dropout:
        words = batch.tokens
        for token in range(words):
            step.vector_at[token] = token * step.model.ldw
    else:
        memset(index, 0, step.model.V * sizeof(ptrdiff_t))
        for t in range(step.T):
            for r in range(batch.active[t]):
                index[step.inputs[batch.row[r] * step.input_stride + t]] = 1
        # in the order of the ids, so that sums do not depend on where the words occur
        for v in range(step.model.V):
            if index[v]:
                step.vector_at[words] = v * step.model.W
                index[v] = words
                words += 1
    step.words = words
    for t in range(step.T):
        for r in range(batch.active[t]):
            n = batch.row[r]
            token = batch.offset[t] + r
            v = step.inputs[n * step.input_stride + t]
            i = token if embed_dropout else index[v]
            step.word[token] = v
            step.place[token] = n * step.T + t
            step.distinct[token] = i
            step.product_at[token] = i * batch.ldg
            step.h_prev_at[token] = state_before(batch, t, r) * batch.ldh
            if step.masked[n * step.T + t]:
                step.dh_at[token] = -1
            else:
                step.dh_at[token] = scored * batch.ldh
                step.scored_at[scored] = (batch.N + token) * batch.ldh
                step.target[scored] = step.targets[n * (step.T + 1) + t]
                step.scored_place[scored] = n * step.T + t
                scored += 1
    step.scored = scored
    for token in range(batch.tokens):
        if step.dh_at[token] < 0:
            step.dh_at[token] = scored * batch.ldh
    for r in range(step.N):
        step.feature_at[r] = batch.row[r] * step.model.D
    if embed_dropout:
        sort_by_word(step.start, step.by_word, step.word, batch.tokens, step.model.V, step.model.ldw)
    else:
        sort_by_word(step.start, step.by_word, step.distinct, batch.tokens, words, batch.ldg)


cdef inline void drop(const Step* step, floating* y, const floating* x, ptrdiff_t n, uint64_t seed, ptrdiff_t place,
                      double rate) noexcept nogil:
    cdef ptrdiff_t row = place // step.T
    kernels.dropout(y, x, n, random_key(seed, row if step.rows == NULL else step.rows[row], place % step.T), rate)


cdef void drop_vectors(const Step* step, floating* y, ptrdiff_t ldy, const floating* x, const ptrdiff_t* x_row,
                       ptrdiff_t ldx, Worker* me) noexcept nogil:
    """Apply dropout to word vectors: row q of y from row x_row[q] of x, or from row q if x_row is NULL."""
    cdef ptrdiff_t blocks = (step.words + WORDS_TOGETHER - 1) // WORDS_TOGETHER, block, q
    block = next_block(me, blocks, -1)
    while block >= 0:
        for q in range(share(step.words, block, blocks, 1), share(step.words, block + 1, blocks, 1)):
            drop(step, y + q * ldy, x + (q if x_row == NULL else x_row[q]) * ldx, step.model.W, step.embed_seed,
                 step.place[q], step.embed_rate)
        block = next_block(me, blocks, block)


cdef void vocabulary_block(const Step* step, const floating* b_vocab, floating* tiles, ptrdiff_t first, ptrdiff_t last,
                           bint gradients) noexcept nogil:
    """Compute scores, losses and, if `gradients` is set, dscores and dh of scored tokens [first, last)."""
    cdef ptrdiff_t rows = last - first, i, ldh = step.model.ldh, ldv = step.model.ldv, H = step.model.H
    cdef ptrdiff_t V = step.model.V
    cdef const floating* h = <const floating*> step.h
    cdef floating* h_dropped = <floating*> step.h_dropped
    cdef floating* dscores = <floating*> step.dscores
    cdef floating* dh = <floating*> step.dh
    cdef double weight
    cdef bint bfloat16 = step.model.bfloat16
    cdef uint64_t mode = denormals_flush()
    if step.vocab_rate > 0:
        for i in range(first, last):
            drop(step, h_dropped + i * ldh, h + step.scored_at[i], H, step.vocab_seed, step.scored_place[i],
                 step.vocab_rate)
        pack_rows(tiles, matrix(h_dropped + first * ldh, ldh), rows, H, bfloat16)
    else:
        pack_rows(tiles, gathered(h, step.scored_at + first), rows, H, bfloat16)
    multiply_rows(dscores + first * ldv, ldv, <const floating*> tiles, <const floating*> step.W_vocab, b_vocab, rows, V,
                  depth_of(H, bfloat16), False, bfloat16)
    for i in range(first, last):
        weight = 1 if step.weights == NULL else step.weights[step.scored_place[i] // step.T]
        step.losses[i] = weight * kernels.softmax_loss(
            dscores + i * ldv, <const floating*> dscores + i * ldv, V, step.target[i],
            <floating> (weight / step.batch_rows), step.smoothing)
    if gradients:
        if bfloat16:
            pack_rows(tiles, matrix(dscores + first * ldv, ldv), rows, V, True)
            multiply_rows(dh + first * ldh, ldh, <const floating*> tiles, <const floating*> step.W_vocab_transposed,
                          <const floating*> NULL, rows, H, depth_of(V, True), False, True)
        else:
            multiply_strided(dh + first * ldh, ldh, <const floating*> dscores + first * ldv, ldv,
                             <const floating*> step.W_vocab_transposed, <const floating*> NULL, rows, H, V, False,
                             False)
        if step.vocab_rate > 0:
            for i in range(first, last):
                drop(step, dh + i * ldh, <const floating*> dh + i * ldh, H, step.vocab_seed, step.scored_place[i],
                     step.vocab_rate)
    denormals_restore(mode)


cdef void pack_vocabulary(const Step* step, const floating* W_vocab, bint gradients, Worker* me) noexcept nogil:
    cdef ptrdiff_t H = step.model.H, V = step.model.V
    cdef bint bfloat16 = step.model.bfloat16
    cdef floating* nowhere = NULL
    team_pack_panels(<floating*> step.W_vocab, 0, nowhere, matrix(W_vocab, V), H, V, bfloat16, me)
    if gradients:
        team_pack_panels(<floating*> step.W_vocab_transposed, 0, nowhere, transposed(W_vocab, V), V, H, bfloat16, me)


cdef void vocabulary(const Step* step, const floating* b_vocab, bint gradients, Worker* me) noexcept nogil:
    """Compute scores, losses and, if `gradients` is set, dscores and dh of all scored tokens."""
    cdef ptrdiff_t scored = step.scored, q
    # the same number of blocks for each thread
    cdef ptrdiff_t blocks = (scored + BLOCK_ROWS * me.threads - 1) // (BLOCK_ROWS * me.threads) * me.threads
    q = next_block(me, blocks, -1)
    while q >= 0:
        if share(scored, q + 1, blocks, 1) > share(scored, q, blocks, 1):
            vocabulary_block(step, b_vocab, <floating*> slice_of(step.block_tiles, me.k), share(scored, q, blocks, 1),
                             share(scored, q + 1, blocks, 1), gradients)
        q = next_block(me, blocks, q)


cdef void sum_rows(floating* sums, ptrdiff_t ld, const floating* rows, const ptrdiff_t* row_at, const ptrdiff_t* start,
                   ptrdiff_t count, ptrdiff_t columns, Worker* me) noexcept nogil:
    """Row q of sums becomes the sum of the rows at row_at[start[q]:start[q + 1]]."""
    cdef ptrdiff_t blocks = (count + WORDS_TOGETHER - 1) // WORDS_TOGETHER, block, q
    block = next_block(me, blocks, -1)
    while block >= 0:
        for q in range(share(count, block, blocks, 1), share(count, block + 1, blocks, 1)):
            kernels.rows_sum(sums + q * ld, rows, row_at + start[q], start[q + 1] - start[q], columns)
        block = next_block(me, blocks, block)


cdef void input_gradients(const Step* step, floating* dW_embed, floating* dWx, const floating* Wx,
                          const floating* embedding, Worker* me) noexcept nogil:
    """Compute dWx and dW_embed: add up the gates of each word, then one product for all distinct words."""
    cdef ptrdiff_t W = step.model.W, G = step.model.G, V = step.model.V, ldw = step.model.ldw, ldg = step.model.ldg
    cdef ptrdiff_t words = step.words, blocks = (words + WORDS_TOGETHER) // WORDS_TOGETHER, block, q
    cdef floating* dproducts = <floating*> step.dproducts
    cdef floating* dvectors = <floating*> step.dvectors
    cdef const floating* no_bias = NULL
    cdef floating* nowhere = NULL
    if step.embed_rate == 0:
        sum_rows(dproducts, ldg, <const floating*> step.gates, step.by_word, step.start, words, G, me)
    team_multiply(dWx, G, gathered_transposed(embedding, step.vector_at), matrix(dproducts, ldg), step.operands,
                  no_bias, nowhere, W, G, words, me)
    team_multiply(dvectors, ldw, matrix(dproducts, ldg), transposed(Wx, G), step.operands, no_bias, nowhere, words, W,
                  G, me)
    if step.embed_rate > 0:
        drop_vectors(step, dvectors, ldw, <const floating*> dvectors, NULL, ldw, me)
        sum_rows(dW_embed, W, <const floating*> dvectors, step.by_word, step.start, V, W, me)
    else:
        block = next_block(me, blocks, -1)
        while block >= 0:
            for q in range(share(words + 1, block, blocks, 1), share(words + 1, block + 1, blocks, 1)):
                embed_row(step, dW_embed, <const floating*> dvectors, q)
            block = next_block(me, blocks, block)


cdef void embed_row(const Step* step, floating* dW_embed, const floating* dvectors, ptrdiff_t q) noexcept nogil:
    """Copy the gradient of the q-th distinct word to its row of dW_embed, and clear the rows before it."""
    cdef ptrdiff_t W = step.model.W
    cdef ptrdiff_t first = step.vector_at[q - 1] + W if q > 0 else 0
    cdef ptrdiff_t last = step.vector_at[q] if q < step.words else step.model.V * W
    memset(dW_embed + first, 0, (last - first) * sizeof(floating))
    if q < step.words:
        memcpy(dW_embed + last, dvectors + q * step.model.ldw, W * sizeof(floating))


cdef double train_step(Step* step, Workspace workspace, floating** grads, double* log_probs, const floating* features,
                       const floating** params, object ready) except? -1:
    """Compute the loss and the gradients. params and grads are in the order of PARAM_NAMES.

    If log_probs (N, T) is not NULL, it receives the log-probabilities of the words, and gradients are not computed.
    `ready` is called as soon as the gradients of some parameters are complete, with their names, or it is None. The
    vocabulary's are then computed before the time loop backward, so that they can travel during it.
    """
    cdef bint early = ready is not None
    cdef ptrdiff_t N = step.N, W = step.model.W, H = step.model.H, G = step.model.G, V = step.model.V
    cdef ptrdiff_t ldh = step.model.ldh
    cdef ptrdiff_t n, i, most = 0
    cdef int pass_
    cdef double loss = 0
    for n in range(N):
        most += step.lengths[n]
    step.max_tokens = most
    step.max_words = most if step.embed_rate > 0 else min(V, most)
    step.threads = threads_for(6.0 * most * H * (G + V) + 6.0 * step.max_words * W * G)
    for pass_ in range(2):
        workspace.begin(pass_)
        take_memory(step, workspace, sizeof(floating))
    with nogil:
        step.since = seconds()
        batch_sort(&step.batch, step.batch_memory, step.lengths, N, step.T, H, step.model.cell, sizeof(floating),
                   step.model.bfloat16)
        charge(step, SORT, &step.since, 0)
        prepare(step)
        charge(step, WORDS, &step.since, 0)
        memset(step.c, 0, N * ldh * sizeof(floating))
        memset(step.dstate, 0, N * ldh * sizeof(floating))
        memset(step.dc, 0, N * ldh * sizeof(floating))
        memset(<floating*> step.dh + step.scored * ldh, 0, H * sizeof(floating))
        charge(step, CLEAR, &step.since, 0)
        run_stages(step, UP_TO_SCORES, UP_TO_SCORES if early else LAST_STAGE, early, grads, log_probs == NULL, features,
                   params)
        for i in range(step.scored):
            loss += step.losses[i]
        if log_probs != NULL:
            for i in range(step.scored):
                log_probs[step.scored_place[i]] = -step.losses[i]
            return loss
    if early:
        ready(PARAM_NAMES[6:])
        with nogil:
            run_stages(step, BACK_TO_STATES, BACK_TO_STATES, True, grads, True, features, params)
        ready(PARAM_NAMES[4:6])
        with nogil:
            run_stages(step, LAST_STAGE, LAST_STAGE, True, grads, True, features, params)
        ready(PARAM_NAMES[:4])
    return loss / step.batch_rows if N > 0 else 0.0


cdef void run_stages(Step* step, int first, int last, bint early, floating** grads, bint gradients,
                     const floating* features, const floating** params) noexcept nogil:
    """Run some stages of a step after prepare(), in a team of threads. With `early`, dW_vocab comes before BPTT."""
    cdef Team team
    cdef int k
    step.since = seconds()
    team_start(&team, step.threads, True)
    if step.threads == 1:
        team_step(step, &team, 0, first, last, early, grads, gradients, features, params)
    else:
        for k in prange(step.threads, num_threads=step.threads, schedule="static", chunksize=1):
            team_step(step, &team, k, first, last, early, grads, gradients, features, params)


cdef void team_step(Step* step, Team* team, int k, int first, int last, bint early, floating** grads, bint gradients,
                    const floating* features, const floating** params) noexcept nogil:
    """Be the k-th thread of the team."""
    cdef Worker me = worker_of(team, k)
    cdef double since = step.since
    if first == UP_TO_SCORES:
        up_to_scores(step, gradients, features, params, &since, &me)
        if early:
            vocabulary_gradients(step, grads[6], grads[7], &since, &me)
    if gradients and first <= BACK_TO_STATES <= last:
        back_to_states(step, grads, params, &since, &me)
    if gradients and last == LAST_STAGE:
        back_to_inputs(step, grads, features, params, &since, &me)
        if not early:
            vocabulary_gradients(step, grads[6], grads[7], &since, &me)
    leave(&me)


cdef void up_to_scores(Step* step, bint gradients, const floating* features, const floating** params, double* since,
                       Worker* me) noexcept nogil:
    """Run the model forward, and backward from the loss to dscores and dh if `gradients` is set."""
    cdef ptrdiff_t N = step.N, D = step.model.D, W = step.model.W, H = step.model.H, G = step.model.G
    cdef const floating* embedding = params[0] if step.vectors == NULL else <const floating*> step.vectors
    cdef const floating* no_bias = NULL
    cdef floating* nowhere = NULL
    cdef floating* h = <floating*> step.h
    if step.embed_rate > 0:
        drop_vectors(step, <floating*> step.vectors, step.model.ldw, params[0], step.word, W, me)
    charge(step, DROP, since, me.k)

    # initial states, and the input product of each distinct word
    team_multiply(h, step.model.ldh, gathered(features, step.feature_at), matrix(params[1], H), step.operands_float32,
                  params[2], nowhere, N, H, D, me)
    team_multiply(<floating*> step.products, step.model.ldg, gathered(embedding, step.vector_at), matrix(params[3], G),
                  step.operands, params[5], nowhere, step.words, G, W, me)
    charge(step, INPUTS, since, me.k)

    team_pack_panels(<floating*> step.Wh, 0, nowhere, matrix(params[4], G), H, G, step.batch.bfloat16, me)
    charge(step, PACK, since, me.k)
    team_steps_forward(&step.batch, <floating*> step.gates, h, <floating*> step.c, nowhere, NULL,
                       <const floating*> step.products, step.product_at, 0, no_bias, <const floating*> step.Wh,
                       step.loop_scratch, me)
    charge(step, FORWARD, since, me.k)

    pack_vocabulary(step, params[6], gradients, me)
    charge(step, PACK, since, me.k)
    vocabulary(step, params[7], gradients, me)
    charge(step, VOCABULARY, since, me.k)


cdef void back_to_states(Step* step, floating** grads, const floating** params, double* since,
                         Worker* me) noexcept nogil:
    """Run the time loop backward, and compute dWh and db."""
    cdef ptrdiff_t H = step.model.H, G = step.model.G, ldg = step.model.ldg
    cdef Batch* batch = &step.batch
    cdef const floating* no_bias = NULL
    cdef floating* nowhere = NULL
    cdef floating* gates = <floating*> step.gates
    cdef const floating* h = <const floating*> step.h
    team_pack_panels(<floating*> step.Wh_transposed, 0, nowhere, transposed(params[4], G), G, H, batch.bfloat16, me)
    charge(step, PACK, since, me.k)
    team_steps_backward(batch, gates, <floating*> step.dstate, <floating*> step.dc, nowhere, 0, 0, 0,
                        <const floating*> step.dh, step.dh_at, <const floating*> gates, h, <const floating*> step.c,
                        <const floating*> step.Wh_transposed, no_bias, step.loop_scratch, me)
    charge(step, BACKWARD, since, me.k)
    team_multiply(grads[4], G, gathered_transposed(h, step.h_prev_at), matrix(gates, ldg), step.operands, no_bias,
                  grads[5], H, G, batch.tokens, me)
    charge(step, RECURRENT_GRADIENTS, since, me.k)


cdef void back_to_inputs(Step* step, floating** grads, const floating* features, const floating** params,
                         double* since, Worker* me) noexcept nogil:
    """Compute the gradients of what comes before the time loop: the word vectors, Wx and the projection."""
    cdef const floating* embedding = params[0] if step.vectors == NULL else <const floating*> step.vectors
    cdef const floating* no_bias = NULL
    input_gradients(step, grads[0], grads[3], params[3], embedding, me)
    team_multiply(grads[1], step.model.H, gathered_transposed(features, step.feature_at),
                  matrix(<const floating*> step.dstate, step.model.ldh), step.operands_float32, no_bias, grads[2],
                  step.model.D, step.model.H, step.N, me)
    charge(step, INPUT_GRADIENTS, since, me.k)


cdef void vocabulary_gradients(Step* step, floating* dW_vocab, floating* db_vocab, double* since,
                               Worker* me) noexcept nogil:
    """Compute dW_vocab and db_vocab from dscores."""
    cdef ptrdiff_t H = step.model.H, V = step.model.V, ldh = step.model.ldh
    team_multiply(dW_vocab, V, transposed(<const floating*> step.h_dropped, ldh) if step.vocab_rate > 0
                  else gathered_transposed(<const floating*> step.h, step.scored_at),
                  matrix(<const floating*> step.dscores, step.model.ldv), step.operands, <const floating*> NULL,
                  db_vocab, H, V, step.scored, me)
    charge(step, VOCABULARY_GRADIENTS, since, me.k)


# ---- Over NumPy arrays -----------------------------------------------------------------------------------------------

def loss(params, features, captions, null, cell_type, Workspace workspace=None, grads=None, weights=None, inputs=None,
         double embed_dropout=0, uint64_t embed_seed=0, double vocab_dropout=0, uint64_t vocab_seed=0,
         double label_smoothing=0, precision="float32", rows=None, batch_rows=None, ready=None):
    """Return (loss, grads) of CaptioningRNN.loss.

    The step uses the memory of `workspace` and overwrites `grads`, the gradients of an earlier call for the same model;
    each is allocated if it is None or does not fit. `weights` (N,) weight the captions in the loss; a caption of weight
    0 is skipped. `inputs` (N, T) are the input words, captions[:, :-1] by default. If the captions are a part of a
    batch, `rows` (N,) are their rows in it and `batch_rows` is its number of captions; `ready` is called with the names
    of parameters whose gradients are complete.
    """
    return run_step(params, features, captions, null, cell_type, workspace, grads, weights, inputs, embed_dropout,
                    embed_seed, vocab_dropout, vocab_seed, label_smoothing, precision, None, rows, batch_rows, ready)


def word_log_probs(params, features, captions, null, cell_type, Workspace workspace=None, precision="float32"):
    """Return the log-probabilities of captions[:, 1:], float64 (N, T), with 0 for `null`."""
    captions = ids_of("captions", captions)
    found = np.zeros((captions.shape[0], captions.shape[1] - 1))
    run_step(params, features, captions, null, cell_type, workspace, None, None, None, 0, 0, 0, 0, 0, precision, found,
             None, None, None)
    return found


cdef bint can_hold(tuple grads, tuple arrays):
    """Return whether the gradients of features and parameters can be written to `grads`, in the order of PARAM_NAMES.

    They must be numpy.ndarray, writeable, C-contiguous, of the dtypes and shapes of the parameters, and share no memory
    with each other or with the inputs.
    """
    cdef int k, other
    cdef cnp.ndarray grad, array
    for k in range(PARAMS):
        if type(grads[k]) is not np.ndarray:
            return False
    for k in range(PARAMS):
        grad, array = grads[k], arrays[1 + k]
        if (cnp.PyArray_TYPE(grad) != cnp.PyArray_TYPE(array) or not cnp.PyArray_ISCARRAY(grad)
                or not cnp.PyArray_SAMESHAPE(grad, array)):
            return False
        for other in range(PARAMS + 1):
            if overlap(grad, arrays[other]) or (1 + k < other and overlap(grad, grads[other - 1])):
                return False
    return True


cdef tuple run_step(object params, object features, object captions, object null, object cell_type,
                    Workspace workspace, object grads, object weights, object inputs, double embed_dropout,
                    uint64_t embed_seed, double vocab_dropout, uint64_t vocab_seed, double label_smoothing,
                    object precision, cnp.ndarray log_probs, object rows, object batch_rows, object ready):
    """Check the arguments and run a training step, or compute log_probs alone if it is not None."""
    # convert the other arguments before the parameters, see arrays.pyx
    cdef cnp.ndarray captions_ = ids_of("captions", captions), wrapped, lengths, masked, wrapped_inputs
    cdef cnp.ndarray inputs_ = None if inputs is None else ids_of("inputs", inputs)
    cdef cnp.ndarray weights_ = None if weights is None else np.array(weights)
    cdef cnp.ndarray rows_ = None if rows is None else np.array(rows, np.intp)
    cdef ptrdiff_t null_id = null
    cdef Step step
    cdef tuple arrays = read_model(&step.model, params, features, cell_type, precision), written = ()
    cdef cnp.ndarray array, features_ = arrays[0]
    cdef void* to[PARAMS]
    cdef void* source[PARAMS]
    cdef double value
    cdef int k
    cdef ptrdiff_t n, t, last, id, V = step.model.V
    cdef double began = seconds()
    memset(step.time, 0, sizeof(step.time))
    step.N, step.T = dim(features_, 0), dim(captions_, 1) - 1
    step.weights, step.rows = NULL, NULL
    step.batch_rows = step.N if batch_rows is None else batch_rows
    if rows_ is not None:
        checks.match_shapes({"N": step.N}, rows=(rows_, "N"))
        step.rows = <ptrdiff_t*> data(rows_)
    step.embed_rate, step.vocab_rate, step.smoothing = embed_dropout, vocab_dropout, label_smoothing
    step.embed_seed, step.vocab_seed = embed_seed, vocab_seed
    if not has_shape(captions_, 2, step.N, step.T + 1):
        checks.match_shapes({"N": step.N}, captions=(captions_, "N L"))
    wrapped = new(cnp.NPY_INTP, 2, step.N, step.T + 1)
    if not wrap_ids(<ptrdiff_t*> data(wrapped), <cnp.npy_intp*> data(captions_), step.N * (step.T + 1), V):
        checks.check_ids("captions", captions_, V)
    step.targets = <ptrdiff_t*> data(wrapped) + 1
    step.inputs, step.input_stride = <ptrdiff_t*> data(wrapped), step.T + 1
    if weights_ is not None:
        weights_ = np.require(checks.as_caption_weights(weights_, step.N), requirements="CA")
        step.weights = <double*> data(weights_)
    if inputs_ is not None:
        if not has_shape(inputs_, 2, step.N, step.T):
            checks.match_shapes({"N": step.N, "T": step.T}, inputs=(inputs_, "N T"))
        wrapped_inputs = new(cnp.NPY_INTP, 2, step.N, step.T)
        if not wrap_ids(<ptrdiff_t*> data(wrapped_inputs), <cnp.npy_intp*> data(inputs_), step.N * step.T, V):
            checks.check_ids("inputs", inputs_, V)
        step.inputs, step.input_stride = <ptrdiff_t*> data(wrapped_inputs), step.T
    if step.N == 0:
        step.T = 0  # nothing to compute, however long the captions are
    lengths = new(cnp.NPY_INTP, 1, step.N)
    masked = new(cnp.NPY_BOOL, 2, step.N, step.T)
    cdef const cnp.npy_intp* ids = <cnp.npy_intp*> data(captions_)
    for n in range(step.N):
        last = 0
        for t in range(step.T):
            id = null_id if step.weights != NULL and step.weights[n] == 0 else ids[n * (step.T + 1) + t + 1]
            (<char*> data(masked))[n * step.T + t] = id == null_id
            if id != null_id:
                last = t + 1
        (<ptrdiff_t*> data(lengths))[n] = last
    step.lengths, step.masked = <ptrdiff_t*> data(lengths), <char*> data(masked)
    if workspace is None:
        workspace = Workspace()
    if log_probs is None:
        # keep references: another thread may remove the arrays from the dict meanwhile
        written = tuple([grads.get(name) for name in PARAM_NAMES]) if type(grads) is dict else (None,) * PARAMS
        if not can_hold(written, arrays):
            written = tuple([new_like(array) for array in arrays[1:]])
    for k in range(PARAMS):
        array = arrays[1 + k]
        source[k] = data(array)
        to[k] = NULL
        if log_probs is None:
            array = written[k]
            to[k] = data(array)
    cdef double* word_scores = NULL if log_probs is None else <double*> data(log_probs)
    charge(&step, CHECK, &began, 0)
    workspace.hold()
    try:
        if cnp.PyArray_TYPE(features_) == cnp.NPY_FLOAT32:
            value = train_step(&step, workspace, <float**> to, word_scores, <const float*> data(features_),
                               <const float**> source, ready)
        else:
            value = train_step(&step, workspace, <double**> to, word_scores, <const double*> data(features_),
                               <const double**> source, ready)
    finally:
        workspace.release()
    lock()
    for k in range(PHASES):
        total_time[k] += step.time[k]
    unlock()
    return np.float64(value), dict(zip(PARAM_NAMES, written)) if log_probs is None else None
