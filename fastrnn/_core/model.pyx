"""The parameters of a captioner: their names, the check of their shapes, and packing them for decoding."""

cimport numpy as cnp
from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

from .arrays cimport data, dim, floats
from .cell cimport Cell
from .products cimport (
    Operands, depth_of, leading_dimension, matrix, multiply, multiply_panels, multiply_strided, multiply_unpacked,
    pack_panels, panels_size, round_row, tiles_size,
)
from .runtime cimport Workspace, area, denormals_flush, denormals_restore, find_cell, panel_width, share

from .. import checks

cnp.import_array()

PARAM_NAMES = ("W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab", "b_vocab")


cdef tuple read_model(Model* model, object params, object features, object cell_type, object precision):
    """Fill in a model. Return the features and the parameters, in the order of PARAM_NAMES, as arrays of one dtype.

    The model points into these arrays, so the caller must keep them.
    """
    cdef const Cell* cell = find_cell(cell_type)
    cdef tuple arrays = floats(("features", *PARAM_NAMES), (features, *[params[name] for name in PARAM_NAMES]))
    cdef cnp.ndarray W_embed, W_proj, b_proj, Wx, Wh, b, W_vocab, b_vocab
    checks.match_model(dict(zip(("features", *PARAM_NAMES), arrays)), cell.gates)
    _, W_embed, W_proj, b_proj, Wx, Wh, b, W_vocab, b_vocab = arrays
    cdef size_t size = cnp.PyArray_ITEMSIZE(W_embed)
    model.cell, model.bfloat16 = cell, checks.is_bfloat16(precision, W_embed.dtype)
    model.D, model.H, model.V, model.W = dim(W_proj, 0), dim(W_proj, 1), dim(W_embed, 0), dim(W_embed, 1)
    model.G = cell.gates * model.H
    model.ldw, model.ldh = leading_dimension(model.W, size), leading_dimension(model.H, size)
    model.ldg, model.ldv = leading_dimension(model.G, size), leading_dimension(model.V, size)
    model.W_embed, model.W_proj, model.b_proj = data(W_embed), data(W_proj), data(b_proj)
    model.Wx, model.Wh, model.b = data(Wx), data(Wh), data(b)
    model.W_vocab, model.b_vocab = data(W_vocab), data(b_vocab)
    return arrays


cdef PackedModel take_packed(Workspace workspace, const Model* model, ptrdiff_t N, bint every_word,
                             size_t size) noexcept:
    """Take the memory of pack_model() for N images from a workspace, with the product of every word or without."""
    cdef PackedModel packed
    packed.h0 = workspace.take(area(N, model.ldh), size)
    packed.products = workspace.take(area(model.V, model.ldg), size) if every_word else NULL
    cdef ptrdiff_t W = depth_of(model.W, model.bfloat16), H = depth_of(model.H, model.bfloat16)
    packed.W_proj = workspace.take(panels_size(model.D, model.H, size), size)
    packed.Wx = workspace.take(panels_size(W, model.G, size), size)
    packed.Wh = workspace.take(panels_size(H, model.G, size), size)
    packed.W_vocab = workspace.take(panels_size(H, model.V, size), size)
    packed.tiles = workspace.take(
        max(tiles_size(N, model.D, size), tiles_size(model.V, W, size) if every_word else 0), size)
    return packed


cdef int pack_model(const PackedModel* packed, const Model* model, cnp.ndarray features, int threads) except -1:
    """Pack the weights, and compute the initial states and, if there is memory for them, the products of all words."""
    if cnp.PyArray_TYPE(features) == cnp.NPY_FLOAT32:
        pack_weights(packed, model, <const float*> data(features), dim(features, 0), threads)
    else:
        pack_weights(packed, model, <const double*> data(features), dim(features, 0), threads)
    return 0


cdef void pack_weights(const PackedModel* packed, const Model* model, const floating* features, ptrdiff_t N,
                       int threads) noexcept:
    cdef ptrdiff_t D = model.D, W = model.W, H = model.H, G = model.G, V = model.V
    cdef bint bfloat16 = model.bfloat16
    cdef floating* nowhere = NULL
    with nogil:
        multiply(<floating*> packed.h0, model.ldh, matrix(features, D), matrix(model.W_proj, H),
                 Operands(packed.tiles, packed.W_proj, False), <const floating*> model.b_proj, nowhere, N, H, D,
                 threads)
        pack_panels(<floating*> packed.Wx, 0, nowhere, matrix(model.Wx, G), W, G, bfloat16, threads)
        if packed.products != NULL:
            multiply_panels(<floating*> packed.products, model.ldg, matrix(model.W_embed, W),
                            Operands(packed.tiles, packed.Wx, bfloat16), <const floating*> model.b, V, G, W, threads)
        pack_panels(<floating*> packed.Wh, 0, nowhere, matrix(model.Wh, G), H, G, bfloat16, threads)
        pack_panels(<floating*> packed.W_vocab, 0, nowhere, matrix(model.W_vocab, V), H, V, bfloat16, threads)


# ---- A few rows ------------------------------------------------------------------------------------------------------

cdef FewRows take_few_rows(Workspace workspace, const Model* model, ptrdiff_t rows, size_t size) noexcept:
    """Take the memory of pack_few_rows() from a workspace."""
    cdef ptrdiff_t H = depth_of(model.H, True), W = depth_of(model.W, True)
    cdef FewRows few
    few.bfloat16 = model.bfloat16
    few.Wx = few.Wh = few.W_vocab = few.rounded = NULL
    if few.bfloat16:
        few.Wx = workspace.take(panels_size(W, model.G, size), size)
        few.Wh = workspace.take(panels_size(H, model.G, size), size)
        few.W_vocab = workspace.take(panels_size(H, model.V, size), size)
        few.rounded = workspace.take(area(rows, leading_dimension(max(H, W), size)), size)
    return few


cdef void pack_few_rows(const FewRows* few, const Model* model, int threads) noexcept nogil:
    """Pack the weights in bfloat16; in float32, do nothing."""
    cdef float* nowhere = NULL
    if few.bfloat16:
        pack_panels(<float*> few.Wx, 0, nowhere, matrix(model.Wx, model.G), model.W, model.G, True, threads)
        pack_panels(<float*> few.Wh, 0, nowhere, matrix(model.Wh, model.G), model.H, model.G, True, threads)
        pack_panels(<float*> few.W_vocab, 0, nowhere, matrix(model.W_vocab, model.V), model.H, model.V, True, threads)


cdef void multiply_few(const FewRows* few, floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda,
                       const void* weights, const void* panels, const floating* bias, ptrdiff_t M, ptrdiff_t N,
                       ptrdiff_t K, int threads) noexcept nogil:
    """C (M, N) = A (M, K) B + bias, with B in `weights`, and in bfloat16 also in `panels`. bias may be NULL."""
    cdef ptrdiff_t i, q, depth = depth_of(K, True), ldr = leading_dimension(depth, sizeof(floating))
    cdef floating* rounded = <floating*> few.rounded
    if not few.bfloat16:
        multiply_unpacked(C, ldc, A, lda, <const floating*> weights, N, bias, M, N, K, threads)
        return
    for i in range(M):
        round_row(rounded + i * ldr, A + i * lda, K)
    if threads == 1:
        multiply_columns(C, ldc, <const floating*> rounded, ldr, <const floating*> panels, bias, M, 0, N, depth)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        multiply_columns(C, ldc, <const floating*> rounded, ldr, <const floating*> panels, bias, M,
                         share(N, q, threads, panel_width(sizeof(floating))),
                         share(N, q + 1, threads, panel_width(sizeof(floating))), depth)


cdef void multiply_columns(floating* C, ptrdiff_t ldc, const floating* rounded, ptrdiff_t ldr, const floating* panels,
                           const floating* bias, ptrdiff_t M, ptrdiff_t n0, ptrdiff_t n1,
                           ptrdiff_t depth) noexcept nogil:
    """Columns [n0, n1) of a product in bfloat16."""
    cdef uint64_t mode
    if n1 <= n0 or M == 0:
        return
    mode = denormals_flush()
    multiply_strided(C + n0, ldc, rounded, ldr, panels + n0 * depth,
                     bias + n0 if bias != NULL else <const floating*> NULL, M, n1 - n0, depth, False, True)
    denormals_restore(mode)
