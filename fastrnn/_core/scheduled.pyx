"""Scheduled sampling (Bengio et al. 2015): replace some input words of captions by words sampled from the model."""

import numpy as np

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memset

from . cimport kernels
from .arrays cimport data, dim, ids_of, new, wrap_ids
from .cell cimport row_forward
from .model cimport BLOCK_ROWS, Model, PackedModel, pack_model, read_model, take_packed
from .products cimport depth_of, gathered, multiply_rows, pack_rows, tiles_size
from .runtime cimport (
    Layout, Slices, Workspace, area, denormals_flush, denormals_restore, layout_of, random_key, share, slice_of, take,
    threads_for, uniform,
)

from .. import checks

cnp.import_array()


cdef struct Mixer:
    Model model
    ptrdiff_t N, T
    double probability
    uint64_t seed
    const ptrdiff_t* rows  # (N,) rows that the draws depend on, or NULL for 0 to N - 1


cdef struct Block:
    # The state of some rows.
    void* c                # (rows, ldh)
    # of the active rows of a step
    void* gates            # (active, ldg)
    void* scores           # (active, ldv)
    void* weights          # (V,)
    void* tiles
    ptrdiff_t* row         # (active,) index of the caption
    ptrdiff_t* vector_at   # (active,) offset of the word vector
    ptrdiff_t* h_at        # (active,) offset of h
    ptrdiff_t* sampled     # (active,) index of a caption whose next word is sampled


cdef Block take_block(Layout* layout, const Model* model, ptrdiff_t rows, size_t size) noexcept nogil:
    """Take the arrays for up to `rows` captions from a layout."""
    cdef Block block
    block.c = take(layout, area(rows, model.ldh), size)
    block.gates = take(layout, area(rows, model.ldg), size)
    block.scores = take(layout, area(rows, model.ldv), size)
    block.weights = take(layout, model.V, size)
    block.tiles = take(layout, tiles_size(rows, depth_of(max(model.H, model.W), model.bfloat16), size), size)
    block.row = <ptrdiff_t*> take(layout, rows, sizeof(ptrdiff_t))
    block.vector_at = <ptrdiff_t*> take(layout, rows, sizeof(ptrdiff_t))
    block.h_at = <ptrdiff_t*> take(layout, rows, sizeof(ptrdiff_t))
    block.sampled = <ptrdiff_t*> take(layout, rows, sizeof(ptrdiff_t))
    return block


cdef inline double draw(const Mixer* mixer, ptrdiff_t n, ptrdiff_t t, int unit) noexcept nogil:
    return uniform(random_key(mixer.seed, n if mixer.rows == NULL else mixer.rows[n], t), unit)


cdef inline bint is_sampled(const Mixer* mixer, ptrdiff_t n, ptrdiff_t t) noexcept nogil:
    """Return whether the input word of caption n at step t is to be sampled."""
    return t > 0 and draw(mixer, n, t, 0) < mixer.probability


cdef void mix_block(const Mixer* mixer, const PackedModel* packed, int32_t* inputs, const ptrdiff_t* steps,
                    floating* h, Layout layout, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    """Put sampled words into rows [first, last) of inputs (N, T).

    Row n runs for steps[n] steps. h (N, ldh) holds the initial states and is overwritten.
    """
    cdef const Model* model = &mixer.model
    cdef ptrdiff_t T = mixer.T, W = model.W, H = model.H, G = model.G, V = model.V
    cdef ptrdiff_t ldh = model.ldh, ldg = model.ldg, ldv = model.ldv
    cdef Block block = take_block(&layout, model, last - first, sizeof(floating))
    cdef floating* gates = <floating*> block.gates
    cdef floating* c = <floating*> block.c
    cdef floating* scores = <floating*> block.scores
    cdef floating* weights = <floating*> block.weights
    cdef floating* tiles = <floating*> block.tiles
    cdef floating* h_row
    cdef floating* c_row
    cdef ptrdiff_t t, n, i, active, sampled, word
    cdef double total
    cdef bint bfloat16 = model.bfloat16
    cdef uint64_t mode = denormals_flush()
    memset(c, 0, (last - first) * ldh * sizeof(floating))
    for t in range(T):
        active = 0
        for n in range(first, last):
            if steps[n] > t:
                block.row[active] = n
                block.vector_at[active] = inputs[n * T + t] * W
                block.h_at[active] = n * ldh
                active += 1
        if active == 0:
            break
        pack_rows(tiles, gathered(model.W_embed, block.vector_at), active, W, bfloat16)
        multiply_rows(gates, ldg, <const floating*> tiles, <const floating*> packed.Wx, <const floating*> model.b,
                      active, G, depth_of(W, bfloat16), False, bfloat16)
        pack_rows(tiles, gathered(h, block.h_at), active, H, bfloat16)
        multiply_rows(gates, ldg, <const floating*> tiles, <const floating*> packed.Wh, <const floating*> NULL, active,
                      G, depth_of(H, bfloat16), True, bfloat16)
        sampled = 0
        for i in range(active):
            n = block.row[i]
            h_row = h + n * ldh
            c_row = c + (n - first) * ldh
            row_forward(model.cell, gates + i * ldg, h_row, c_row, <floating*> NULL, <const floating*> NULL,
                        <const floating*> h_row, <const floating*> c_row, H)
            if is_sampled(mixer, n, t + 1):
                block.sampled[sampled] = n
                block.h_at[sampled] = n * ldh
                sampled += 1
        if sampled == 0:
            continue
        pack_rows(tiles, gathered(h, block.h_at), sampled, H, bfloat16)
        multiply_rows(scores, ldv, <const floating*> tiles, <const floating*> packed.W_vocab,
                      <const floating*> model.b_vocab, sampled, V, depth_of(H, bfloat16),
                      False, bfloat16)
        for i in range(sampled):
            n = block.sampled[i]
            total = kernels.word_weights(weights, <const floating*> scores + i * ldv, V, <floating> 1,
                                         <floating> -INFINITY, V)
            word = kernels.word_at(<const floating*> weights, V, total * draw(mixer, n, t + 1, 1))
            if word >= 0:  # with scores that are not finite, keep the word of the caption
                inputs[n * T + t + 1] = <int32_t> word
    denormals_restore(mode)


cdef int run(const Mixer* mixer, int32_t* inputs, const ptrdiff_t* steps, double work, cnp.ndarray features,
             const floating* of_type) except -1:
    """Put sampled words into inputs (N, T). `work` is the sum of steps (N,); of_type only tells the element type."""
    cdef const Model* model = &mixer.model
    cdef int pass_
    cdef size_t size = sizeof(floating)
    cdef ptrdiff_t N = mixer.N, q, blocks, rows
    cdef Workspace scratch = Workspace()
    cdef PackedModel packed
    cdef Layout layout = layout_of(NULL, 0)
    cdef Slices slices
    cdef int threads = threads_for(2.0 * work * model.H * (model.G + mixer.probability * model.V))
    blocks = (N + BLOCK_ROWS * threads - 1) // (BLOCK_ROWS * threads) * threads
    rows = (N + blocks - 1) // blocks
    take_block(&layout, model, rows, size)
    for pass_ in range(2):
        scratch.begin(pass_)
        packed = take_packed(scratch, model, N, False, size)
        slices = scratch.take_slices(threads, layout.used, 1)
    pack_model(&packed, model, features, threads)
    with nogil:
        for q in prange(blocks, num_threads=threads, schedule="static", chunksize=1):
            if share(N, q + 1, blocks, 1) > share(N, q, blocks, 1):
                mix_block(mixer, &packed, inputs, steps, <floating*> packed.h0,
                          layout_of(slice_of(slices, threadid()), layout.used), share(N, q, blocks, 1),
                          share(N, q + 1, blocks, 1))
    return 0


def mix(params, features, captions, double probability, uint64_t seed, null, cell_type, precision="float32",
        rows=None):
    """Return the input words of scheduled sampling, int32 (N, T), for captions (N, T + 1) of integers.

    The first input of a row is that of its caption. Each later input is, with the given probability, a word sampled
    from the softmax of the model after the inputs before it, and otherwise the word of the caption. Inputs after the
    last target that is not `null` are not replaced. The random numbers depend on seed, row and time step only
    (src_c/random.h): unit 0 decides whether a word is sampled, unit 1 which one. `rows` (N,) are the rows of the
    captions in the batch that they are a part of.
    """
    cdef cnp.ndarray captions_ = ids_of("captions", captions), wrapped, steps_, inputs
    cdef cnp.ndarray rows_ = None if rows is None else np.array(rows, np.intp)
    cdef ptrdiff_t null_id = null
    cdef Mixer mixer
    cdef tuple arrays = read_model(&mixer.model, params, features, cell_type, precision)
    cdef cnp.ndarray features_ = arrays[0]
    cdef ptrdiff_t n, t, last, N = dim(features_, 0), T, V = mixer.model.V, work = 0
    cdef const cnp.npy_intp* ids = <cnp.npy_intp*> data(captions_)
    cdef ptrdiff_t* steps
    checks.match_shapes({"N": N}, captions=(captions_, "N L"))
    T = max(dim(captions_, 1) - 1, 0)
    mixer.N, mixer.T, mixer.probability, mixer.seed, mixer.rows = N, T, probability, seed, NULL
    if rows_ is not None:
        checks.match_shapes({"N": N}, rows=(rows_, "N"))
        mixer.rows = <ptrdiff_t*> data(rows_)
    wrapped = new(cnp.NPY_INTP, 2, N, dim(captions_, 1))
    if not wrap_ids(<ptrdiff_t*> data(wrapped), ids, N * dim(captions_, 1), V):
        checks.check_ids("captions", captions_, V)
    inputs = wrapped[:, :T].astype(np.int32, order="C")
    steps_ = new(cnp.NPY_INTP, 1, N)
    steps = <ptrdiff_t*> data(steps_)
    for n in range(N):
        last = steps[n] = 0
        for t in range(T):
            if ids[n * (T + 1) + t + 1] != null_id:
                last = t
        # up to the last input that is sampled
        for t in range(1, last + 1):
            if is_sampled(&mixer, n, t):
                steps[n] = t
        work += steps[n]
    if work == 0:
        return inputs
    if cnp.PyArray_TYPE(features_) == cnp.NPY_FLOAT32:
        run(&mixer, <int32_t*> data(inputs), steps, work, features_, <const float*> data(features_))
    else:
        run(&mixer, <int32_t*> data(inputs), steps, work, features_, <const double*> data(features_))
    return inputs
