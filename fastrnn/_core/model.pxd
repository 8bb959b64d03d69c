"""The parameters of a captioner, for training and decoding."""

cimport numpy as cnp
from libc.stddef cimport ptrdiff_t

from .cell cimport Cell
from .runtime cimport Workspace

cdef enum:
    FEW_ROWS = 4     # up to this many rows, decoding uses unpacked weights
    BLOCK_ROWS = 98  # rows whose scores are computed together: seven tiles, and the scores stay in the cache


cdef struct Model:
    const Cell* cell
    # features, word vectors, hidden units, columns of the gates, words
    ptrdiff_t D, W, H, G, V
    # row strides
    ptrdiff_t ldw, ldh, ldg, ldv
    const void* W_embed
    const void* W_proj
    const void* b_proj
    const void* Wx
    const void* Wh
    const void* b
    const void* W_vocab
    const void* b_vocab


cdef struct PackedModel:
    # What decoding computes once per call, in the element type of the parameters.
    void* Wx        # panels
    void* Wh
    void* W_vocab
    void* h0        # (N, ldh) initial states
    void* products  # (V, ldg) product of each word vector with Wx plus b, or NULL
    # scratch
    void* W_proj
    void* tiles


cdef tuple read_model(Model* model, object params, object features, object cell_type)
cdef PackedModel take_packed(Workspace workspace, const Model* model, ptrdiff_t N, bint every_word,
                             size_t size) noexcept
cdef int pack_model(const PackedModel* packed, const Model* model, cnp.ndarray features, int threads) except -1
