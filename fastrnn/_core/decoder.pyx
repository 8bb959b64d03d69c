"""Decoding: greedy captions, beam search, drawn captions, and captions into which drawn words are mixed.

Threads take blocks of pictures; a row is one hypothesis, and what happens to a row does not depend on the other rows.
"""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, exp, isfinite, log1p
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, ids_of, new, wrap_ids
from .captioner cimport parameters
from .kernels cimport (
    TOO_LARGE, Workspace, area, leading, multiply, pack, pack_tiles, packed_size, poison, random_key, room, share,
    threads_for, tile_height, tiles_size, uniform, unpoison,
)
from .layers cimport columns_product

from .. import checks

cnp.import_array()

cdef enum:
    FEW = 4          # rows up to which decoding reads the weights as they lie
    BLOCK_ROWS = 98  # rows whose scores are computed at a time: seven tiles, and the scores stay in the cache


# ---- The model -------------------------------------------------------------------------------------------------------

cdef struct Decoder:
    ptrdiff_t N, D, V, W, H, G, T, ldh, ldg, ldv
    bint lstm
    ptrdiff_t start, end    # end: -1 to run on
    const void* W_proj
    const void* b_proj
    const void* W_embed
    const void* b
    const void* b_vocab
    # as they lie, or as pack_model() packs them
    const void* Wx
    const void* Wh
    const void* W_vocab
    void* h0                # (N, ldh) the first states
    void* products          # (V, ldg) the input product of every word, or of those that have come up


cdef cnp.ndarray describe(Decoder* d, tuple arrays, bint lstm):
    """Fill in the dimensions and where the parameters lie; returns the features."""
    cdef cnp.ndarray features, W_embed, W_proj, b_proj, Wx, Wh, b, W_vocab, b_vocab
    features, W_embed, W_proj, b_proj, Wx, Wh, b, W_vocab, b_vocab = arrays
    cdef size_t size = cnp.PyArray_ITEMSIZE(features)
    d.N, d.D, d.H, d.V, d.W = dim(features, 0), dim(W_proj, 0), dim(W_proj, 1), dim(W_embed, 0), dim(W_embed, 1)
    d.G = 4 * d.H if lstm else d.H
    d.ldh, d.ldg, d.ldv = leading(d.H, size), leading(d.G, size), leading(d.V, size)
    d.lstm = lstm
    d.W_embed, d.W_proj, d.b_proj, d.Wx, d.Wh = data(W_embed), data(W_proj), data(b_proj), data(Wx), data(Wh)
    d.b, d.W_vocab, d.b_vocab = data(b), data(W_vocab), data(b_vocab)
    return features


cdef struct Packed:
    # the parts of a scratchpad that pack_model() fills in
    void* h0
    void* products
    void* W_proj
    void* Wx
    void* Wh
    void* W_vocab
    void* tiles


cdef Packed take_packed(const Decoder* d, Workspace scratch, bint every_word, size_t size) noexcept:
    cdef Packed parts
    parts.h0 = scratch.take(area(d.N, d.ldh), size)
    parts.products = scratch.take(area(d.V, d.ldg), size) if every_word else NULL
    parts.W_proj = scratch.take(packed_size(d.D, d.H, size), size)
    parts.Wx = scratch.take(packed_size(d.W, d.G, size), size)
    parts.Wh = scratch.take(packed_size(d.H, d.G, size), size)
    parts.W_vocab = scratch.take(packed_size(d.H, d.V, size), size)
    parts.tiles = scratch.take(max(tiles_size(d.N, d.D, size), tiles_size(d.V, d.W, size)), size)
    return parts


cdef void pack_model(Decoder* d, const Packed* parts, const floating* features, int threads) noexcept:
    """Pack the weights and compute the first states, and where there is room also the input product of every word."""
    cdef ptrdiff_t V = d.V, W = d.W, H = d.H, G = d.G
    cdef floating* h0 = <floating*> parts.h0
    cdef floating* products = <floating*> parts.products
    cdef floating* W_proj = <floating*> parts.W_proj
    cdef floating* Wx = <floating*> parts.Wx
    cdef floating* Wh = <floating*> parts.Wh
    cdef floating* W_vocab = <floating*> parts.W_vocab
    cdef floating* tiles = <floating*> parts.tiles
    cdef floating* nowhere = NULL
    with nogil:
        pack(W_proj, 0, nowhere, <const floating*> d.W_proj, NULL, H, 1, d.D, H, threads)
        pack_tiles(tiles, features, NULL, d.D, NULL, 1, d.N, d.D, threads)
        multiply(h0, d.ldh, tiles, W_proj, <const floating*> d.b_proj, d.N, H, d.D, False, threads)
        pack(Wx, 0, nowhere, <const floating*> d.Wx, NULL, G, 1, W, G, threads)
        if products != NULL:
            pack_tiles(tiles, <const floating*> d.W_embed, NULL, W, NULL, 1, V, W, threads)
            multiply(products, d.ldg, tiles, Wx, <const floating*> d.b, V, G, W, False, threads)
        pack(Wh, 0, nowhere, <const floating*> d.Wh, NULL, G, 1, H, G, threads)
        pack(W_vocab, 0, nowhere, <const floating*> d.W_vocab, NULL, V, 1, H, V, threads)
    d.h0, d.products, d.Wx, d.Wh, d.W_vocab = h0, products, Wx, Wh, W_vocab


cdef inline void* part(char* memory, size_t* used, ptrdiff_t count, size_t size) noexcept nogil:
    """The next part of a block of memory; where that is NULL, only its size is counted."""
    cdef size_t at = used[0]
    used[0] = min(used[0] + room(count, size), <size_t> TOO_LARGE)
    if memory == NULL:
        return NULL
    unpoison(memory + at, count * size)
    poison(memory + at + count * size, used[0] - at - count * size)
    return memory + at


# ---- Greedy decoding -------------------------------------------------------------------------------------------------

cdef size_t decode_room(const Decoder* d, ptrdiff_t rows, size_t size) noexcept nogil:
    """Bytes of scratchpad for decode_block()."""
    return (room(area(rows, d.ldg), size) + 2 * room(area(rows, d.ldh), size) + room(area(rows, d.ldv), size)
            + room(tiles_size(rows, d.H, size) + 16 * d.H, size) + 2 * room(rows, sizeof(ptrdiff_t)))


cdef void decode_block(const Decoder* d, int32_t* captions, const floating* h0, char* memory,
                       ptrdiff_t rows) noexcept nogil:
    """Decode `rows` pictures from h0 (rows, ldh) into captions (rows, T); rows that end are dropped."""
    cdef size_t size = sizeof(floating), used = 0
    cdef floating* gates = <floating*> part(memory, &used, rows * d.ldg, size)
    cdef floating* h = <floating*> part(memory, &used, rows * d.ldh, size)
    cdef floating* c = <floating*> part(memory, &used, rows * d.ldh, size)
    cdef floating* scores = <floating*> part(memory, &used, rows * d.ldv, size)
    cdef floating* tiles = <floating*> part(memory, &used, tiles_size(rows, d.H, size) + 16 * d.H, size)
    cdef ptrdiff_t* row = <ptrdiff_t*> part(memory, &used, rows, sizeof(ptrdiff_t))
    cdef ptrdiff_t* word = <ptrdiff_t*> part(memory, &used, rows, sizeof(ptrdiff_t))
    cdef const floating* products = <const floating*> d.products
    cdef ptrdiff_t t, i, kept, height, count, active = rows
    cdef bint packed = False
    cdef uint64_t mode = kernels.denormals_flush()
    memcpy(h, h0, rows * d.ldh * size)
    memset(c, 0, rows * d.ldh * size)
    for i in range(rows):
        row[i] = i
        word[i] = d.start
    for t in range(d.T):
        if active == 0:
            break
        height = tile_height(active, size)
        count = (active + height - 1) // height
        if not packed:
            kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, NULL, d.ldh, NULL, 1, active, d.H, height,
                                   0, count)
        kernels.gemm_tiles(gates, d.ldg, <const floating*> tiles, height, <const floating*> d.Wh,
                           <const floating*> NULL, active, d.G, d.H, False)
        for i in range(active):
            if d.lstm:
                kernels.lstm_gates_forward(gates + i * d.ldg, c + i * d.ldh, h + i * d.ldh, <floating*> NULL,
                                           products + word[i] * d.ldg, <const floating*> c + i * d.ldh, d.H)
            else:
                kernels.rnn_gates_forward(h + i * d.ldh, <floating*> NULL, <const floating*> gates + i * d.ldg,
                                          products + word[i] * d.ldg, d.H)
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, NULL, d.ldh, NULL, 1, active, d.H, height, 0,
                               count)
        kernels.gemm_tiles(scores, d.ldv, <const floating*> tiles, height, <const floating*> d.W_vocab,
                           <const floating*> d.b_vocab, active, d.V, d.H, False)
        packed = True
        kept = 0
        for i in range(active):
            word[i] = kernels.argmax(<const floating*> scores + i * d.ldv, d.V)
            captions[row[i] * d.T + t] = <int32_t> word[i]
            if word[i] != d.end:
                if kept < i:
                    row[kept], word[kept] = row[i], word[i]
                    memcpy(h + kept * d.ldh, h + i * d.ldh, d.H * size)
                    memcpy(c + kept * d.ldh, c + i * d.ldh, d.H * size)
                    packed = False
                kept += 1
        if kept < active:
            packed = False
        active = kept
    kernels.denormals_restore(mode)


cdef void decode_few(const Decoder* d, int32_t* captions, floating* h, floating* c, floating* gates, floating* scores,
                     floating* x, floating* products, ptrdiff_t* word, ptrdiff_t* place, int threads) noexcept nogil:
    """Decode a few pictures: every step reads the weights once, and threads share out their columns.

    The input product of a word is kept from the first time that it comes up, at place[word] of products.
    """
    cdef ptrdiff_t t, i, fresh, known = 0, rows = d.N, running = rows
    cdef const floating* product
    cdef uint64_t mode = kernels.denormals_flush()
    for i in range(rows):
        word[i] = d.start
    for i in range(d.V):
        place[i] = -1
    for t in range(d.T):
        if running == 0:
            break
        fresh = 0
        for i in range(rows):
            if word[i] >= 0 and place[word[i]] < 0:
                place[word[i]] = known + fresh
                memcpy(x + fresh * d.W, <const floating*> d.W_embed + word[i] * d.W, d.W * sizeof(floating))
                fresh += 1
        if fresh > 0:
            columns_product(products + known * d.ldg, d.ldg, <const floating*> x, d.W, <const floating*> d.Wx, d.G,
                            <const floating*> d.b, fresh, d.G, d.W, threads)
            known += fresh
        columns_product(gates, d.ldg, <const floating*> h, d.ldh, <const floating*> d.Wh, d.G,
                        <const floating*> NULL, rows, d.G, d.H, threads)
        for i in range(rows):
            if word[i] < 0:
                continue
            product = products + place[word[i]] * d.ldg
            if d.lstm:
                kernels.lstm_gates_forward(gates + i * d.ldg, c + i * d.ldh, h + i * d.ldh, <floating*> NULL, product,
                                           <const floating*> c + i * d.ldh, d.H)
            else:
                kernels.rnn_gates_forward(h + i * d.ldh, <floating*> NULL, <const floating*> gates + i * d.ldg, product,
                                          d.H)
        columns_product(scores, d.ldv, <const floating*> h, d.ldh, <const floating*> d.W_vocab, d.V,
                        <const floating*> d.b_vocab, rows, d.V, d.H, threads)
        for i in range(rows):
            if word[i] < 0:
                continue
            word[i] = kernels.argmax(<const floating*> scores + i * d.ldv, d.V)
            captions[i * d.T + t] = <int32_t> word[i]
            if word[i] == d.end:
                word[i] = -1  # finished
                running -= 1
    kernels.denormals_restore(mode)


cdef int decode(Decoder* d, int32_t* captions, const floating* features) except -1:
    """Greedy captions (N, T); places after the end of a row are left as they are."""
    cdef int lap
    cdef size_t size = sizeof(floating), block_bytes
    cdef ptrdiff_t blocks, q, rows, N = d.N, words
    cdef int threads = threads_for(2.0 * N * d.T * d.H * (d.G + d.V))
    cdef Workspace scratch = Workspace()
    cdef floating* h
    cdef floating* c
    cdef floating* gates
    cdef floating* scores
    cdef floating* x
    cdef floating* products
    cdef ptrdiff_t* word
    cdef ptrdiff_t* place
    cdef Packed parts
    cdef char* memory
    if N <= FEW:
        words = min(d.V, area(N, d.T))
        for lap in range(2):
            scratch.begin(lap)
            h = <floating*> scratch.take(area(N, d.ldh), size)
            c = <floating*> scratch.take(area(N, d.ldh), size)
            gates = <floating*> scratch.take(area(N, d.ldg), size)
            scores = <floating*> scratch.take(area(N, d.ldv), size)
            x = <floating*> scratch.take(area(N, d.W), size)
            products = <floating*> scratch.take(area(words, d.ldg), size)
            word = <ptrdiff_t*> scratch.take(N, sizeof(ptrdiff_t))
            place = <ptrdiff_t*> scratch.take(d.V, sizeof(ptrdiff_t))
        with nogil:
            columns_product(h, d.ldh, features, d.D, <const floating*> d.W_proj, d.H, <const floating*> d.b_proj, N,
                            d.H, d.D, threads)
            memset(c, 0, N * d.ldh * size)
            # a step of a few rows is worth threads only where the weights are large
            threads = threads_for(2.0 * N * d.H * (d.G + d.V))
            decode_few(d, captions, h, c, gates, scores, x, products, word, place, threads)
        return 0
    blocks = (N + BLOCK_ROWS * threads - 1) // (BLOCK_ROWS * threads) * threads
    rows = (N + blocks - 1) // blocks
    block_bytes = decode_room(d, rows, size)
    for lap in range(2):
        scratch.begin(lap)
        parts = take_packed(d, scratch, True, size)
        memory = <char*> scratch.take(area(threads, block_bytes), 1)
    pack_model(d, &parts, features, threads)
    with nogil:
        for q in prange(blocks, num_threads=threads, schedule="static", chunksize=1):
            if share(N, q + 1, blocks, 1) > share(N, q, blocks, 1):
                decode_block(d, captions + share(N, q, blocks, 1) * d.T,
                             <const floating*> d.h0 + share(N, q, blocks, 1) * d.ldh,
                             memory + threadid() * block_bytes, share(N, q + 1, blocks, 1) - share(N, q, blocks, 1))
    return 0


def sample(params, features, bint lstm, start, end, null, ptrdiff_t max_length):
    """Greedy captions, int32 (N, max_length); rows stop at the id `end`, or run on where it is None."""
    cdef tuple arrays = parameters(params, features, lstm)
    cdef Decoder d
    cdef cnp.ndarray first = describe(&d, arrays, lstm)
    cdef cnp.ndarray captions = np.full((d.N, max_length), null, dtype=np.int32)
    d.T = max_length
    d.start = start + d.V if start < 0 else start
    if not 0 <= d.start < d.V:
        raise IndexError(f"<START> has the id {start}; expected an id in [{-d.V}, {d.V})")
    d.end = -1 if end is None else end
    if d.N == 0 or d.T == 0:
        return captions
    if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT32:
        decode(&d, <int32_t*> data(captions), <const float*> data(first))
    else:
        decode(&d, <int32_t*> data(captions), <const double*> data(first))
    return captions


# ---- Beam search, and drawn captions ---------------------------------------------------------------------------------
#
# A search is one picture's beam search, or one drawn caption: a beam of width 1 that draws. Each thread works on as
# many searches at a time as fill a block of rows, and begins a new one as soon as one is done: blocks stay full.

cdef struct Task:
    Decoder model             # T: the most words
    ptrdiff_t searches, each  # `each` searches for every picture
    ptrdiff_t width, groups, group_width, n_best
    ptrdiff_t no_repeat, banned, room_for_words
    double diversity
    const ptrdiff_t* ban      # (banned,) words that are never chosen
    const double* scale       # (T + 1,) each, by length: score = log_prob * scale + reward
    const double* reward
    bint draws
    double inverse_temperature, top_p
    ptrdiff_t top_k
    uint64_t seed
    # results: (searches, n_best, T) or (searches, n_best)
    int32_t* ids
    double* word_log_probs
    double* log_probs
    double* scores
    bint few                  # rows: the weights are read as they lie, and `threads` share out their columns
    int threads


cdef struct Hypotheses:
    # (places,) or (places, T)
    ptrdiff_t* word       # the last word
    ptrdiff_t* parent     # the row of the last step that holds the state from which it goes on, -1: the initial one
    ptrdiff_t* length
    double* log_prob
    double* rank          # what the search goes by: log_prob less the penalties for words of earlier groups
    double* score
    int32_t* ids
    double* word_log_probs


cdef struct Block:
    ptrdiff_t slots, rows
    ptrdiff_t* search     # (slots,) -1: free
    ptrdiff_t* steps      # (slots,) words so far
    ptrdiff_t* live       # (slots, groups) hypotheses that go on, and that are in the pool
    ptrdiff_t* pooled
    Hypotheses beams      # (slots, width)
    Hypotheses pool       # (slots, width) finished ones, best first in each group
    Hypotheses onward     # (group_width,)
    # (rows,): where a row's hypothesis is, and which product its gates come from
    ptrdiff_t* place_of
    ptrdiff_t* product_of
    # (rows,), by product: how many rows wait for it, where its state lies; by row of the step before: its product
    ptrdiff_t* waiting
    ptrdiff_t* h_at
    ptrdiff_t* product_from
    # continuations of the rows of a group
    ptrdiff_t* counts     # (group_width,)
    ptrdiff_t* heads      # (group_width,)
    ptrdiff_t* words      # (group_width, room_for_words)
    double* ranks         # (group_width, room_for_words)
    double* log_probs     # (group_width, room_for_words)
    ptrdiff_t* chosen     # (width,) words with which earlier groups go on
    ptrdiff_t* known      # (V,) where the input product of a word is; few rows only
    ptrdiff_t known_count
    void* values          # (room_for_words,)
    void* h               # (rows, ldh)
    void* c
    void* next_c
    void* gates           # (rows + 1, ldg)
    void* scores          # (rows, ldv)
    void* tiles
    void* nothing         # (H,) zeros: the cell state before the first word
    void* weights         # (V,)
    void* vectors         # (rows, max(H, W)) few rows only


cdef void hypotheses_at(Hypotheses* to, ptrdiff_t places, ptrdiff_t T, char* memory, size_t* used) noexcept nogil:
    to.word = <ptrdiff_t*> part(memory, used, places, sizeof(ptrdiff_t))
    to.parent = <ptrdiff_t*> part(memory, used, places, sizeof(ptrdiff_t))
    to.length = <ptrdiff_t*> part(memory, used, places, sizeof(ptrdiff_t))
    to.log_prob = <double*> part(memory, used, places, sizeof(double))
    to.rank = <double*> part(memory, used, places, sizeof(double))
    to.score = <double*> part(memory, used, places, sizeof(double))
    to.ids = <int32_t*> part(memory, used, area(places, T), sizeof(int32_t))
    to.word_log_probs = <double*> part(memory, used, area(places, T), sizeof(double))


cdef size_t block_at(Block* block, const Task* task, ptrdiff_t slots, char* memory, size_t size) noexcept nogil:
    """Lay a block out in memory; returns the bytes that it takes."""
    cdef const Decoder* d = &task.model
    cdef ptrdiff_t width = task.width, group_width = task.group_width, rows = area(slots, width)
    cdef ptrdiff_t wide = max(d.H, d.W)
    cdef size_t used = 0
    cdef size_t index = sizeof(ptrdiff_t)
    block.slots, block.rows = slots, 0
    block.search = <ptrdiff_t*> part(memory, &used, slots, index)
    block.steps = <ptrdiff_t*> part(memory, &used, slots, index)
    block.live = <ptrdiff_t*> part(memory, &used, area(slots, task.groups), index)
    block.pooled = <ptrdiff_t*> part(memory, &used, area(slots, task.groups), index)
    hypotheses_at(&block.beams, rows, d.T, memory, &used)
    hypotheses_at(&block.pool, rows, d.T, memory, &used)
    hypotheses_at(&block.onward, group_width, d.T, memory, &used)
    block.place_of = <ptrdiff_t*> part(memory, &used, rows, index)
    block.product_of = <ptrdiff_t*> part(memory, &used, rows, index)
    block.waiting = <ptrdiff_t*> part(memory, &used, rows, index)
    block.h_at = <ptrdiff_t*> part(memory, &used, rows, index)
    block.product_from = <ptrdiff_t*> part(memory, &used, rows, index)
    block.counts = <ptrdiff_t*> part(memory, &used, group_width, index)
    block.heads = <ptrdiff_t*> part(memory, &used, group_width, index)
    block.words = <ptrdiff_t*> part(memory, &used, area(group_width, task.room_for_words), index)
    block.ranks = <double*> part(memory, &used, area(group_width, task.room_for_words), sizeof(double))
    block.log_probs = <double*> part(memory, &used, area(group_width, task.room_for_words), sizeof(double))
    block.chosen = <ptrdiff_t*> part(memory, &used, width, index)
    block.known = <ptrdiff_t*> part(memory, &used, d.V if task.few else 0, index)
    block.known_count = 0
    block.values = part(memory, &used, task.room_for_words, size)
    block.h = part(memory, &used, area(rows, d.ldh), size)
    block.c = part(memory, &used, area(rows, d.ldh), size)
    block.next_c = part(memory, &used, area(rows, d.ldh), size)
    block.gates = part(memory, &used, area(rows + 1, d.ldg), size)
    block.scores = part(memory, &used, area(rows, d.ldv), size)
    block.tiles = part(memory, &used, tiles_size(rows, d.H, size) + 16 * d.H, size)
    block.nothing = part(memory, &used, d.H, size)
    block.weights = part(memory, &used, d.V if task.draws else 0, size)
    block.vectors = part(memory, &used, area(rows, wide) if task.few else 0, size)
    return used


cdef void begin(const Task* task, Block* block, ptrdiff_t slot, ptrdiff_t search) noexcept nogil:
    cdef ptrdiff_t g, place
    block.search[slot], block.steps[slot] = search, 0
    for g in range(task.groups):
        place = slot * task.width + g * task.group_width
        block.live[slot * task.groups + g] = 1
        block.pooled[slot * task.groups + g] = 0
        block.beams.word[place], block.beams.parent[place] = task.model.start, -1
        block.beams.log_prob[place] = block.beams.rank[place] = 0


cdef ptrdiff_t arrange(const Task* task, Block* block, ptrdiff_t h0_at, size_t size) noexcept nogil:
    """Give each live hypothesis a row, and rows with the same state one product; returns how many products."""
    cdef ptrdiff_t products = 0, rows = 0, slot, g, place, parent, product, first
    for place in range(block.rows):
        block.product_from[place] = -1
    for slot in range(block.slots):
        if block.search[slot] < 0:
            continue
        first = -1
        for g in range(task.groups):
            for place in range(slot * task.width + g * task.group_width,
                               slot * task.width + g * task.group_width + block.live[slot * task.groups + g]):
                parent = block.beams.parent[place]
                product = first if parent < 0 else block.product_from[parent]
                if product < 0:
                    product = products
                    products += 1
                    block.waiting[product] = 0
                    if parent < 0:
                        first = product
                        block.h_at[product] = h0_at + block.search[slot] // task.each * task.model.ldh
                    else:
                        block.product_from[parent] = product
                        block.h_at[product] = parent * task.model.ldh
                block.waiting[product] += 1
                block.product_of[rows] = product
                block.place_of[rows] = place
                rows += 1
    block.rows = rows
    return products


cdef void input_products(const Task* task, Block* block, floating* products) noexcept nogil:
    """Compute the input products of words that come up for the first time; few rows only."""
    cdef const Decoder* d = &task.model
    cdef floating* vectors = <floating*> block.vectors
    cdef ptrdiff_t i, word, fresh = 0
    for i in range(block.rows):
        word = block.beams.word[block.place_of[i]]
        if block.known[word] < 0:
            block.known[word] = block.known_count + fresh
            memcpy(vectors + fresh * d.W, <const floating*> d.W_embed + word * d.W, d.W * sizeof(floating))
            fresh += 1
    columns_product(products + block.known_count * d.ldg, d.ldg, <const floating*> vectors, d.W,
                    <const floating*> d.Wx, d.G, <const floating*> d.b, fresh, d.G, d.W, task.threads)
    block.known_count += fresh


cdef void advance(const Task* task, Block* block, ptrdiff_t products, const floating* input) noexcept nogil:
    """Let the last word of every row go in: new states, and the scores of the words that may come next."""
    cdef const Decoder* d = &task.model
    cdef size_t size = sizeof(floating)
    cdef floating* h = <floating*> block.h
    cdef floating* c = <floating*> block.next_c
    cdef floating* gates = <floating*> block.gates
    cdef floating* spare = gates + block.slots * task.width * d.ldg
    cdef floating* tiles = <floating*> block.tiles
    cdef floating* scores = <floating*> block.scores
    cdef floating* vectors = <floating*> block.vectors
    cdef const floating* Wh = <const floating*> d.Wh
    cdef const floating* W_vocab = <const floating*> d.W_vocab
    cdef const floating* b_vocab = <const floating*> d.b_vocab
    cdef floating* row
    cdef const floating* product
    cdef const floating* cell
    cdef ptrdiff_t i, place, word, parent, rows = block.rows
    cdef ptrdiff_t height = tile_height(products, size)
    if task.few:
        for i in range(products):
            memcpy(vectors + i * d.H, h + block.h_at[i], d.H * size)
        columns_product(gates, d.ldg, <const floating*> vectors, d.H, Wh, d.G, <const floating*> NULL, products, d.G,
                        d.H, task.threads)
    else:
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, block.h_at, 0, NULL, 1, products, d.H, height,
                               0, (products + height - 1) // height)
        kernels.gemm_tiles(gates, d.ldg, <const floating*> tiles, height, Wh, <const floating*> NULL, products, d.G,
                           d.H, False)
    for i in range(rows):
        place = block.place_of[i]
        word, parent = block.beams.word[place], block.beams.parent[place]
        product = input + (block.known[word] if task.few else word) * d.ldg
        row = gates + block.product_of[i] * d.ldg
        if d.lstm:
            block.waiting[block.product_of[i]] -= 1
            if block.waiting[block.product_of[i]] > 0:  # the gates are written over, and another row wants them yet
                memcpy(spare, row, d.G * size)
                row = spare
            cell = <const floating*> block.nothing if parent < 0 else <const floating*> block.c + parent * d.ldh
            kernels.lstm_gates_forward(row, c + i * d.ldh, h + i * d.ldh, <floating*> NULL, product, cell, d.H)
        else:
            kernels.rnn_gates_forward(h + i * d.ldh, <floating*> NULL, <const floating*> row, product, d.H)
    block.c, block.next_c = block.next_c, block.c
    if task.few:
        columns_product(scores, d.ldv, <const floating*> h, d.ldh, W_vocab, d.V, b_vocab, rows, d.V, d.H, task.threads)
    else:
        height = tile_height(rows, size)
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, NULL, d.ldh, NULL, 1, rows, d.H, height, 0,
                               (rows + height - 1) // height)
        kernels.gemm_tiles(scores, d.ldv, <const floating*> tiles, height, W_vocab, b_vocab, rows, d.V, d.H, False)


cdef inline double log_add(double a, double b) noexcept nogil:
    """log(exp(a) + exp(b)), b finite or -INFINITY."""
    if b == -INFINITY:
        return a
    return a + log1p(exp(b - a)) if a > b else b + log1p(exp(a - b))


cdef double forbid(const Task* task, floating* scores, const int32_t* ids, ptrdiff_t steps) noexcept nogil:
    """Set the scores of words that may not come next to -INFINITY; returns log(sum(exp())) of what they were."""
    cdef double total = -INFINITY
    cdef ptrdiff_t i, j, n = task.no_repeat, word
    for i in range(task.banned):
        word = task.ban[i]
        total = log_add(total, scores[word])
        scores[word] = <floating> -INFINITY
    if n > 0:
        for i in range(steps - n + 1):
            for j in range(n - 1):
                if ids[i + j] != ids[steps - n + 1 + j]:
                    break
            else:
                word = ids[i + n - 1]
                total = log_add(total, scores[word])
                scores[word] = <floating> -INFINITY
    return total


cdef void extend(const Task* task, Hypotheses* to, ptrdiff_t at, const Hypotheses* source, ptrdiff_t place,
                 ptrdiff_t steps, ptrdiff_t word, double log_prob, double rank) noexcept nogil:
    """to[at] = a hypothesis of `steps` words and one more; with word -1 without one."""
    cdef ptrdiff_t T = task.model.T, length = steps
    memcpy(to.ids + at * T, source.ids + place * T, steps * sizeof(int32_t))
    memcpy(to.word_log_probs + at * T, source.word_log_probs + place * T, steps * sizeof(double))
    to.log_prob[at] = source.log_prob[place]
    if word >= 0:
        to.ids[at * T + steps] = <int32_t> word
        to.word_log_probs[at * T + steps] = log_prob
        to.log_prob[at] += log_prob
        length += 1
    to.word[at], to.length[at], to.rank[at] = word, length, rank
    to.score[at] = to.log_prob[at] * task.scale[length] + task.reward[length]


cdef void copy(const Task* task, Hypotheses* to, ptrdiff_t at, const Hypotheses* source, ptrdiff_t i) noexcept nogil:
    cdef ptrdiff_t T = task.model.T
    memcpy(to.ids + at * T, source.ids + i * T, source.length[i] * sizeof(int32_t))
    memcpy(to.word_log_probs + at * T, source.word_log_probs + i * T, source.length[i] * sizeof(double))
    to.word[at], to.parent[at], to.length[at] = source.word[i], source.parent[i], source.length[i]
    to.log_prob[at], to.rank[at], to.score[at] = source.log_prob[i], source.rank[i], source.score[i]


cdef void keep(const Task* task, Block* block, ptrdiff_t slot, ptrdiff_t g, ptrdiff_t place, ptrdiff_t word,
               double log_prob) noexcept nogil:
    """Put a hypothesis into the pool of its group, where the best `group_width` of them stay."""
    cdef ptrdiff_t first = slot * task.width + g * task.group_width, group = slot * task.groups + g
    cdef ptrdiff_t steps = block.steps[slot], length = steps + (word >= 0), at
    cdef double score = block.beams.log_prob[place]
    if word >= 0:
        score += log_prob
    score = score * task.scale[length] + task.reward[length]
    at = block.pooled[group]
    if at == task.group_width:
        if not score > block.pool.score[first + at - 1]:
            return
        at -= 1
    else:
        block.pooled[group] += 1
    while at > 0 and score > block.pool.score[first + at - 1]:
        copy(task, &block.pool, first + at, &block.pool, first + at - 1)
        at -= 1
    extend(task, &block.pool, first + at, &block.beams, place, steps, word, log_prob, 0)


cdef int choose(const Task* task, Block* block, floating* scores, ptrdiff_t slot, ptrdiff_t g, ptrdiff_t row,
                ptrdiff_t others) noexcept nogil:
    """Let a group of a search go one word further; returns 1 where scores are no numbers.

    Its rows begin at `row`; `others` words were chosen by earlier groups.
    """
    cdef const Decoder* d = &task.model
    cdef ptrdiff_t group_width = task.group_width, room_for = task.room_for_words, group = slot * task.groups + g
    cdef ptrdiff_t first = slot * task.width + g * group_width, steps = block.steps[slot], live = block.live[group]
    cdef ptrdiff_t j, m, i, times, word, best, taken = 0, onward = 0
    cdef floating* values = <floating*> block.values
    cdef ptrdiff_t* words
    cdef double* ranks
    cdef double* log_probs
    cdef double total, forbidden, rank, log_prob
    for j in range(live):
        words = block.words + j * room_for
        ranks = block.ranks + j * room_for
        log_probs = block.log_probs + j * room_for
        forbidden = forbid(task, scores + j * d.ldv, block.beams.ids + (first + j) * d.T, steps)
        total = log_add(kernels.top_words(values, words, block.counts + j, <const floating*> scores + j * d.ldv, d.V,
                                          room_for), forbidden)
        if not isfinite(total):
            return 1
        block.heads[j] = 0
        for m in range(block.counts[j]):
            word, log_prob, times = words[m], values[m] - total, 0
            for i in range(others):
                times += block.chosen[i] == word
            rank = block.beams.rank[first + j] + log_prob - task.diversity * times
            i = m  # penalties can change the order
            while i > 0 and ranks[i - 1] < rank:
                words[i], ranks[i], log_probs[i] = words[i - 1], ranks[i - 1], log_probs[i - 1]
                i -= 1
            words[i], ranks[i], log_probs[i] = word, rank, log_prob
    while taken < group_width or onward < group_width:
        best, rank = -1, -INFINITY
        for j in range(live):
            if block.heads[j] < block.counts[j] and (best < 0 or block.ranks[j * room_for + block.heads[j]] > rank):
                best, rank = j, block.ranks[j * room_for + block.heads[j]]
        if best < 0:
            break
        m = best * room_for + block.heads[best]
        block.heads[best] += 1
        if block.words[m] == d.end:
            if taken < group_width:
                keep(task, block, slot, g, first + best, d.end, block.log_probs[m])
        elif onward < group_width:
            extend(task, &block.onward, onward, &block.beams, first + best, steps, block.words[m], block.log_probs[m],
                   rank)
            block.onward.parent[onward] = row + best
            onward += 1
        taken += 1
    if taken == 0:  # nothing may follow: the captions end here
        for j in range(live):
            keep(task, block, slot, g, first + j, -1, 0)
    if block.pooled[group] == group_width:
        onward = 0
    for j in range(onward):
        copy(task, &block.beams, first + j, &block.onward, j)
    block.live[group] = onward
    return 0


cdef int draw_word(const Task* task, Block* block, floating* scores, ptrdiff_t slot, ptrdiff_t row) noexcept nogil:
    """Let a drawn caption go one word further; returns 1 where scores are no numbers."""
    cdef const Decoder* d = &task.model
    cdef ptrdiff_t steps = block.steps[slot], search = block.search[slot], wanted = 1, last = d.V, word, m
    cdef floating* values = <floating*> block.values
    cdef floating* weights = <floating*> block.weights
    cdef floating scale = <floating> task.inverse_temperature, floor = <floating> -INFINITY
    cdef double forbidden = forbid(task, scores, block.beams.ids + slot * d.T, steps), total, mass, sum = 0, log_prob
    if task.top_k > 0:
        wanted = min(task.top_k, d.V)
    elif task.top_p < 1:
        wanted = min(64, d.V)
    total = log_add(kernels.top_words(values, block.words, block.counts, <const floating*> scores, d.V, wanted),
                    forbidden)
    if not isfinite(total):
        return 1
    if block.counts[0] == 0:
        keep(task, block, slot, 0, slot, -1, 0)
        block.live[slot] = 0
        return 0
    if task.top_k > 0:
        m = block.counts[0] - 1
        floor, last = values[m], block.words[m]
    mass = kernels.word_weights(weights, <const floating*> scores, d.V, scale, floor, last)
    if task.top_p < 1:
        m = 0
        while True:
            # words in the order of their weights, until they make up their part of all
            sum += weights[block.words[m]]
            if sum >= task.top_p * mass or m + 1 == d.V or m + 1 == task.top_k:
                break
            m += 1
            if m == block.counts[0]:
                wanted = min(4 * wanted, d.V)
                kernels.top_words(values, block.words, block.counts, <const floating*> scores, d.V, wanted)
                if m == block.counts[0]:
                    m -= 1
                    break
        mass = kernels.word_weights(weights, <const floating*> scores, d.V, scale, values[m], block.words[m])
    word = kernels.word_at(<const floating*> weights, d.V,
                           mass * uniform(random_key(task.seed, search // task.each, steps), search % task.each))
    log_prob = scores[word] - total
    if word == d.end:
        keep(task, block, slot, 0, slot, word, log_prob)
        block.live[slot] = 0
        return 0
    extend(task, &block.onward, 0, &block.beams, slot, steps, word, log_prob, 0)
    block.onward.parent[0] = row
    copy(task, &block.beams, slot, &block.onward, 0)
    return 0


cdef void finish(const Task* task, Block* block, ptrdiff_t slot) noexcept nogil:
    """Write the best hypotheses of a search, best first; its slot is free then."""
    cdef ptrdiff_t T = task.model.T, k, g, best, at, to
    cdef ptrdiff_t* heads = block.live + slot * task.groups
    for g in range(task.groups):
        heads[g] = 0
    for k in range(task.n_best):
        best = at = -1
        for g in range(task.groups):
            if heads[g] < block.pooled[slot * task.groups + g]:
                to = slot * task.width + g * task.group_width + heads[g]
                if best < 0 or block.pool.score[to] > block.pool.score[at]:
                    best, at = g, to
        if best < 0:
            break
        heads[best] += 1
        to = block.search[slot] * task.n_best + k
        memcpy(task.ids + to * T, block.pool.ids + at * T, block.pool.length[at] * sizeof(int32_t))
        memcpy(task.word_log_probs + to * T, block.pool.word_log_probs + at * T,
               block.pool.length[at] * sizeof(double))
        task.log_probs[to], task.scores[to] = block.pool.log_prob[at], block.pool.score[at]
    block.search[slot] = -1


cdef int run_searches(const Task* task, char* memory, ptrdiff_t slots, ptrdiff_t first, ptrdiff_t last,
                      const floating* h0) noexcept nogil:
    """Do the searches first to last; returns 1 where scores are no numbers."""
    cdef const Decoder* d = &task.model
    cdef size_t size = sizeof(floating)
    cdef Block block
    cdef ptrdiff_t slot, g, j, row, group, others, products, running, following = first
    cdef floating* scores
    cdef int failed = 0
    cdef uint64_t mode = kernels.denormals_flush()
    block_at(&block, task, slots, memory, size)
    memset(block.nothing, 0, d.H * size)
    if task.few:
        for j in range(d.V):
            block.known[j] = -1
    for slot in range(slots):
        block.search[slot] = -1
    while not failed:
        for slot in range(slots):
            if block.search[slot] < 0 and following < last:
                begin(task, &block, slot, following)
                following += 1
        products = arrange(task, &block, h0 - <const floating*> block.h, size)
        if block.rows == 0:
            break
        if task.few:
            input_products(task, &block, <floating*> d.products)
        advance(task, &block, products, <const floating*> d.products)
        scores = <floating*> block.scores
        row = 0
        for slot in range(slots):
            if block.search[slot] < 0:
                continue
            others = running = 0
            for g in range(task.groups):
                group = slot * task.groups + g
                j = block.live[group]
                if j == 0:
                    continue
                if task.draws:
                    failed |= draw_word(task, &block, scores + row * d.ldv, slot, row)
                else:
                    failed |= choose(task, &block, scores + row * d.ldv, slot, g, row, others)
                row += j
                for j in range(block.live[group]):
                    block.chosen[others] = block.beams.word[slot * task.width + g * task.group_width + j]
                    others += 1
                running += block.live[group]
            block.steps[slot] += 1
            if block.steps[slot] == d.T:
                for g in range(task.groups):
                    for j in range(block.live[slot * task.groups + g]):
                        keep(task, &block, slot, g, slot * task.width + g * task.group_width + j, -1, 0)
                running = 0
            if running == 0:
                finish(task, &block, slot)
    kernels.denormals_restore(mode)
    return failed


cdef int decode_task(Task* task, const floating* features) except -1:
    cdef Decoder* d = &task.model
    cdef int lap
    cdef size_t size = sizeof(floating), block_bytes
    cdef ptrdiff_t N = d.N, searches = task.searches, slots, q, parts, words
    cdef Workspace scratch = Workspace()
    cdef Block block
    cdef Packed packed
    cdef char* memory
    cdef int threads = threads_for(2.0 * searches * task.width * d.T * d.H * (d.G + d.V)), failed = 0
    task.few = area(searches, task.width) <= FEW
    if task.few:
        words = min(d.V, 1 + searches * task.width * d.T)
        block_bytes = block_at(&block, task, searches, NULL, size)
        for lap in range(2):
            scratch.begin(lap)
            d.h0 = scratch.take(area(N, d.ldh), size)
            d.products = scratch.take(area(words, d.ldg), size)
            memory = <char*> scratch.take(block_bytes, 1)
        with nogil:
            columns_product(<floating*> d.h0, d.ldh, features, d.D, <const floating*> d.W_proj, d.H,
                            <const floating*> d.b_proj, N, d.H, d.D, threads)
            # a step of a few rows is worth threads only where the weights are large
            task.threads = threads_for(2.0 * searches * task.width * d.H * (d.G + d.V))
            failed = run_searches(task, memory, searches, 0, searches, <const floating*> d.h0)
        return failed
    parts = min(<ptrdiff_t> threads, searches)
    slots = max(<ptrdiff_t> 1, min(BLOCK_ROWS // task.width, (searches + parts - 1) // parts))
    block_bytes = block_at(&block, task, slots, NULL, size)
    for lap in range(2):
        scratch.begin(lap)
        packed = take_packed(d, scratch, True, size)
        memory = <char*> scratch.take(area(parts, block_bytes), 1)
    pack_model(d, &packed, features, threads)
    with nogil:
        for q in prange(parts, num_threads=threads, schedule="static", chunksize=1):
            failed += run_searches(task, memory + q * block_bytes, slots, share(searches, q, parts, 1),
                                   share(searches, q + 1, parts, 1), <const floating*> d.h0)
    return failed


cdef tuple decoded(Task* task, tuple arrays, bint lstm, start, end, ptrdiff_t null, ptrdiff_t T, suppress):
    """Run a task; what is missing in it is filled in."""
    cdef Decoder* d = &task.model
    cdef cnp.ndarray first = describe(d, arrays, lstm), ids, word_log_probs, log_probs, scores
    cdef cnp.ndarray given = ids_of("suppress", suppress), ban = new(cnp.NPY_INTP, 1, dim(given, 0))
    cdef int failed
    d.T, d.start, d.end = T, start, end
    if not 0 <= d.start < d.V:
        raise IndexError(f"<START> has the id {start}; expected an id in [0, {d.V})")
    if not wrap_ids(<ptrdiff_t*> data(ban), <cnp.npy_intp*> data(given), dim(given, 0), d.V):
        checks.check_ids("suppress", given, d.V)
    task.ban, task.banned = <ptrdiff_t*> data(ban), dim(ban, 0)
    task.searches = area(d.N, task.each)
    task.group_width = task.width // task.groups
    task.room_for_words = d.V if task.draws and (task.top_p < 1 or task.top_k > 0) else min(d.V, task.width + 1)
    shape = (task.searches, task.n_best, T)
    ids, word_log_probs = np.full(shape, null, dtype=np.int32), np.zeros(shape)
    log_probs, scores = np.full(shape[:2], -np.inf), np.full(shape[:2], -np.inf)
    task.ids, task.word_log_probs = <int32_t*> data(ids), <double*> data(word_log_probs)
    task.log_probs, task.scores = <double*> data(log_probs), <double*> data(scores)
    if task.searches == 0 or T == 0:
        return ids, word_log_probs, log_probs, scores
    if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT32:
        failed = decode_task(task, <const float*> data(first))
    else:
        failed = decode_task(task, <const double*> data(first))
    if failed:
        raise ValueError("the scores of the words are not finite: features or params hold NaN or infinity")
    return ids, word_log_probs, log_probs, scores


def beam_search(params, features, bint lstm, start, end, null, ptrdiff_t max_length, ptrdiff_t width,
                ptrdiff_t groups, ptrdiff_t n_best, double diversity, ptrdiff_t no_repeat_ngram, suppress,
                cnp.ndarray scale, cnp.ndarray reward):
    """Beam search as fastrnn.decoding.beam_search has it.

    scale and reward, float64 (max_length + 1,), make the score of a log-probability by length. Returns ids,
    word_log_probs, log_probs, scores.
    """
    cdef Task task
    memset(&task, 0, sizeof(task))
    task.each, task.width, task.groups, task.n_best = 1, width, groups, n_best
    task.diversity, task.no_repeat = diversity, no_repeat_ngram
    task.scale, task.reward = <double*> data(scale), <double*> data(reward)
    return decoded(&task, parameters(params, features, lstm), lstm, start, end, null, max_length, suppress)


def draw(params, features, bint lstm, start, end, null, ptrdiff_t max_length, ptrdiff_t count,
         double inverse_temperature, ptrdiff_t top_k, double top_p, uint64_t seed, ptrdiff_t no_repeat_ngram, suppress):
    """Drawn captions as fastrnn.decoding.sample has them; results as of beam_search(), one after the other."""
    cdef Task task
    cdef cnp.ndarray scale = np.ones(max_length + 1), reward = np.zeros(max_length + 1)
    memset(&task, 0, sizeof(task))
    task.draws, task.each, task.width, task.groups, task.n_best = True, count, 1, 1, 1
    task.no_repeat, task.inverse_temperature, task.top_k = no_repeat_ngram, inverse_temperature, top_k
    task.top_p, task.seed = top_p, seed
    task.scale, task.reward = <double*> data(scale), <double*> data(reward)
    return decoded(&task, parameters(params, features, lstm), lstm, start, end, null, max_length, suppress)


# ---- Scheduled sampling ----------------------------------------------------------------------------------------------

cdef struct Mixer:
    Decoder model
    double probability
    uint64_t seed


cdef size_t mix_room(const Decoder* d, ptrdiff_t rows, size_t size) noexcept nogil:
    """Bytes of scratchpad for mix_block()."""
    return (room(area(rows, d.ldg), size) + room(area(rows, d.ldh), size) + room(area(rows, d.ldv), size)
            + room(d.V, size) + room(area(rows + 16, max(d.H, d.W)), size) + 4 * room(rows, sizeof(ptrdiff_t)))


cdef inline bint drawn(const Mixer* mixer, ptrdiff_t row, ptrdiff_t t) noexcept nogil:
    """Whether the input word at step t of a row is to be drawn."""
    return t > 0 and uniform(random_key(mixer.seed, row, t), 0) < mixer.probability


cdef void mix_block(const Mixer* mixer, int32_t* inputs, floating* h, const ptrdiff_t* steps, char* memory,
                    ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    """Put drawn words into rows first to last of inputs (N, T).

    h (N, ldh) is the initial state and is written over; row n needs the states of its first steps[n] inputs.
    """
    cdef const Decoder* d = &mixer.model
    cdef size_t size = sizeof(floating), used = 0
    cdef ptrdiff_t most = last - first, width = max(d.H, d.W)
    cdef floating* gates = <floating*> part(memory, &used, most * d.ldg, size)
    cdef floating* c = <floating*> part(memory, &used, most * d.ldh, size)
    cdef floating* scores = <floating*> part(memory, &used, most * d.ldv, size)
    cdef floating* weight = <floating*> part(memory, &used, d.V, size)
    cdef floating* tiles = <floating*> part(memory, &used, (most + 16) * width, size)
    cdef ptrdiff_t* row = <ptrdiff_t*> part(memory, &used, most, sizeof(ptrdiff_t))
    cdef ptrdiff_t* vector_at = <ptrdiff_t*> part(memory, &used, most, sizeof(ptrdiff_t))
    cdef ptrdiff_t* h_at = <ptrdiff_t*> part(memory, &used, most, sizeof(ptrdiff_t))
    cdef ptrdiff_t* scored = <ptrdiff_t*> part(memory, &used, most, sizeof(ptrdiff_t))
    cdef ptrdiff_t t, n, i, rows, wanted, height, count, word
    cdef floating* state
    cdef floating* cell
    cdef double total
    cdef uint64_t mode = kernels.denormals_flush()
    memset(c, 0, most * d.ldh * size)
    for t in range(d.T):
        rows = 0
        for n in range(first, last):
            if steps[n] > t:
                row[rows] = n
                vector_at[rows] = inputs[n * d.T + t] * d.W
                h_at[rows] = n * d.ldh
                rows += 1
        if rows == 0:
            break
        height = tile_height(rows, size)
        count = (rows + height - 1) // height
        kernels.gemm_pack_rows(tiles, height * d.W, <const floating*> d.W_embed, vector_at, 0, NULL, 1, rows, d.W,
                               height, 0, count)
        kernels.gemm_tiles(gates, d.ldg, <const floating*> tiles, height, <const floating*> d.Wx,
                           <const floating*> d.b, rows, d.G, d.W, False)
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, h_at, 0, NULL, 1, rows, d.H, height, 0, count)
        kernels.gemm_tiles(gates, d.ldg, <const floating*> tiles, height, <const floating*> d.Wh,
                           <const floating*> NULL, rows, d.G, d.H, True)
        wanted = 0
        for i in range(rows):
            n = row[i]
            state = h + n * d.ldh
            if d.lstm:
                cell = c + (n - first) * d.ldh
                kernels.lstm_gates_forward(gates + i * d.ldg, cell, state, <floating*> NULL, <const floating*> NULL,
                                           <const floating*> cell, d.H)
            else:
                kernels.rnn_gates_forward(state, <floating*> NULL, <const floating*> gates + i * d.ldg,
                                          <const floating*> NULL, d.H)
            if drawn(mixer, n, t + 1):
                scored[wanted] = n
                h_at[wanted] = n * d.ldh
                wanted += 1
        if wanted == 0:
            continue
        height = tile_height(wanted, size)
        count = (wanted + height - 1) // height
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, h_at, 0, NULL, 1, wanted, d.H, height, 0,
                               count)
        kernels.gemm_tiles(scores, d.ldv, <const floating*> tiles, height, <const floating*> d.W_vocab,
                           <const floating*> d.b_vocab, wanted, d.V, d.H, False)
        for i in range(wanted):
            n = scored[i]
            total = kernels.word_weights(weight, <const floating*> scores + i * d.ldv, d.V, <floating> 1,
                                         <floating> -INFINITY, d.V)
            word = kernels.word_at(<const floating*> weight, d.V,
                                   total * uniform(random_key(mixer.seed, n, t + 1), 1))
            if word >= 0:  # scores that are no numbers leave the caption's word
                inputs[n * d.T + t + 1] = <int32_t> word
    kernels.denormals_restore(mode)


cdef int mix_words(Mixer* mixer, int32_t* inputs, const ptrdiff_t* steps, double work,
                   const floating* features) except -1:
    """Mix words in; `work` is the sum of steps (N,)."""
    cdef Decoder* d = &mixer.model
    cdef int lap
    cdef size_t size = sizeof(floating), block_bytes
    cdef ptrdiff_t N = d.N, q, blocks, rows
    cdef Workspace scratch = Workspace()
    cdef Packed parts
    cdef char* memory
    cdef int threads = threads_for(2.0 * work * d.H * (d.G + mixer.probability * d.V))
    blocks = (N + BLOCK_ROWS * threads - 1) // (BLOCK_ROWS * threads) * threads
    rows = (N + blocks - 1) // blocks
    block_bytes = mix_room(d, rows, size)
    for lap in range(2):
        scratch.begin(lap)
        parts = take_packed(d, scratch, False, size)
        memory = <char*> scratch.take(area(threads, block_bytes), 1)
    pack_model(d, &parts, features, threads)
    with nogil:
        for q in prange(blocks, num_threads=threads, schedule="static", chunksize=1):
            if share(N, q + 1, blocks, 1) > share(N, q, blocks, 1):
                mix_block(mixer, inputs, <floating*> d.h0, steps, memory + threadid() * block_bytes,
                          share(N, q, blocks, 1), share(N, q + 1, blocks, 1))
    return 0


def mix(params, features, captions, double probability, uint64_t seed, null, bint lstm):
    """Input words for scheduled sampling (Bengio et al. 2015): captions into which drawn words are mixed.

    The first input of a row is its caption's. Each later one is, with the given probability, a word drawn from the
    model's softmax over the inputs so far, else the caption's. Whether (unit 0) and which word (unit 1: the first one
    at which the summed probability passes the uniform number) depends on seed, row and time step alone (random.h).
    Behind the last target that is not `null` the words stay the caption's.

    captions (N, T + 1) of integers; returns int32 (N, T), ids counted from the start.
    """
    cdef cnp.ndarray captions_ = ids_of("captions", captions), wrapped, steps_, inputs
    cdef tuple arrays = parameters(params, features, lstm)
    cdef Mixer mixer
    cdef Decoder* d = &mixer.model
    cdef cnp.ndarray first = describe(d, arrays, lstm)
    cdef ptrdiff_t n, t, last, work = 0, null_id = null
    cdef const cnp.npy_intp* ids = <cnp.npy_intp*> data(captions_)
    cdef ptrdiff_t* steps
    checks.match_shapes({"N": d.N}, captions=(captions_, "N L"))
    d.T = max(dim(captions_, 1) - 1, 0)
    mixer.probability, mixer.seed = probability, seed
    wrapped = new(cnp.NPY_INTP, 2, d.N, dim(captions_, 1))
    if not wrap_ids(<ptrdiff_t*> data(wrapped), ids, d.N * dim(captions_, 1), d.V):
        checks.check_ids("captions", captions_, d.V)
    inputs = wrapped[:, :d.T].astype(np.int32, order="C")
    steps_ = new(cnp.NPY_INTP, 1, d.N)
    steps = <ptrdiff_t*> data(steps_)
    for n in range(d.N):
        last = steps[n] = 0
        for t in range(d.T):
            if ids[n * (d.T + 1) + t + 1] != null_id:
                last = t
        # a row needs the states of the inputs before the last one that is drawn
        for t in range(1, last + 1):
            if drawn(&mixer, n, t):
                steps[n] = t
        work += steps[n]
    if work == 0:
        return inputs
    if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT32:
        mix_words(&mixer, <int32_t*> data(inputs), steps, work, <const float*> data(first))
    else:
        mix_words(&mixer, <int32_t*> data(inputs), steps, work, <const double*> data(first))
    return inputs
