"""The parameters of a captioner: their names, the check of their shapes, and packing them for decoding."""

cimport numpy as cnp
from cython cimport floating
from libc.stddef cimport ptrdiff_t

from .arrays cimport data, dim, floats
from .cell cimport Cell
from .products cimport (
    Operands, leading_dimension, matrix, multiply, multiply_panels, pack_panels, panels_size, tiles_size,
)
from .runtime cimport Workspace, area, find_cell

from .. import checks

cnp.import_array()

PARAM_NAMES = ("W_embed", "W_proj", "b_proj", "Wx", "Wh", "b", "W_vocab", "b_vocab")


cdef tuple read_model(Model* model, object params, object features, object cell_type):
    """Fill in a model. Return the features and the parameters, in the order of PARAM_NAMES, as arrays of one dtype.

    The model points into these arrays, so the caller must keep them.
    """
    cdef const Cell* cell = find_cell(cell_type)
    cdef tuple arrays = floats(("features", *PARAM_NAMES), (features, *[params[name] for name in PARAM_NAMES]))
    cdef cnp.ndarray W_embed, W_proj, b_proj, Wx, Wh, b, W_vocab, b_vocab
    checks.match_model(dict(zip(("features", *PARAM_NAMES), arrays)), cell.gates)
    _, W_embed, W_proj, b_proj, Wx, Wh, b, W_vocab, b_vocab = arrays
    cdef size_t size = cnp.PyArray_ITEMSIZE(W_embed)
    model.cell = cell
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
    packed.W_proj = workspace.take(panels_size(model.D, model.H, size), size)
    packed.Wx = workspace.take(panels_size(model.W, model.G, size), size)
    packed.Wh = workspace.take(panels_size(model.H, model.G, size), size)
    packed.W_vocab = workspace.take(panels_size(model.H, model.V, size), size)
    packed.tiles = workspace.take(
        max(tiles_size(N, model.D, size), tiles_size(model.V, model.W, size) if every_word else 0), size)
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
    cdef floating* nowhere = NULL
    with nogil:
        multiply(<floating*> packed.h0, model.ldh, matrix(features, D), matrix(model.W_proj, H),
                 Operands(packed.tiles, packed.W_proj), <const floating*> model.b_proj, nowhere, N, H, D, threads)
        pack_panels(<floating*> packed.Wx, 0, nowhere, matrix(model.Wx, G), W, G, threads)
        if packed.products != NULL:
            multiply_panels(<floating*> packed.products, model.ldg, matrix(model.W_embed, W),
                            Operands(packed.tiles, packed.Wx), <const floating*> model.b, V, G, W, threads)
        pack_panels(<floating*> packed.Wh, 0, nowhere, matrix(model.Wh, G), H, G, threads)
        pack_panels(<floating*> packed.W_vocab, 0, nowhere, matrix(model.W_vocab, V), H, V, threads)
