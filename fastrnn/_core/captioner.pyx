"""The captioner's training step, fused: the same numbers as the layers one after the other.

What a captioner need not compute, it does not: steps after a caption's last word, scores of masked positions, and the
input product of a word more than once a batch.
"""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, floats, has_shape, ids_of, new, new_like, overlap, wrap_ids
from .kernels cimport (
    Workspace, area, leading, lock, multiply, pack, pack_tiles, packed_size, room, seconds, share, threads_for,
    tile_height, tiles_size, unlock,
)
from .layers cimport sort_by_word
from .sequence cimport Batch, batch_size, batch_sort, before, steps_backward, steps_forward

from .. import checks

cnp.import_array()

NAMES = ("W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab", "b_vocab")

cdef enum:
    BLOCK_ROWS = 98  # rows whose scores are computed at a time: seven tiles, and the scores stay in the cache


# ---- Time in each phase ----------------------------------------------------------------------------------------------

cdef enum:
    PREPARE, INPUTS, FORWARD, VOCABULARY, BACKWARD, RECURRENT_GRADIENTS, INPUT_GRADIENTS, VOCABULARY_GRADIENTS, PHASES

cdef double[PHASES] spent  # read and changed under lock() alone
PHASE_NAMES = ("prepare", "input product", "time loop forward", "vocabulary and softmax", "time loop backward",
               "dWh", "dWx and dW_embed", "dW_vocab")


def profile(bint reset=True):
    """Return the seconds spent in each phase of the training step since the last reset, by name."""
    cdef double[PHASES] found
    lock()
    memcpy(found, spent, sizeof(spent))
    if reset:
        memset(spent, 0, sizeof(spent))
    unlock()
    return {name: found[phase] for phase, name in enumerate(PHASE_NAMES)}


# ---- Parameters ------------------------------------------------------------------------------------------------------

cdef tuple parameters(object params, object features, bint lstm):
    """The features and the eight parameters as C-contiguous arrays of one dtype, of shapes that fit."""
    cdef tuple arrays = floats(("features", *NAMES), (features, *[params[name] for name in NAMES]))
    checks.match_model(dict(zip(("features", *NAMES), arrays)), lstm)
    return arrays


# ---- Training step ---------------------------------------------------------------------------------------------------

cdef struct Task:
    ptrdiff_t N, T, V, D, W, H, G, scored, words, ldv, ldw
    # what regularises: rates of dropout on word vectors and on what the vocabulary reads, their seeds; smoothing
    double embed_rate, vocab_rate, smoothing
    double[PHASES] spent
    uint64_t embed_seed, vocab_seed
    const double* weight  # (N,) of the captions in the loss; NULL for ones
    Batch batch
    # (tokens,) each: the word that goes in, by its place among the distinct words; where its input product, the
    # gradient of its state and its previous state lie
    ptrdiff_t* word
    ptrdiff_t* product_at
    ptrdiff_t* dh_at
    ptrdiff_t* h_at
    # (scored,) each: where the state of a token that counts lies, the word that should come out, and the place n T + t
    ptrdiff_t* scored_at
    ptrdiff_t* target
    ptrdiff_t* place
    # (words,): the distinct words, and where their vectors lie. Under dropout each token has a vector of its own, and
    # counts as a word; then id (tokens,) has their words, and place_in (tokens,) their places n T + t.
    ptrdiff_t* vector_at
    ptrdiff_t* id
    ptrdiff_t* place_in
    ptrdiff_t* start      # (words + 1,) of the tokens by word
    ptrdiff_t* by_word    # (tokens,) where their gates lie, or under dropout the gradients of their vectors
    ptrdiff_t* feature_at  # (N,) where the features of each row of the batch lie


cdef inline double charge(Task* task, int phase, double since) noexcept nogil:
    cdef double now = seconds()
    task.spent[phase] = now - since
    return now


cdef void prepare(Task* task, ptrdiff_t* place, const ptrdiff_t* inputs, ptrdiff_t stride, const ptrdiff_t* targets,
                  const char* masked) noexcept nogil:
    """Fill in the index arrays. inputs and targets are rows of a stride, masked (N, T); place (V,) is scratch."""
    cdef Batch* batch = &task.batch
    cdef ptrdiff_t t, r, n, i, v, token, scored = 0, words = 0
    if task.embed_rate > 0:
        words = batch.tokens
        for token in range(words):
            task.vector_at[token] = token * task.ldw
    else:
        memset(place, 0, task.V * sizeof(ptrdiff_t))
        for t in range(task.T):
            for r in range(batch.active[t]):
                place[inputs[batch.row[r] * stride + t]] = 1
        # words in the order of their ids, so that nothing depends on where they stand
        for v in range(task.V):
            if place[v]:
                task.vector_at[words] = v * task.W
                place[v] = words
                words += 1
    task.words = words
    for t in range(task.T):
        for r in range(batch.active[t]):
            n = batch.row[r]
            token = batch.offset[t] + r
            v = inputs[n * stride + t]
            i = token if task.embed_rate > 0 else place[v]
            task.id[token] = v
            task.place_in[token] = n * task.T + t
            task.word[token] = i
            task.product_at[token] = i * batch.ldg
            task.h_at[token] = before(batch, t, r) * batch.ldh
            if masked[n * task.T + t]:
                task.dh_at[token] = -1
            else:
                task.dh_at[token] = scored * batch.ldh
                task.scored_at[scored] = (batch.N + token) * batch.ldh
                task.target[scored] = targets[n * (task.T + 1) + t]
                task.place[scored] = n * task.T + t
                scored += 1
    task.scored = scored
    for token in range(batch.tokens):
        if task.dh_at[token] < 0:
            task.dh_at[token] = scored * batch.ldh  # a row of zeros
    for r in range(task.N):
        task.feature_at[r] = batch.row[r] * task.D
    if task.embed_rate > 0:
        sort_by_word(task.start, task.by_word, task.id, batch.tokens, task.V, task.ldw)
    else:
        sort_by_word(task.start, task.by_word, task.word, batch.tokens, words, batch.ldg)


cdef inline void drop(floating* y, const floating* x, ptrdiff_t n, uint64_t seed, ptrdiff_t place, ptrdiff_t T,
                      double rate) noexcept nogil:
    kernels.dropout(y, x, n, kernels.random_key(seed, place // T, place % T), rate)


cdef ptrdiff_t vocabulary_tiles(const Task* task, size_t size) noexcept nogil:
    """Elements of scratchpad of one thread for vocabulary_block()."""
    return tiles_size(BLOCK_ROWS, max(task.H, task.V), size) + area(64, max(task.H, task.V))


cdef void vocabulary_block(const Task* task, floating* dscores, double* losses, floating* dh, floating* h_read,
                           const floating* h, const floating* W, const floating* W_transposed, const floating* b,
                           floating* tiles, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    """Scores, softmax, losses, their gradient, and dh, of scored tokens first to last.

    h_read (scored, ldh) receives the states as the vocabulary reads them, under dropout; dh is not computed where
    it is NULL.
    """
    cdef ptrdiff_t rows = last - first, i, ldh = task.batch.ldh
    cdef ptrdiff_t height = tile_height(rows, sizeof(floating))
    cdef ptrdiff_t count = (rows + height - 1) // height
    cdef double weight
    cdef uint64_t mode = kernels.denormals_flush()
    if task.vocab_rate > 0:
        for i in range(first, last):
            drop(h_read + i * ldh, h + task.scored_at[i], task.H, task.vocab_seed, task.place[i], task.T,
                 task.vocab_rate)
        kernels.gemm_pack_rows(tiles, height * task.H, <const floating*> h_read + first * ldh, NULL, ldh, NULL, 1, rows,
                               task.H, height, 0, count)
    else:
        kernels.gemm_pack_rows(tiles, height * task.H, h, task.scored_at + first, 0, NULL, 1, rows, task.H, height, 0,
                               count)
    kernels.gemm_tiles(dscores + first * task.ldv, task.ldv, tiles, height, W, b, rows, task.V, task.H, False)
    for i in range(first, last):
        weight = 1 if task.weight == NULL else task.weight[task.place[i] // task.T]
        losses[i] = weight * kernels.softmax_loss(dscores + i * task.ldv, dscores + i * task.ldv, task.V,
                                                  task.target[i], <floating> (weight / task.N), task.smoothing)
    if dh != NULL:
        kernels.gemm(dh + first * ldh, ldh, <const floating*> dscores + first * task.ldv, task.ldv, 1, W_transposed,
                     <const floating*> NULL, rows, task.H, task.V, False)
        if task.vocab_rate > 0:
            for i in range(first, last):
                drop(dh + i * ldh, <const floating*> dh + i * ldh, task.H, task.vocab_seed, task.place[i], task.T,
                     task.vocab_rate)
    kernels.denormals_restore(mode)


cdef double train_step(Task* task, Workspace workspace, floating** grads, double* log_probs, const floating* features,
                       const floating** params, const ptrdiff_t* inputs, ptrdiff_t stride, const ptrdiff_t* targets,
                       const char* masked, const ptrdiff_t* lengths, bint lstm) except? -1:
    """Loss and gradients; params and grads in the order of NAMES. Word n of row i of `inputs` is at i * stride + n.

    With log_probs (N, T), of zeros, the log-probabilities of the words go there, and there are no gradients.
    """
    cdef int lap
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t N = task.N, T = task.T, V = task.V, D = task.D, W = task.W, H = task.H, G = task.G
    cdef Batch* batch = &task.batch
    cdef ptrdiff_t n, most = 0, words, blocks, q, i
    for n in range(N):
        most += lengths[n]
    words = most if task.embed_rate > 0 else min(V, most)
    cdef double work = 6.0 * most * H * (G + V) + 6.0 * words * W * G
    cdef int threads = threads_for(work)
    cdef int across = <int> max(<ptrdiff_t> 1, min(<ptrdiff_t> threads, N))
    cdef ptrdiff_t ldh = leading(H, size), ldg = leading(G, size)
    cdef size_t block_bytes
    task.ldv = leading(V, size)
    task.ldw = leading(W, size)
    block_bytes = room(vocabulary_tiles(task, size), size)

    cdef void* batch_memory
    cdef ptrdiff_t* place
    cdef double* losses
    cdef floating* h
    cdef floating* c
    cdef floating* dh
    cdef floating* h_read = NULL
    cdef floating* vectors = NULL
    cdef floating* gates
    cdef floating* products
    cdef floating* dproducts
    cdef floating* dscores
    cdef floating* dstate
    cdef floating* dc
    cdef floating* dvectors
    cdef floating* feature_tiles
    cdef floating* W_proj_packed
    cdef floating* word_tiles
    cdef floating* Wx_packed
    cdef floating* Wh_packed
    cdef floating* Wh_transposed
    cdef floating* W_vocab_packed
    cdef floating* W_vocab_transposed
    cdef char* block_scratch
    cdef floating* left
    cdef floating* right
    cdef floating* features_left
    cdef floating* dstate_right
    cdef floating* words_left
    cdef floating* dproducts_right
    cdef floating* dproducts_tiles
    cdef floating* Wx_transposed
    for lap in range(2):
        workspace.begin(lap)
        batch_memory = workspace.take(batch_size(N, T), sizeof(ptrdiff_t))
        task.word = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.product_at = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.dh_at = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.h_at = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.scored_at = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.target = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.by_word = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.place = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.id = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.place_in = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.vector_at = <ptrdiff_t*> workspace.take(most, sizeof(ptrdiff_t))
        task.start = <ptrdiff_t*> workspace.take(V + 1, sizeof(ptrdiff_t))
        place = <ptrdiff_t*> workspace.take(V + 1, sizeof(ptrdiff_t))
        task.feature_at = <ptrdiff_t*> workspace.take(N, sizeof(ptrdiff_t))
        losses = <double*> workspace.take(most, sizeof(double))
        h = <floating*> workspace.take(area(N + most, ldh), size)
        c = <floating*> workspace.take(area(N + most, ldh), size)
        dh = <floating*> workspace.take(area(most + 1, ldh), size)
        if task.vocab_rate > 0:
            h_read = <floating*> workspace.take(area(most, ldh), size)
        if task.embed_rate > 0:
            vectors = <floating*> workspace.take(area(most, task.ldw), size)
        gates = <floating*> workspace.take(area(most, ldg), size)
        products = <floating*> workspace.take(area(words, ldg), size)
        dproducts = <floating*> workspace.take(area(words, ldg), size)
        dscores = <floating*> workspace.take(area(most, task.ldv), size)
        dstate = <floating*> workspace.take(area(N, ldh), size)
        dc = <floating*> workspace.take(area(N, ldh), size)
        dvectors = <floating*> workspace.take(area(words, task.ldw), size)
        feature_tiles = <floating*> workspace.take(tiles_size(N, D, size), size)
        W_proj_packed = <floating*> workspace.take(packed_size(D, H, size), size)
        word_tiles = <floating*> workspace.take(tiles_size(words, W, size), size)
        Wx_packed = <floating*> workspace.take(packed_size(W, G, size), size)
        Wh_packed = <floating*> workspace.take(packed_size(H, G, size), size)
        Wh_transposed = <floating*> workspace.take(packed_size(G, H, size), size)
        W_vocab_packed = <floating*> workspace.take(packed_size(H, V, size), size)
        W_vocab_transposed = <floating*> workspace.take(packed_size(V, H, size), size)
        block_scratch = <char*> workspace.take_each(threads, vocabulary_tiles(task, size), size)
        left = <floating*> workspace.take(tiles_size(H, most, size), size)
        right = <floating*> workspace.take(packed_size(most, max(G, V), size), size)
        features_left = <floating*> workspace.take(tiles_size(D, N, size), size)
        dstate_right = <floating*> workspace.take(packed_size(N, H, size), size)
        words_left = <floating*> workspace.take(tiles_size(W, words, size), size)
        dproducts_right = <floating*> workspace.take(packed_size(words, G, size), size)
        dproducts_tiles = <floating*> workspace.take(tiles_size(words, G, size), size)
        Wx_transposed = <floating*> workspace.take(packed_size(G, W, size), size)
    cdef const floating* nothing = NULL
    cdef floating* nowhere = NULL
    cdef const floating* embedding = params[0] if vectors == NULL else <const floating*> vectors
    cdef double loss = 0, since
    with nogil:
        since = seconds()
        batch_sort(batch, batch_memory, lengths, N, T, H, lstm, size)
        prepare(task, place, inputs, stride, targets, masked)
        words = task.words
        if task.embed_rate > 0:
            for q in prange(words, num_threads=threads, schedule="static"):
                drop(vectors + q * task.ldw, params[0] + task.id[q] * W, W, task.embed_seed, task.place_in[q], T,
                     task.embed_rate)
        since = charge(task, PREPARE, since)

        # h0, and the input product of each distinct word
        pack(W_proj_packed, 0, nowhere, params[1], NULL, H, 1, D, H, threads)
        pack_tiles(feature_tiles, features, task.feature_at, 0, NULL, 1, N, D, threads)
        multiply(h, ldh, feature_tiles, W_proj_packed, params[2], N, H, D, False, threads)
        memset(c, 0, N * ldh * size)
        pack(Wx_packed, 0, nowhere, params[3], NULL, G, 1, W, G, threads)
        pack_tiles(word_tiles, embedding, task.vector_at, 0, NULL, 1, words, W, threads)
        multiply(products, ldg, word_tiles, Wx_packed, params[5], words, G, W, False, threads)
        since = charge(task, INPUTS, since)

        pack(Wh_packed, 0, nowhere, params[4], NULL, G, 1, H, G, threads)
        steps_forward(batch, gates, h, c, nowhere, NULL, <const floating*> products, task.product_at, 0, nothing,
                      <const floating*> Wh_packed, nowhere, across)
        since = charge(task, FORWARD, since)

        pack(W_vocab_packed, 0, nowhere, params[6], NULL, V, 1, H, V, threads)
        if log_probs == NULL:
            pack(W_vocab_transposed, 0, nowhere, params[6], NULL, 1, V, V, H, threads)
        # as many blocks as give each thread the same number of them
        blocks = (task.scored + BLOCK_ROWS * threads - 1) // (BLOCK_ROWS * threads) * threads
        for q in prange(blocks, num_threads=threads, schedule="static", chunksize=1):
            if share(task.scored, q + 1, blocks, 1) > share(task.scored, q, blocks, 1):
                vocabulary_block(task, dscores, losses, dh if log_probs == NULL else nowhere, h_read,
                                 <const floating*> h, <const floating*> W_vocab_packed,
                                 <const floating*> W_vocab_transposed, params[7],
                                 <floating*> (block_scratch + threadid() * block_bytes),
                                 share(task.scored, q, blocks, 1), share(task.scored, q + 1, blocks, 1))
        for i in range(task.scored):
            loss += losses[i]
        since = charge(task, VOCABULARY, since)
        if log_probs != NULL:
            for i in range(task.scored):
                log_probs[task.place[i]] = -losses[i]
            return loss
        memset(dh + task.scored * ldh, 0, H * size)

        pack(Wh_transposed, 0, nowhere, params[4], NULL, 1, G, G, H, threads)
        memset(dstate, 0, N * ldh * size)
        memset(dc, 0, N * ldh * size)
        # in place: the gradient of the gates takes the place of the gates
        steps_backward(batch, gates, dstate, dc, nowhere, 0, 0, 0, <const floating*> dh, task.dh_at,
                       <const floating*> gates, <const floating*> h, <const floating*> c,
                       <const floating*> Wh_transposed, nothing, nowhere, across)
        since = charge(task, BACKWARD, since)

        pack(right, 0, grads[5], <const floating*> gates, NULL, ldg, 1, batch.tokens, G, threads)
        pack_tiles(left, <const floating*> h, NULL, 1, task.h_at, 0, H, batch.tokens, threads)
        multiply(grads[4], G, left, right, nothing, H, G, batch.tokens, False, threads)
        since = charge(task, RECURRENT_GRADIENTS, since)

        # through the input product: first the tokens of each word are added up, then one product for all words
        if task.embed_rate > 0:
            dproducts = gates
        else:
            for q in prange(words, num_threads=threads, schedule="dynamic", chunksize=8):
                kernels.rows_sum(dproducts + q * ldg, <const floating*> gates, task.by_word + task.start[q],
                                 task.start[q + 1] - task.start[q], G)
        pack(dproducts_right, 0, nowhere, <const floating*> dproducts, NULL, ldg, 1, words, G, threads)
        pack_tiles(words_left, embedding, NULL, 1, task.vector_at, 0, W, words, threads)
        multiply(grads[3], G, words_left, dproducts_right, nothing, W, G, words, False, threads)
        pack(Wx_transposed, 0, nowhere, params[3], NULL, 1, G, G, W, threads)
        pack_tiles(dproducts_tiles, <const floating*> dproducts, NULL, ldg, NULL, 1, words, G, threads)
        multiply(dvectors, task.ldw, dproducts_tiles, Wx_transposed, nothing, words, W, G, False, threads)
        if task.embed_rate > 0:
            for q in prange(words, num_threads=threads, schedule="static"):
                drop(dvectors + q * task.ldw, <const floating*> dvectors + q * task.ldw, W, task.embed_seed,
                     task.place_in[q], T, task.embed_rate)
            for q in prange(V, num_threads=threads, schedule="dynamic", chunksize=16):
                kernels.rows_sum(grads[0] + q * W, <const floating*> dvectors, task.by_word + task.start[q],
                                 task.start[q + 1] - task.start[q], W)
        else:
            memset(grads[0], 0, V * W * size)
            for q in range(words):
                memcpy(grads[0] + task.vector_at[q], dvectors + q * task.ldw, W * size)
        pack(dstate_right, 0, grads[2], <const floating*> dstate, NULL, ldh, 1, N, H, threads)
        pack_tiles(features_left, features, NULL, 1, task.feature_at, 0, D, N, threads)
        multiply(grads[1], H, features_left, dstate_right, nothing, D, H, N, False, threads)
        since = charge(task, INPUT_GRADIENTS, since)

        pack(right, 0, grads[7], <const floating*> dscores, NULL, task.ldv, 1, task.scored, V, threads)
        if task.vocab_rate > 0:
            pack_tiles(left, <const floating*> h_read, NULL, 1, NULL, ldh, H, task.scored, threads)
        else:
            pack_tiles(left, <const floating*> h, NULL, 1, task.scored_at, 0, H, task.scored, threads)
        multiply(grads[6], V, left, right, nothing, H, V, task.scored, False, threads)
        charge(task, VOCABULARY_GRADIENTS, since)
    return loss / N if N > 0 else 0.0


def loss(params, features, captions, null, bint lstm, Workspace workspace=None, grads=None, weights=None, inputs=None,
         double embed_dropout=0, uint64_t embed_seed=0, double vocab_dropout=0, uint64_t vocab_seed=0,
         double label_smoothing=0):
    """Return (loss, grads) of CaptioningRNN.loss.

    `workspace` holds what the step needs meanwhile, `grads` the arrays of an earlier call of the same model, to be
    written over; each is new where it is None or does not fit. `weights` (N,) are the captions' in the loss; one of
    weight 0 takes no part. `inputs` (N, T), ids of words, go in in place of captions[:, :-1].
    """
    return step(params, features, captions, null, lstm, workspace, grads, weights, inputs, embed_dropout, embed_seed,
                vocab_dropout, vocab_seed, label_smoothing, None)


def word_log_probs(params, features, captions, null, bint lstm, Workspace workspace=None):
    """Return the log-probabilities float64 (N, T) of captions[:, 1:], 0 where they are `null`."""
    captions = ids_of("captions", captions)
    found = np.zeros((captions.shape[0], captions.shape[1] - 1))
    step(params, features, captions, null, lstm, workspace, None, None, None, 0, 0, 0, 0, 0, found)
    return found


cdef bint can_hold(tuple grads, tuple arrays):
    """Whether the gradients of the parameters can be written over `grads`, in the order of NAMES.

    They are arrays of NumPy's own class with the dtypes and shapes of the parameters, lie as the core writes, and share
    memory neither with one another nor with what is read.
    """
    cdef int k, other
    cdef cnp.ndarray grad, array
    for k in range(8):
        if type(grads[k]) is not np.ndarray:
            return False
    for k in range(8):
        grad, array = grads[k], arrays[1 + k]
        if (cnp.PyArray_TYPE(grad) != cnp.PyArray_TYPE(array) or not cnp.PyArray_ISCARRAY(grad)
                or not cnp.PyArray_SAMESHAPE(grad, array)):
            return False
        for other in range(9):
            if overlap(grad, arrays[other]) or (1 + k < other and overlap(grad, grads[other - 1])):
                return False
    return True


cdef tuple step(object params, object features, object captions, object null, bint lstm, Workspace workspace,
                object grads, object weights, object inputs, double embed_dropout, uint64_t embed_seed,
                double vocab_dropout, uint64_t vocab_seed, double label_smoothing, cnp.ndarray log_probs):
    cdef cnp.ndarray captions_ = ids_of("captions", captions), wrapped, lengths, masked, weights_, inputs_, fed_
    cdef ptrdiff_t* fed
    cdef ptrdiff_t stride
    cdef tuple arrays = parameters(params, features, lstm), written = ()
    cdef cnp.ndarray array, first = arrays[0], We = arrays[1], Wp = arrays[2]
    cdef int kind = cnp.PyArray_TYPE(first), k
    cdef Task task
    cdef void* to[8]
    cdef void* source[8]
    cdef double value
    cdef ptrdiff_t n, t, last, id, null_id = null
    memset(task.spent, 0, sizeof(task.spent))
    task.weight = NULL
    task.N, task.D, task.H, task.V, task.W = dim(first, 0), dim(Wp, 0), dim(Wp, 1), dim(We, 0), dim(We, 1)
    task.T = dim(captions_, 1) - 1
    task.G = 4 * task.H if lstm else task.H
    task.embed_rate, task.vocab_rate, task.smoothing = embed_dropout, vocab_dropout, label_smoothing
    task.embed_seed, task.vocab_seed = embed_seed, vocab_seed
    if not has_shape(captions_, 2, task.N, task.T + 1):
        checks.match_shapes({"N": task.N}, captions=(captions_, "N L"))
    wrapped = new(cnp.NPY_INTP, 2, task.N, task.T + 1)
    if not wrap_ids(<ptrdiff_t*> data(wrapped), <cnp.npy_intp*> data(captions_), task.N * (task.T + 1), task.V):
        checks.check_ids("captions", captions_, task.V)
    fed, stride = <ptrdiff_t*> data(wrapped), task.T + 1
    if weights is not None:
        weights_ = np.require(checks.as_caption_weights(weights, task.N), requirements="CA")
        task.weight = <double*> data(weights_)
    if inputs is not None:
        inputs_ = ids_of("inputs", inputs)
        fed_ = new(cnp.NPY_INTP, 2, task.N, task.T)
        if (not has_shape(inputs_, 2, task.N, task.T)
                or not wrap_ids(<ptrdiff_t*> data(fed_), <cnp.npy_intp*> data(inputs_), task.N * task.T, task.V)):
            raise ValueError("inputs are not (N, T) ids of words")
        fed, stride = <ptrdiff_t*> data(fed_), task.T
    if task.N == 0:
        task.T = 0  # nothing to go through, however long captions are
    lengths = new(cnp.NPY_INTP, 1, task.N)
    masked = new(cnp.NPY_BOOL, 2, task.N, task.T)
    cdef const cnp.npy_intp* ids = <cnp.npy_intp*> data(captions_)
    for n in range(task.N):
        last = 0
        for t in range(task.T):
            id = null_id if task.weight != NULL and task.weight[n] == 0 else ids[n * (task.T + 1) + t + 1]
            (<char*> data(masked))[n * task.T + t] = id == null_id
            if id != null_id:
                last = t + 1
        (<ptrdiff_t*> data(lengths))[n] = last
    if workspace is None:
        workspace = Workspace()
    if log_probs is None:
        # held here: another thread may take them out of the dict meanwhile
        written = tuple([grads.get(name) for name in NAMES]) if type(grads) is dict else (None,) * 8
        if not can_hold(written, arrays):
            written = tuple([new_like(array) for array in arrays[1:]])
    for k in range(8):
        array = arrays[1 + k]
        source[k] = data(array)
        to[k] = NULL
        if log_probs is None:
            array = written[k]
            to[k] = data(array)
    cdef double* words = NULL if log_probs is None else <double*> data(log_probs)
    cdef const ptrdiff_t* targets = <ptrdiff_t*> data(wrapped) + 1
    workspace.hold()
    try:
        if kind == cnp.NPY_FLOAT32:
            value = train_step(&task, workspace, <float**> to, words, <float*> data(first), <const float**> source,
                               fed, stride, targets, <char*> data(masked), <ptrdiff_t*> data(lengths), lstm)
        else:
            value = train_step(&task, workspace, <double**> to, words, <double*> data(first), <const double**> source,
                               fed, stride, targets, <char*> data(masked), <ptrdiff_t*> data(lengths), lstm)
    finally:
        workspace.release()
    lock()
    for k in range(PHASES):
        spent[k] += task.spent[k]
    unlock()
    return np.float64(value), dict(zip(NAMES, written)) if log_probs is None else None
