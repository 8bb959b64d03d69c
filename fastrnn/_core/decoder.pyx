"""Decoding: greedy captions, beam search, drawn captions, and captions into which drawn words are mixed.

Threads take blocks of pictures; a row is one hypothesis, and what happens to a row does not depend on the other rows.
"""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim, ids_of, new, wrap_ids
from .captioner cimport parameters
from .kernels cimport (Workspace, leading, multiply, pack, pack_tiles, packed_size, random_key, room, threads_for,
                       tile_height, tiles_size, uniform)
from .layers cimport columns_product

from ..reference import checks

cnp.import_array()

cdef enum:
    FEW = 4          # rows up to which decoding reads the weights as they lie
    BLOCK_ROWS = 98  # rows whose scores are computed at a time: seven tiles, and the scores stay in the cache


# ---- Greedy decoding -------------------------------------------------------------------------------------------------

cdef struct Decoder:
    ptrdiff_t V, W, H, G, T, ldh, ldg, ldv
    bint lstm
    ptrdiff_t start, end      # end: -1 to run on


cdef size_t decode_room(const Decoder* d, ptrdiff_t rows, size_t size) noexcept nogil:
    """Bytes of scratchpad for decode_block()."""
    return (room(rows * d.ldg, size) + 2 * room(rows * d.ldh, size) + room(rows * d.ldv, size)
            + room(tiles_size(rows, d.H, size) + 16 * d.H, size) + 2 * room(rows, sizeof(ptrdiff_t)))


cdef void decode_block(const Decoder* d, int32_t* captions, const floating* h0, const floating* products,
                       const floating* Wh, const floating* W_vocab, const floating* b_vocab, char* memory,
                       ptrdiff_t rows) noexcept nogil:
    """Decode `rows` pictures from h0 (rows, ldh) into captions (rows, T); rows that end are dropped."""
    cdef size_t size = sizeof(floating)
    cdef floating* gates = <floating*> memory
    cdef floating* h = <floating*> (memory + room(rows * d.ldg, size))
    cdef floating* c = <floating*> (<char*> h + room(rows * d.ldh, size))
    cdef floating* scores = <floating*> (<char*> c + room(rows * d.ldh, size))
    cdef floating* tiles = <floating*> (<char*> scores + room(rows * d.ldv, size))
    cdef ptrdiff_t* row = <ptrdiff_t*> (<char*> tiles + room(tiles_size(rows, d.H, size) + 16 * d.H, size))
    cdef ptrdiff_t* word = <ptrdiff_t*> (<char*> row + room(rows, sizeof(ptrdiff_t)))
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
        kernels.gemm_tiles(gates, d.ldg, <const floating*> tiles, height, Wh, <const floating*> NULL, active, d.G, d.H,
                           False)
        for i in range(active):
            if d.lstm:
                kernels.lstm_gates_forward(gates + i * d.ldg, c + i * d.ldh, h + i * d.ldh, <floating*> NULL,
                                           products + word[i] * d.ldg, <const floating*> c + i * d.ldh, d.H)
            else:
                kernels.rnn_gates_forward(h + i * d.ldh, <floating*> NULL, <const floating*> gates + i * d.ldg,
                                          products + word[i] * d.ldg, d.H)
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, NULL, d.ldh, NULL, 1, active, d.H, height, 0,
                               count)
        kernels.gemm_tiles(scores, d.ldv, <const floating*> tiles, height, W_vocab, b_vocab, active, d.V, d.H, False)
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
                     floating* x, floating* products, ptrdiff_t* word, ptrdiff_t* place, const floating* W_embed,
                     const floating* Wx, const floating* Wh, const floating* b, const floating* W_vocab,
                     const floating* b_vocab, ptrdiff_t rows, int threads) noexcept nogil:
    """Decode a few pictures: every step reads the weights once, and threads share out their columns.

    The input product of a word is kept from the first time that it comes up, at place[word] of products.
    """
    cdef ptrdiff_t t, i, fresh, known = 0, running = rows
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
                memcpy(x + fresh * d.W, W_embed + word[i] * d.W, d.W * sizeof(floating))
                fresh += 1
        if fresh > 0:
            columns_product(products + known * d.ldg, d.ldg, <const floating*> x, d.W, Wx, d.G, b, fresh, d.G, d.W,
                            threads)
            known += fresh
        columns_product(gates, d.ldg, <const floating*> h, d.ldh, Wh, d.G, <const floating*> NULL, rows, d.G, d.H,
                        threads)
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
        columns_product(scores, d.ldv, <const floating*> h, d.ldh, W_vocab, d.V, b_vocab, rows, d.V, d.H,
                        threads)
        for i in range(rows):
            if word[i] < 0:
                continue
            word[i] = kernels.argmax(<const floating*> scores + i * d.ldv, d.V)
            captions[i * d.T + t] = <int32_t> word[i]
            if word[i] == d.end:
                word[i] = -1  # finished
                running -= 1
    kernels.denormals_restore(mode)


cdef int decode(Decoder* d, int32_t* captions, const floating* features, const floating** params, ptrdiff_t N,
                ptrdiff_t D) except -1:
    """Greedy captions (N, T) of features (N, D); places after the end of a row are left as they are."""
    cdef size_t size = sizeof(floating), block_bytes
    cdef ptrdiff_t blocks, q, rows, V = d.V, W = d.W, H = d.H, G = d.G
    cdef int threads = threads_for(2.0 * N * d.T * H * (G + V))
    cdef Workspace scratch = Workspace()
    cdef floating* h
    cdef floating* c
    cdef floating* gates
    cdef floating* scores
    cdef floating* x
    cdef floating* tiles
    cdef floating* products
    cdef floating* W_proj
    cdef floating* Wx
    cdef floating* Wh
    cdef floating* W_vocab
    cdef ptrdiff_t* word
    cdef ptrdiff_t* place
    cdef char* memory
    cdef floating* nowhere = NULL
    d.ldh, d.ldg, d.ldv = leading(H, size), leading(G, size), leading(V, size)
    if N <= FEW:
        scratch.reserve(2 * room(N * d.ldh, size) + room(N * d.ldg, size) + room(N * d.ldv, size) + room(N * W, size)
                        + room(min(V, N * d.T) * d.ldg, size) + room(N, sizeof(ptrdiff_t)) + room(V, sizeof(ptrdiff_t)))
        h = <floating*> scratch.take(room(N * d.ldh, size))
        c = <floating*> scratch.take(room(N * d.ldh, size))
        gates = <floating*> scratch.take(room(N * d.ldg, size))
        scores = <floating*> scratch.take(room(N * d.ldv, size))
        x = <floating*> scratch.take(room(N * W, size))
        products = <floating*> scratch.take(room(min(V, N * d.T) * d.ldg, size))
        word = <ptrdiff_t*> scratch.take(room(N, sizeof(ptrdiff_t)))
        place = <ptrdiff_t*> scratch.take(room(V, sizeof(ptrdiff_t)))
        with nogil:
            columns_product(h, d.ldh, features, D, params[1], H, params[2], N, H, D, threads)
            memset(c, 0, N * d.ldh * size)
            # a step of a few rows is worth threads only where the weights are large
            threads = threads_for(2.0 * N * H * (G + V))
            decode_few(d, captions, h, c, gates, scores, x, products, word, place, params[0], params[3], params[4],
                       params[5], params[6], params[7], N, threads)
        return 0
    blocks = (N + BLOCK_ROWS * threads - 1) // (BLOCK_ROWS * threads) * threads
    rows = (N + blocks - 1) // blocks
    block_bytes = decode_room(d, rows, size)
    scratch.reserve(room(N * d.ldh, size) + room(V * d.ldg, size) + room(packed_size(D, H, size), size)
                    + room(packed_size(W, G, size), size) + room(packed_size(H, G, size), size)
                    + room(packed_size(H, V, size), size)
                    + room(max(tiles_size(N, D, size), tiles_size(V, W, size)), size) + threads * block_bytes)
    h = <floating*> scratch.take(room(N * d.ldh, size))
    products = <floating*> scratch.take(room(V * d.ldg, size))
    W_proj = <floating*> scratch.take(room(packed_size(D, H, size), size))
    Wx = <floating*> scratch.take(room(packed_size(W, G, size), size))
    Wh = <floating*> scratch.take(room(packed_size(H, G, size), size))
    W_vocab = <floating*> scratch.take(room(packed_size(H, V, size), size))
    tiles = <floating*> scratch.take(room(max(tiles_size(N, D, size), tiles_size(V, W, size)), size))
    memory = <char*> scratch.take(threads * block_bytes)
    with nogil:
        pack(W_proj, 0, nowhere, params[1], NULL, H, 1, D, H, threads)
        pack_tiles(tiles, features, NULL, D, NULL, 1, N, D, threads)
        multiply(h, d.ldh, tiles, W_proj, params[2], N, H, D, False, threads)
        # the input product of every word of the vocabulary
        pack(Wx, 0, nowhere, params[3], NULL, G, 1, W, G, threads)
        pack_tiles(tiles, params[0], NULL, W, NULL, 1, V, W, threads)
        multiply(products, d.ldg, tiles, Wx, params[5], V, G, W, False, threads)
        pack(Wh, 0, nowhere, params[4], NULL, G, 1, H, G, threads)
        pack(W_vocab, 0, nowhere, params[6], NULL, V, 1, H, V, threads)
        for q in prange(blocks, num_threads=threads, schedule="static", chunksize=1):
            if N * (q + 1) // blocks > N * q // blocks:
                decode_block(d, captions + N * q // blocks * d.T, <const floating*> h + N * q // blocks * d.ldh,
                             <const floating*> products, <const floating*> Wh, <const floating*> W_vocab, params[7],
                             memory + threadid() * block_bytes, N * (q + 1) // blocks - N * q // blocks)
    return 0


def sample(params, features, start, end, cnp.ndarray captions, bint lstm):
    """Write greedy captions into `captions`, int32 (N, T); rows stop at the id `end`, or run on where it is None."""
    cdef tuple arrays = parameters(params, features, lstm)
    cdef cnp.ndarray array, first = arrays[0], We = arrays[1], Wp = arrays[2]
    cdef Decoder d
    cdef void* source[8]
    cdef int k
    d.V, d.W, d.H, d.T = dim(We, 0), dim(We, 1), dim(Wp, 1), dim(captions, 1)
    d.G = 4 * d.H if lstm else d.H
    d.lstm = lstm
    d.start = start + d.V if start < 0 else start
    if not 0 <= d.start < d.V:
        raise IndexError(f"<START> has the id {start}; expected an id in [{-d.V}, {d.V})")
    d.end = -1 if end is None else end
    if dim(first, 0) == 0 or d.T == 0:
        return
    for k in range(8):
        array = arrays[1 + k]
        source[k] = data(array)
    if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT32:
        decode(&d, <int32_t*> data(captions), <float*> data(first), <const float**> source, dim(first, 0), dim(Wp, 0))
    else:
        decode(&d, <int32_t*> data(captions), <double*> data(first), <const double**> source, dim(first, 0), dim(Wp, 0))


# ---- Scheduled sampling ----------------------------------------------------------------------------------------------

cdef struct Mixer:
    ptrdiff_t N, T, V, W, H, G, ldh, ldg, ldv
    bint lstm
    double probability
    uint64_t seed


cdef size_t mix_room(const Mixer* d, ptrdiff_t rows, size_t size) noexcept nogil:
    """Bytes of scratchpad for mix_block()."""
    return (room(rows * d.ldg, size) + room(rows * d.ldh, size) + room(rows * d.ldv, size) + room(d.V, size)
            + room(rows * max(d.H, d.W) + 16 * max(d.H, d.W), size) + 4 * room(rows, sizeof(ptrdiff_t)))


cdef inline bint drawn(const Mixer* d, ptrdiff_t row, ptrdiff_t t) noexcept nogil:
    """Whether the input word at step t of a row is to be drawn."""
    return t > 0 and uniform(random_key(d.seed, row, t), 0) < d.probability


cdef void mix_block(const Mixer* d, int32_t* inputs, floating* h, const floating* W_embed, const floating* Wx,
                    const floating* Wh, const floating* b, const floating* W_vocab, const floating* b_vocab,
                    const ptrdiff_t* steps, char* memory, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    """Put drawn words into rows first to last of inputs (N, T).

    h (N, ldh) is the initial state and is written over; row n needs the states of its first steps[n] inputs.
    """
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t most = last - first, width = max(d.H, d.W)
    cdef floating* gates = <floating*> memory
    cdef floating* c = <floating*> (memory + room(most * d.ldg, size))
    cdef floating* scores = <floating*> (<char*> c + room(most * d.ldh, size))
    cdef floating* weight = <floating*> (<char*> scores + room(most * d.ldv, size))
    cdef floating* tiles = <floating*> (<char*> weight + room(d.V, size))
    cdef ptrdiff_t* row = <ptrdiff_t*> (<char*> tiles + room(most * width + 16 * width, size))
    cdef ptrdiff_t* vector_at = <ptrdiff_t*> (<char*> row + room(most, sizeof(ptrdiff_t)))
    cdef ptrdiff_t* h_at = <ptrdiff_t*> (<char*> vector_at + room(most, sizeof(ptrdiff_t)))
    cdef ptrdiff_t* scored = <ptrdiff_t*> (<char*> h_at + room(most, sizeof(ptrdiff_t)))
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
        kernels.gemm_pack_rows(tiles, height * d.W, W_embed, vector_at, 0, NULL, 1, rows, d.W, height, 0, count)
        kernels.gemm_tiles(gates, d.ldg, <const floating*> tiles, height, Wx, b, rows, d.G, d.W, False)
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, h_at, 0, NULL, 1, rows, d.H, height, 0, count)
        kernels.gemm_tiles(gates, d.ldg, <const floating*> tiles, height, Wh, <const floating*> NULL, rows, d.G, d.H,
                           True)
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
            if drawn(d, n, t + 1):
                scored[wanted] = n
                h_at[wanted] = n * d.ldh
                wanted += 1
        if wanted == 0:
            continue
        height = tile_height(wanted, size)
        count = (wanted + height - 1) // height
        kernels.gemm_pack_rows(tiles, height * d.H, <const floating*> h, h_at, 0, NULL, 1, wanted, d.H, height, 0,
                               count)
        kernels.gemm_tiles(scores, d.ldv, <const floating*> tiles, height, W_vocab, b_vocab, wanted, d.V, d.H, False)
        for i in range(wanted):
            n = scored[i]
            total = kernels.word_weights(weight, <const floating*> scores + i * d.ldv, d.V, <floating> 1,
                                         <floating> -INFINITY, d.V)
            word = kernels.word_at(<const floating*> weight, d.V,
                                   total * uniform(random_key(d.seed, n, t + 1), 1))
            if word >= 0:  # scores that are no numbers leave the caption's word
                inputs[n * d.T + t + 1] = <int32_t> word
    kernels.denormals_restore(mode)


cdef int mix_words(Mixer* d, int32_t* inputs, const floating* features, const floating** params,
                   const ptrdiff_t* lengths, ptrdiff_t D) except -1:
    cdef size_t size = sizeof(floating), block_bytes
    cdef ptrdiff_t N = d.N, V = d.V, W = d.W, H = d.H, G = d.G, n, t, q, blocks, rows, work = 0
    cdef Workspace scratch = Workspace()
    cdef floating* h
    cdef floating* W_proj
    cdef floating* Wx
    cdef floating* Wh
    cdef floating* W_vocab
    cdef floating* tiles
    cdef ptrdiff_t* steps
    cdef char* memory
    cdef floating* nowhere = NULL
    cdef int threads
    d.ldh, d.ldg, d.ldv = leading(H, size), leading(G, size), leading(V, size)
    cdef cnp.ndarray steps_ = new(cnp.NPY_INTP, 1, N)
    steps = <ptrdiff_t*> data(steps_)
    for n in range(N):
        steps[n] = 0
        for t in range(1, lengths[n]):
            if drawn(d, n, t):
                steps[n] = t
        work += steps[n]
    if work == 0:
        return 0
    threads = threads_for(2.0 * work * H * (G + d.probability * V))
    blocks = (N + BLOCK_ROWS * threads - 1) // (BLOCK_ROWS * threads) * threads
    rows = (N + blocks - 1) // blocks
    block_bytes = mix_room(d, rows, size)
    scratch.reserve(room(N * d.ldh, size) + room(packed_size(D, H, size), size) + room(packed_size(W, G, size), size)
                    + room(packed_size(H, G, size), size) + room(packed_size(H, V, size), size)
                    + room(tiles_size(N, D, size), size) + threads * block_bytes)
    h = <floating*> scratch.take(room(N * d.ldh, size))
    W_proj = <floating*> scratch.take(room(packed_size(D, H, size), size))
    Wx = <floating*> scratch.take(room(packed_size(W, G, size), size))
    Wh = <floating*> scratch.take(room(packed_size(H, G, size), size))
    W_vocab = <floating*> scratch.take(room(packed_size(H, V, size), size))
    tiles = <floating*> scratch.take(room(tiles_size(N, D, size), size))
    memory = <char*> scratch.take(threads * block_bytes)
    with nogil:
        pack(W_proj, 0, nowhere, params[1], NULL, H, 1, D, H, threads)
        pack_tiles(tiles, features, NULL, D, NULL, 1, N, D, threads)
        multiply(h, d.ldh, tiles, W_proj, params[2], N, H, D, False, threads)
        pack(Wx, 0, nowhere, params[3], NULL, G, 1, W, G, threads)
        pack(Wh, 0, nowhere, params[4], NULL, G, 1, H, G, threads)
        pack(W_vocab, 0, nowhere, params[6], NULL, V, 1, H, V, threads)
        for q in prange(blocks, num_threads=threads, schedule="static", chunksize=1):
            if N * (q + 1) // blocks > N * q // blocks:
                mix_block(d, inputs, h, params[0], <const floating*> Wx, <const floating*> Wh, params[5],
                          <const floating*> W_vocab, params[7], <const ptrdiff_t*> steps,
                          memory + threadid() * block_bytes, N * q // blocks, N * (q + 1) // blocks)
    return 0


def mix(params, features, captions, double probability, uint64_t seed, null, bint lstm):
    """Input words for scheduled sampling (Bengio et al. 2015): captions into which drawn words are mixed.

    The first input of a row is its caption's. Each later one is, with the given probability, a word drawn from the
    model's softmax over the inputs so far, else the caption's. Whether (unit 0) and which word (unit 1: the first one
    at which the summed probability passes the uniform number) depends on seed, row and time step alone (random.h).
    Behind the last target that is not `null` the words stay the caption's.

    captions (N, T + 1) of integers; returns int32 (N, T), ids counted from the start.
    """
    cdef cnp.ndarray captions_ = ids_of("captions", captions), wrapped, lengths, inputs
    cdef tuple arrays = parameters(params, features, lstm)
    cdef cnp.ndarray array, first = arrays[0], We = arrays[1], Wp = arrays[2]
    cdef Mixer d
    cdef void* source[8]
    cdef ptrdiff_t n, t, k, null_id = null
    cdef const cnp.npy_intp* ids = <cnp.npy_intp*> data(captions_)
    checks.match_shapes({"N": dim(first, 0)}, captions=(captions_, "N L"))
    d.N, d.H, d.V, d.W = dim(first, 0), dim(Wp, 1), dim(We, 0), dim(We, 1)
    d.T = max(dim(captions_, 1) - 1, 0)
    d.G = 4 * d.H if lstm else d.H
    d.lstm, d.probability, d.seed = lstm, probability, seed
    wrapped = new(cnp.NPY_INTP, 2, d.N, dim(captions_, 1))
    if not wrap_ids(<ptrdiff_t*> data(wrapped), ids, d.N * dim(captions_, 1), d.V):
        checks.check_ids("captions", captions_, d.V)
    inputs = wrapped[:, :d.T].astype(np.int32, order="C")
    if d.N == 0 or d.T == 0:
        return inputs
    lengths = new(cnp.NPY_INTP, 1, d.N)
    for n in range(d.N):
        (<ptrdiff_t*> data(lengths))[n] = 0
        for t in range(d.T):
            if ids[n * (d.T + 1) + t + 1] != null_id:
                (<ptrdiff_t*> data(lengths))[n] = t + 1
    for k in range(8):
        array = arrays[1 + k]
        source[k] = data(array)
    if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT32:
        mix_words(&d, <int32_t*> data(inputs), <float*> data(first), <const float**> source,
                  <ptrdiff_t*> data(lengths), dim(Wp, 0))
    else:
        mix_words(&d, <int32_t*> data(inputs), <double*> data(first), <const double**> source,
                  <ptrdiff_t*> data(lengths), dim(Wp, 0))
    return inputs
