"""Greedy decoding. Each thread decodes blocks of images; a caption does not depend on the other rows of its block."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memcpy, memset

from . cimport kernels
from .arrays cimport data, dim
from .cell cimport row_forward
from .model cimport (
    BLOCK_ROWS, FEW_ROWS, FewRows, Model, PackedModel, multiply_few, pack_few_rows, pack_model, read_model,
    take_few_rows, take_packed,
)
from .products cimport depth_of, matrix, multiply_rows, multiply_unpacked, pack_rows, tiles_size
from .runtime cimport (
    Layout, Slices, Workspace, area, denormals_flush, denormals_restore, layout_of, share, slice_of, take, threads_for,
)

cnp.import_array()


cdef struct Greedy:
    Model model
    ptrdiff_t N, T
    ptrdiff_t start, end  # end is -1 to decode all T steps


cdef struct Block:
    # The state of some rows.
    void* h         # (rows, ldh)
    void* c
    void* gates     # (rows, ldg)
    void* scores    # (rows, ldv)
    ptrdiff_t* word  # (rows,) last word
    # of decode_block() only
    void* tiles
    ptrdiff_t* row  # (rows,) index in captions
    # of decode_few() only
    void* vectors   # (rows, W) vectors of words without a product
    void* products  # (max_words, ldg) input products of the words that have occurred
    ptrdiff_t* product_of_word  # (V,) row of `products`, or -1


cdef Block take_block(Layout* layout, const Greedy* greedy, ptrdiff_t rows, size_t size) noexcept nogil:
    """Take the arrays of decode_block() for up to `rows` images from a layout."""
    cdef const Model* model = &greedy.model
    cdef Block block
    block.h = take(layout, area(rows, model.ldh), size)
    block.c = take(layout, area(rows, model.ldh), size)
    block.gates = take(layout, area(rows, model.ldg), size)
    block.scores = take(layout, area(rows, model.ldv), size)
    block.word = <ptrdiff_t*> take(layout, rows, sizeof(ptrdiff_t))
    block.tiles = take(layout, tiles_size(rows, depth_of(model.H, model.bfloat16), size), size)
    block.row = <ptrdiff_t*> take(layout, rows, sizeof(ptrdiff_t))
    block.vectors = block.products = NULL
    block.product_of_word = NULL
    return block


cdef Block take_few(Workspace workspace, const Greedy* greedy, size_t size) noexcept:
    """Take the arrays of decode_few() from a workspace."""
    cdef const Model* model = &greedy.model
    cdef ptrdiff_t N = greedy.N
    cdef Block block
    block.h = workspace.take(area(N, model.ldh), size)
    block.c = workspace.take(area(N, model.ldh), size)
    block.gates = workspace.take(area(N, model.ldg), size)
    block.scores = workspace.take(area(N, model.ldv), size)
    block.word = <ptrdiff_t*> workspace.take(N, sizeof(ptrdiff_t))
    block.vectors = workspace.take(area(N, model.W), size)
    block.products = workspace.take(area(min(model.V, area(N, greedy.T)), model.ldg), size)
    block.product_of_word = <ptrdiff_t*> workspace.take(model.V, sizeof(ptrdiff_t))
    block.tiles = NULL
    block.row = NULL
    return block


cdef void decode_block(const Greedy* greedy, const PackedModel* packed, int32_t* captions, const floating* h0,
                       Layout layout, ptrdiff_t rows) noexcept nogil:
    """Decode `rows` images from h0 (rows, ldh) into captions (rows, T). Finished rows leave the block."""
    cdef const Model* model = &greedy.model
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t ldh = model.ldh, ldg = model.ldg, ldv = model.ldv, H = model.H
    cdef Block block = take_block(&layout, greedy, rows, size)
    cdef floating* gates = <floating*> block.gates
    cdef floating* h = <floating*> block.h
    cdef floating* c = <floating*> block.c
    cdef floating* scores = <floating*> block.scores
    cdef floating* tiles = <floating*> block.tiles
    cdef const floating* products = <const floating*> packed.products
    cdef ptrdiff_t t, i, running, active = rows, depth = depth_of(H, model.bfloat16)
    cdef bint h_is_packed = False, bfloat16 = model.bfloat16
    cdef uint64_t mode = denormals_flush()
    memcpy(h, h0, rows * ldh * size)
    memset(c, 0, rows * ldh * size)
    for i in range(rows):
        block.row[i] = i
        block.word[i] = greedy.start
    for t in range(greedy.T):
        if active == 0:
            break
        if not h_is_packed:
            pack_rows(tiles, matrix(h, ldh), active, H, bfloat16)
        multiply_rows(gates, ldg, <const floating*> tiles, <const floating*> packed.Wh, <const floating*> NULL, active,
                      model.G, depth, False, bfloat16)
        for i in range(active):
            row_forward(model.cell, gates + i * ldg, h + i * ldh, c + i * ldh, <floating*> NULL,
                        products + block.word[i] * ldg, <const floating*> h + i * ldh, <const floating*> c + i * ldh, H)
        pack_rows(tiles, matrix(h, ldh), active, H, bfloat16)
        multiply_rows(scores, ldv, <const floating*> tiles, <const floating*> packed.W_vocab,
                      <const floating*> model.b_vocab, active, model.V, depth, False,
                      bfloat16)
        h_is_packed = True  # as long as no row leaves
        running = 0
        for i in range(active):
            block.word[i] = kernels.argmax(<const floating*> scores + i * ldv, model.V)
            captions[block.row[i] * greedy.T + t] = <int32_t> block.word[i]
            if block.word[i] != greedy.end:
                if running < i:
                    block.row[running], block.word[running] = block.row[i], block.word[i]
                    memcpy(h + running * ldh, h + i * ldh, H * size)
                    memcpy(c + running * ldh, c + i * ldh, H * size)
                running += 1
        if running < active:
            h_is_packed = False
        active = running
    denormals_restore(mode)


cdef void decode_few(const Greedy* greedy, const Block* block, const FewRows* few, int32_t* captions,
                     const floating* features, int threads) noexcept nogil:
    """Decode a few images; threads divide the columns of the weights.

    The input product of a word is computed when the word first occurs.
    """
    cdef const Model* model = &greedy.model
    cdef ptrdiff_t ldh = model.ldh, ldg = model.ldg, ldv = model.ldv, W = model.W, H = model.H, G = model.G
    cdef ptrdiff_t t, i, known = 0, unknown, rows = greedy.N, running = rows
    cdef ptrdiff_t* word = block.word
    cdef ptrdiff_t* product_of_word = block.product_of_word
    cdef floating* h = <floating*> block.h
    cdef floating* c = <floating*> block.c
    cdef floating* gates = <floating*> block.gates
    cdef floating* scores = <floating*> block.scores
    cdef floating* vectors = <floating*> block.vectors
    cdef floating* products = <floating*> block.products
    cdef uint64_t mode = denormals_flush()
    multiply_unpacked(h, ldh, features, model.D, <const floating*> model.W_proj, H, <const floating*> model.b_proj,
                      rows, H, model.D, threads)
    memset(c, 0, rows * ldh * sizeof(floating))
    # a single step of few rows pays for threads only if the weights are large
    threads = threads_for(2.0 * rows * H * (G + model.V))
    for i in range(rows):
        word[i] = greedy.start
    for i in range(model.V):
        product_of_word[i] = -1
    for t in range(greedy.T):
        if running == 0:
            break
        unknown = 0
        for i in range(rows):
            if word[i] >= 0 and product_of_word[word[i]] < 0:
                product_of_word[word[i]] = known + unknown
                memcpy(vectors + unknown * W, <const floating*> model.W_embed + word[i] * W, W * sizeof(floating))
                unknown += 1
        if unknown > 0:
            multiply_few(few, products + known * ldg, ldg, <const floating*> vectors, W, model.Wx, few.Wx,
                         <const floating*> model.b, unknown, G, W, threads)
            known += unknown
        multiply_few(few, gates, ldg, <const floating*> h, ldh, model.Wh, few.Wh, <const floating*> NULL, rows, G, H,
                     threads)
        for i in range(rows):
            if word[i] >= 0:
                row_forward(model.cell, gates + i * ldg, h + i * ldh, c + i * ldh, <floating*> NULL,
                            <const floating*> products + product_of_word[word[i]] * ldg, <const floating*> h + i * ldh,
                            <const floating*> c + i * ldh, H)
        multiply_few(few, scores, ldv, <const floating*> h, ldh, model.W_vocab, few.W_vocab,
                     <const floating*> model.b_vocab, rows, model.V, H, threads)
        for i in range(rows):
            if word[i] < 0:
                continue
            word[i] = kernels.argmax(<const floating*> scores + i * ldv, model.V)
            captions[i * greedy.T + t] = <int32_t> word[i]
            if word[i] == greedy.end:
                word[i] = -1  # finished
                running -= 1
    denormals_restore(mode)


cdef int run(const Greedy* greedy, int32_t* captions, cnp.ndarray features, const floating* features_data) except -1:
    """Decode into captions (N, T). Entries after the end of a caption are not written."""
    cdef const Model* model = &greedy.model
    cdef int pass_
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t N = greedy.N, H = model.H, blocks, rows, q
    cdef int threads = threads_for(2.0 * N * greedy.T * H * (model.G + model.V))
    cdef Workspace scratch = Workspace()
    cdef Block block
    cdef FewRows few
    cdef PackedModel packed
    cdef Layout layout
    cdef Slices slices
    if N <= FEW_ROWS:
        for pass_ in range(2):
            scratch.begin(pass_)
            block = take_few(scratch, greedy, size)
            few = take_few_rows(scratch, model, N, size)
        with nogil:
            pack_few_rows(&few, model, threads)
            decode_few(greedy, &block, &few, captions, features_data, threads)
        return 0
    blocks = (N + BLOCK_ROWS * threads - 1) // (BLOCK_ROWS * threads) * threads
    rows = (N + blocks - 1) // blocks
    layout = layout_of(NULL, 0)
    take_block(&layout, greedy, rows, size)
    for pass_ in range(2):
        scratch.begin(pass_)
        packed = take_packed(scratch, model, N, True, size)
        slices = scratch.take_slices(threads, layout.used, 1)
    pack_model(&packed, model, features, threads)
    with nogil:
        for q in prange(blocks, num_threads=threads, schedule="static", chunksize=1):
            if share(N, q + 1, blocks, 1) > share(N, q, blocks, 1):
                decode_block(greedy, &packed, captions + share(N, q, blocks, 1) * greedy.T,
                             <const floating*> packed.h0 + share(N, q, blocks, 1) * model.ldh,
                             layout_of(slice_of(slices, threadid()), layout.used),
                             share(N, q + 1, blocks, 1) - share(N, q, blocks, 1))
    return 0


def decode(params, features, cell_type, ptrdiff_t start, end, ptrdiff_t null, ptrdiff_t max_length,
           precision="float32"):
    """Return greedy captions, int32 (N, max_length), padded with `null`.

    A caption stops at the id `end`, or never if `end` is None.
    """
    cdef ptrdiff_t end_id = -1 if end is None else end
    cdef Greedy greedy
    cdef tuple arrays = read_model(&greedy.model, params, features, cell_type, precision)
    cdef cnp.ndarray features_ = arrays[0], captions
    cdef ptrdiff_t V = greedy.model.V
    greedy.N, greedy.T, greedy.end = dim(features_, 0), max_length, end_id
    captions = np.full((greedy.N, max_length), null, dtype=np.int32)
    greedy.start = start + V if start < 0 else start
    if not 0 <= greedy.start < V:
        raise IndexError(f"<START> has the id {start}; expected an id in [{-V}, {V})")
    if greedy.N == 0 or greedy.T == 0:
        return captions
    if cnp.PyArray_TYPE(features_) == cnp.NPY_FLOAT32:
        run(&greedy, <int32_t*> data(captions), features_, <const float*> data(features_))
    else:
        run(&greedy, <int32_t*> data(captions), features_, <const double*> data(features_))
    return captions
