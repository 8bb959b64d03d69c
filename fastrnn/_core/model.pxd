"""The parameters of a captioner, for training and decoding."""

cimport numpy as cnp
from cython cimport floating
from libc.stddef cimport ptrdiff_t

from .cell cimport Cell
from .runtime cimport Workspace

cdef enum:
    FEW_ROWS = 4     # up to this many rows, decoding computes input products as words occur (FewRows)
    BLOCK_ROWS = 98  # rows whose scores are computed together: seven tiles, and the scores stay in the cache


cdef struct Model:
    const Cell* cell
    # features, word vectors, hidden units, columns of the gates, words
    ptrdiff_t D, W, H, G, V
    # row strides
    ptrdiff_t ldw, ldh, ldg, ldv
    bint bfloat16  # whether the operands of products are rounded to bfloat16
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


cdef struct FewRows:
    # The weights for decoding of a few rows: unpacked, or in bfloat16 packed. Packing them takes as long as reading
    # them about twice, and then each step reads half as much.
    bint bfloat16
    # panels in bfloat16, or NULL
    void* Wx
    void* Wh
    void* W_vocab
    void* rounded  # (rows, ldr) pairs, or NULL


cdef tuple read_model(Model* model, object params, object features, object cell_type, object precision)
cdef PackedModel take_packed(Workspace workspace, const Model* model, ptrdiff_t N, bint every_word,
                             size_t size) noexcept
cdef FewRows take_few_rows(Workspace workspace, const Model* model, ptrdiff_t rows, size_t size) noexcept
cdef void pack_few_rows(const FewRows* few, const Model* model, int threads) noexcept nogil
cdef void multiply_few(const FewRows* few, floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda,
                       const void* weights, const void* panels, const floating* bias, ptrdiff_t M, ptrdiff_t N,
                       ptrdiff_t K, int threads) noexcept nogil
cdef int pack_model(const PackedModel* packed, const Model* model, cnp.ndarray features, int threads) except -1
