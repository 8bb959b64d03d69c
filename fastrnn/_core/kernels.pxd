"""The door to C: the kernels for either element type, threads, memory. See src_c/kernels.h for what each one does."""

from cython cimport floating
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t, uint64_t

cdef void gemm_pack(
        floating* packed, ptrdiff_t step, floating* colsum, const floating* B, const ptrdiff_t* row,
        ptrdiff_t rs, ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last) noexcept nogil
cdef void gemm_pack_rows(
        floating* packed, ptrdiff_t step, const floating* A, const ptrdiff_t* row, ptrdiff_t rs,
        const ptrdiff_t* col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height, ptrdiff_t first,
        ptrdiff_t last) noexcept nogil
cdef void gemm(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t rs, ptrdiff_t cs, const floating* packed,
        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil
cdef void gemm_unpacked(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t rs, ptrdiff_t cs, const floating* B,
        ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil
cdef void gemm_tiles(
        floating* C, ptrdiff_t ldc, const floating* tiles, ptrdiff_t height, const floating* packed,
        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil
cdef void gemm_thin(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B, ptrdiff_t ldb,
        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil
cdef void gemm_thin_transposed(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B, ptrdiff_t ldb,
        ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil
cdef void gemm_outer(
        floating* C, ptrdiff_t ldc, floating* colsum, const floating* A, ptrdiff_t lda, const floating* B,
        ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil
cdef void rnn_gates_forward(
        floating* h, floating* h_out, const floating* a, const floating* input, ptrdiff_t H) noexcept nogil
cdef void rnn_gates_backward(
        floating* da, const floating* dh, const floating* dh_next, const floating* h, ptrdiff_t H) noexcept nogil
cdef void lstm_gates_forward(
        floating* gates, floating* c, floating* h, floating* h_out, const floating* input,
        const floating* c_prev, ptrdiff_t H) noexcept nogil
cdef void lstm_gates_backward(
        floating* da, floating* dc, const floating* dh, const floating* dh_next, const floating* gates,
        const floating* c, const floating* c_prev, ptrdiff_t H) noexcept nogil
cdef double softmax_loss(
        floating* dx, const floating* x, ptrdiff_t V, ptrdiff_t target, floating weight,
        double smoothing) noexcept nogil
cdef ptrdiff_t argmax(const floating* x, ptrdiff_t n) noexcept nogil
cdef double top_words(
        floating* value, ptrdiff_t* word, ptrdiff_t* count, const floating* x, ptrdiff_t V, ptrdiff_t k) noexcept nogil
cdef double word_weights(
        floating* weight, const floating* x, ptrdiff_t V, floating scale, floating floor,
        ptrdiff_t last) noexcept nogil
cdef ptrdiff_t word_at(const floating* weight, ptrdiff_t V, double mass) noexcept nogil
cdef void rows_sum(floating* out, const floating* x, const ptrdiff_t* row, ptrdiff_t rows, ptrdiff_t n) noexcept nogil
cdef void exp(floating* y, const floating* x, ptrdiff_t n) noexcept nogil
cdef void log(floating* y, const floating* x, ptrdiff_t n) noexcept nogil
cdef void tanh(floating* y, const floating* x, ptrdiff_t n) noexcept nogil
cdef void sigmoid(floating* y, const floating* x, ptrdiff_t n) noexcept nogil
cdef void sgd(floating* w, const floating* dw, ptrdiff_t n, double learning_rate) noexcept nogil
cdef void sgd_momentum(
        floating* w, floating* next, const floating* velocity, const floating* dw, ptrdiff_t n,
        double learning_rate, double momentum) noexcept nogil
cdef void rmsprop(
        floating* w, floating* next, const floating* cache, const floating* dw, ptrdiff_t n,
        double learning_rate, double decay_rate, double epsilon) noexcept nogil
cdef void adam(
        floating* w, floating* next_m, floating* next_v, const floating* m, const floating* v,
        const floating* dw, ptrdiff_t n, double alpha, double beta1, double beta2, double epsilon,
        double keep) noexcept nogil
cdef void clip(floating* x, ptrdiff_t n, double limit) noexcept nogil
cdef void scale(floating* x, ptrdiff_t n, double factor) noexcept nogil
cdef double sum_of_squares(const floating* x, ptrdiff_t n) noexcept nogil
cdef void average(floating* mean, const floating* w, ptrdiff_t n, double rate) noexcept nogil
cdef void dropout(floating* y, const floating* x, ptrdiff_t n, uint32_t key, double rate) noexcept nogil

cdef extern from "random.h" nogil:
    uint32_t random_key "frn_random_key"(uint64_t seed, uint64_t row, uint64_t t)
    double uniform "frn_uniform"(uint32_t key, uint32_t unit)

cdef extern from "sizes.h" nogil:
    const ptrdiff_t TOO_LARGE "FRN_TOO_LARGE"
    ptrdiff_t area "frn_area"(ptrdiff_t a, ptrdiff_t b)
    size_t room "frn_room"(ptrdiff_t count, size_t size)
    ptrdiff_t share "frn_share"(ptrdiff_t count, ptrdiff_t q, ptrdiff_t parts, ptrdiff_t unit)

cdef extern from "debug.h" nogil:
    const bint DEBUGGING "FRN_HAS_DEBUG"
    void spoil "frn_spoil"(void* memory, size_t bytes)
    void poison "frn_poison"(void* memory, size_t bytes)
    void unpoison "frn_unpoison"(void* memory, size_t bytes)

cdef uint64_t denormals_flush() noexcept nogil
cdef void denormals_restore(uint64_t mode) noexcept nogil
cdef double seconds() noexcept nogil

# the lock of fastrnn.h, for what is shared between threads: no call into Python while it is held
cdef void lock() noexcept nogil
cdef void unlock() noexcept nogil

cdef int threads_for(double work) noexcept nogil


cdef void* block_alloc(size_t size, size_t* got) noexcept
cdef void block_free(void* memory, size_t size) noexcept

cdef class Workspace:
    cdef char* memory
    cdef size_t capacity
    cdef size_t used
    cdef bint held, counting
    cdef int hold(self) except -1
    cdef void release(self) noexcept
    cdef int begin(self, int lap) except -1
    cdef int reserve(self, size_t size) except -1
    cdef void* take(self, ptrdiff_t count, size_t size) noexcept
    cdef void* take_each(self, ptrdiff_t parts, ptrdiff_t count, size_t size) noexcept


cdef ptrdiff_t leading(ptrdiff_t columns, size_t size) noexcept nogil
cdef ptrdiff_t packed_size(ptrdiff_t K, ptrdiff_t N, size_t size) noexcept nogil
cdef ptrdiff_t tiles_size(ptrdiff_t M, ptrdiff_t K, size_t size) noexcept nogil
cdef ptrdiff_t panel_width(size_t size) noexcept nogil
cdef ptrdiff_t tile_height(ptrdiff_t M, size_t size) noexcept nogil
cdef void pack(floating* packed, ptrdiff_t step, floating* colsum, const floating* B, const ptrdiff_t* row,
               ptrdiff_t rs, ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, int threads) noexcept nogil
cdef void pack_tiles(floating* tiles, const floating* A, const ptrdiff_t* row, ptrdiff_t rs,
                     const ptrdiff_t* col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, int threads) noexcept nogil
cdef void multiply(floating* C, ptrdiff_t ldc, const floating* tiles, const floating* packed,
                   const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, bint accumulate,
                   int threads) noexcept nogil
