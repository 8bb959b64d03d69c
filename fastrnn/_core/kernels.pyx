"""The door to C: kernels, instruction set, threads, memory; and the one door of every large matrix product."""

from cython cimport floating
from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport abort

cdef extern from "fastrnn.h" nogil:
    const char* frn_choose_isa(const char* cap)
    ptrdiff_t frn_panel_width(size_t size)
    ptrdiff_t frn_tile_height(size_t size)
    double frn_fma_flops(size_t size, ptrdiff_t rounds)
    uint64_t frn_denormals_flush()
    void frn_denormals_restore(uint64_t mode)
    void* frn_alloc(size_t size)
    void frn_free(void* memory)
    void frn_lock()
    void frn_unlock()
    void frn_set_threads(int count)
    int frn_threads()
    int frn_forked()
    double frn_seconds()
    void (*frn_gemm_pack_f32)(
            float* packed, ptrdiff_t step, float* colsum, const float* B, const ptrdiff_t* row, ptrdiff_t rs,
            ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last)
    void (*frn_gemm_pack_f64)(
            double* packed, ptrdiff_t step, double* colsum, const double* B, const ptrdiff_t* row, ptrdiff_t rs,
            ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last)
    void (*frn_gemm_pack_rows_f32)(
            float* packed, ptrdiff_t step, const float* A, const ptrdiff_t* row, ptrdiff_t rs,
            const ptrdiff_t* col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height, ptrdiff_t first,
            ptrdiff_t last)
    void (*frn_gemm_pack_rows_f64)(
            double* packed, ptrdiff_t step, const double* A, const ptrdiff_t* row, ptrdiff_t rs,
            const ptrdiff_t* col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height, ptrdiff_t first,
            ptrdiff_t last)
    void (*frn_gemm_f32)(
            float* C, ptrdiff_t ldc, const float* A, ptrdiff_t rs, ptrdiff_t cs, const float* packed,
            const float* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_f64)(
            double* C, ptrdiff_t ldc, const double* A, ptrdiff_t rs, ptrdiff_t cs, const double* packed,
            const double* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_unpacked_f32)(
            float* C, ptrdiff_t ldc, const float* A, ptrdiff_t rs, ptrdiff_t cs, const float* B, ptrdiff_t ldb,
            const float* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_unpacked_f64)(
            double* C, ptrdiff_t ldc, const double* A, ptrdiff_t rs, ptrdiff_t cs, const double* B,
            ptrdiff_t ldb, const double* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_tiles_f32)(
            float* C, ptrdiff_t ldc, const float* tiles, ptrdiff_t height, const float* packed,
            const float* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_tiles_f64)(
            double* C, ptrdiff_t ldc, const double* tiles, ptrdiff_t height, const double* packed,
            const double* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_thin_f32)(
            float* C, ptrdiff_t ldc, const float* A, ptrdiff_t lda, const float* B, ptrdiff_t ldb,
            const float* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_thin_f64)(
            double* C, ptrdiff_t ldc, const double* A, ptrdiff_t lda, const double* B, ptrdiff_t ldb,
            const double* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_thin_transposed_f32)(
            float* C, ptrdiff_t ldc, const float* A, ptrdiff_t lda, const float* B, ptrdiff_t ldb, ptrdiff_t M,
            ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_thin_transposed_f64)(
            double* C, ptrdiff_t ldc, const double* A, ptrdiff_t lda, const double* B, ptrdiff_t ldb,
            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_outer_f32)(
            float* C, ptrdiff_t ldc, float* colsum, const float* A, ptrdiff_t lda, const float* B,
            ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_gemm_outer_f64)(
            double* C, ptrdiff_t ldc, double* colsum, const double* A, ptrdiff_t lda, const double* B,
            ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate)
    void (*frn_rnn_gates_forward_f32)(float* h, float* h_out, const float* a, const float* input, ptrdiff_t H)
    void (*frn_rnn_gates_forward_f64)(double* h, double* h_out, const double* a, const double* input, ptrdiff_t H)
    void (*frn_rnn_gates_backward_f32)(float* da, const float* dh, const float* dh_next, const float* h, ptrdiff_t H)
    void (*frn_rnn_gates_backward_f64)(
            double* da, const double* dh, const double* dh_next, const double* h, ptrdiff_t H)
    void (*frn_lstm_gates_forward_f32)(
            float* gates, float* c, float* h, float* h_out, const float* input, const float* c_prev,
            ptrdiff_t H)
    void (*frn_lstm_gates_forward_f64)(
            double* gates, double* c, double* h, double* h_out, const double* input, const double* c_prev,
            ptrdiff_t H)
    void (*frn_lstm_gates_backward_f32)(
            float* da, float* dc, const float* dh, const float* dh_next, const float* gates, const float* c,
            const float* c_prev, ptrdiff_t H)
    void (*frn_lstm_gates_backward_f64)(
            double* da, double* dc, const double* dh, const double* dh_next, const double* gates,
            const double* c, const double* c_prev, ptrdiff_t H)
    double (*frn_softmax_loss_f32)(
            float* dx, const float* x, ptrdiff_t V, ptrdiff_t target, float weight, double smoothing)
    double (*frn_softmax_loss_f64)(
            double* dx, const double* x, ptrdiff_t V, ptrdiff_t target, double weight, double smoothing)
    ptrdiff_t (*frn_argmax_f32)(const float* x, ptrdiff_t n)
    ptrdiff_t (*frn_argmax_f64)(const double* x, ptrdiff_t n)
    double (*frn_top_words_f32)(
            float* value, ptrdiff_t* word, ptrdiff_t* count, const float* x, ptrdiff_t V, ptrdiff_t k)
    double (*frn_top_words_f64)(
            double* value, ptrdiff_t* word, ptrdiff_t* count, const double* x, ptrdiff_t V, ptrdiff_t k)
    double (*frn_word_weights_f32)(
            float* weight, const float* x, ptrdiff_t V, float scale, float floor, ptrdiff_t last)
    double (*frn_word_weights_f64)(
            double* weight, const double* x, ptrdiff_t V, double scale, double floor, ptrdiff_t last)
    ptrdiff_t (*frn_word_at_f32)(const float* weight, ptrdiff_t V, double mass)
    ptrdiff_t (*frn_word_at_f64)(const double* weight, ptrdiff_t V, double mass)
    void (*frn_rows_sum_f32)(float* out, const float* x, const ptrdiff_t* row, ptrdiff_t rows, ptrdiff_t n)
    void (*frn_rows_sum_f64)(double* out, const double* x, const ptrdiff_t* row, ptrdiff_t rows, ptrdiff_t n)
    void (*frn_exp_f32)(float* y, const float* x, ptrdiff_t n)
    void (*frn_exp_f64)(double* y, const double* x, ptrdiff_t n)
    void (*frn_log_f32)(float* y, const float* x, ptrdiff_t n)
    void (*frn_log_f64)(double* y, const double* x, ptrdiff_t n)
    void (*frn_tanh_f32)(float* y, const float* x, ptrdiff_t n)
    void (*frn_tanh_f64)(double* y, const double* x, ptrdiff_t n)
    void (*frn_sigmoid_f32)(float* y, const float* x, ptrdiff_t n)
    void (*frn_sigmoid_f64)(double* y, const double* x, ptrdiff_t n)
    void (*frn_sgd_f32)(float* w, const float* dw, ptrdiff_t n, double learning_rate)
    void (*frn_sgd_f64)(double* w, const double* dw, ptrdiff_t n, double learning_rate)
    void (*frn_sgd_momentum_f32)(
            float* w, float* next, const float* velocity, const float* dw, ptrdiff_t n, double learning_rate,
            double momentum)
    void (*frn_sgd_momentum_f64)(
            double* w, double* next, const double* velocity, const double* dw, ptrdiff_t n,
            double learning_rate, double momentum)
    void (*frn_rmsprop_f32)(
            float* w, float* next, const float* cache, const float* dw, ptrdiff_t n, double learning_rate,
            double decay_rate, double epsilon)
    void (*frn_rmsprop_f64)(
            double* w, double* next, const double* cache, const double* dw, ptrdiff_t n, double learning_rate,
            double decay_rate, double epsilon)
    void (*frn_adam_f32)(
            float* w, float* next_m, float* next_v, const float* m, const float* v, const float* dw,
            ptrdiff_t n, double alpha, double beta1, double beta2, double epsilon, double keep)
    void (*frn_clip_f32)(float* x, ptrdiff_t n, double limit)
    void (*frn_scale_f32)(float* x, ptrdiff_t n, double factor)
    double (*frn_sum_of_squares_f32)(const float* x, ptrdiff_t n)
    void (*frn_average_f32)(float* mean, const float* w, ptrdiff_t n, double rate)
    void (*frn_dropout_f32)(float* y, const float* x, ptrdiff_t n, uint32_t key, double rate)
    void (*frn_adam_f64)(
            double* w, double* next_m, double* next_v, const double* m, const double* v, const double* dw,
            ptrdiff_t n, double alpha, double beta1, double beta2, double epsilon, double keep)
    void (*frn_clip_f64)(double* x, ptrdiff_t n, double limit)
    void (*frn_scale_f64)(double* x, ptrdiff_t n, double factor)
    double (*frn_sum_of_squares_f64)(const double* x, ptrdiff_t n)
    void (*frn_average_f64)(double* mean, const double* w, ptrdiff_t n, double rate)
    void (*frn_dropout_f64)(double* y, const double* x, ptrdiff_t n, uint32_t key, double rate)


cdef void gemm_pack(
        floating* packed, ptrdiff_t step, floating* colsum, const floating* B, const ptrdiff_t* row,
        ptrdiff_t rs, ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, ptrdiff_t first, ptrdiff_t last) noexcept nogil:
    if floating is float:
        frn_gemm_pack_f32(packed, step, colsum, B, row, rs, cs, K, N, first, last)
    else:
        frn_gemm_pack_f64(packed, step, colsum, B, row, rs, cs, K, N, first, last)


cdef void gemm_pack_rows(
        floating* packed, ptrdiff_t step, const floating* A, const ptrdiff_t* row, ptrdiff_t rs,
        const ptrdiff_t* col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, ptrdiff_t height, ptrdiff_t first,
        ptrdiff_t last) noexcept nogil:
    if floating is float:
        frn_gemm_pack_rows_f32(packed, step, A, row, rs, col, cs, M, K, height, first, last)
    else:
        frn_gemm_pack_rows_f64(packed, step, A, row, rs, col, cs, M, K, height, first, last)


cdef void gemm(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t rs, ptrdiff_t cs, const floating* packed,
        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil:
    if floating is float:
        frn_gemm_f32(C, ldc, A, rs, cs, packed, bias, M, N, K, accumulate)
    else:
        frn_gemm_f64(C, ldc, A, rs, cs, packed, bias, M, N, K, accumulate)


cdef void gemm_unpacked(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t rs, ptrdiff_t cs, const floating* B,
        ptrdiff_t ldb, const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil:
    if floating is float:
        frn_gemm_unpacked_f32(C, ldc, A, rs, cs, B, ldb, bias, M, N, K, accumulate)
    else:
        frn_gemm_unpacked_f64(C, ldc, A, rs, cs, B, ldb, bias, M, N, K, accumulate)


cdef void gemm_tiles(
        floating* C, ptrdiff_t ldc, const floating* tiles, ptrdiff_t height, const floating* packed,
        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil:
    if floating is float:
        frn_gemm_tiles_f32(C, ldc, tiles, height, packed, bias, M, N, K, accumulate)
    else:
        frn_gemm_tiles_f64(C, ldc, tiles, height, packed, bias, M, N, K, accumulate)


cdef void gemm_thin(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B, ptrdiff_t ldb,
        const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil:
    if floating is float:
        frn_gemm_thin_f32(C, ldc, A, lda, B, ldb, bias, M, N, K, accumulate)
    else:
        frn_gemm_thin_f64(C, ldc, A, lda, B, ldb, bias, M, N, K, accumulate)


cdef void gemm_thin_transposed(
        floating* C, ptrdiff_t ldc, const floating* A, ptrdiff_t lda, const floating* B, ptrdiff_t ldb,
        ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil:
    if floating is float:
        frn_gemm_thin_transposed_f32(C, ldc, A, lda, B, ldb, M, N, K, accumulate)
    else:
        frn_gemm_thin_transposed_f64(C, ldc, A, lda, B, ldb, M, N, K, accumulate)


cdef void gemm_outer(
        floating* C, ptrdiff_t ldc, floating* colsum, const floating* A, ptrdiff_t lda, const floating* B,
        ptrdiff_t ldb, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, int accumulate) noexcept nogil:
    if floating is float:
        frn_gemm_outer_f32(C, ldc, colsum, A, lda, B, ldb, M, N, K, accumulate)
    else:
        frn_gemm_outer_f64(C, ldc, colsum, A, lda, B, ldb, M, N, K, accumulate)


cdef void rnn_gates_forward(
        floating* h, floating* h_out, const floating* a, const floating* input, ptrdiff_t H) noexcept nogil:
    if floating is float:
        frn_rnn_gates_forward_f32(h, h_out, a, input, H)
    else:
        frn_rnn_gates_forward_f64(h, h_out, a, input, H)


cdef void rnn_gates_backward(
        floating* da, const floating* dh, const floating* dh_next, const floating* h, ptrdiff_t H) noexcept nogil:
    if floating is float:
        frn_rnn_gates_backward_f32(da, dh, dh_next, h, H)
    else:
        frn_rnn_gates_backward_f64(da, dh, dh_next, h, H)


cdef void lstm_gates_forward(
        floating* gates, floating* c, floating* h, floating* h_out, const floating* input,
        const floating* c_prev, ptrdiff_t H) noexcept nogil:
    if floating is float:
        frn_lstm_gates_forward_f32(gates, c, h, h_out, input, c_prev, H)
    else:
        frn_lstm_gates_forward_f64(gates, c, h, h_out, input, c_prev, H)


cdef void lstm_gates_backward(
        floating* da, floating* dc, const floating* dh, const floating* dh_next, const floating* gates,
        const floating* c, const floating* c_prev, ptrdiff_t H) noexcept nogil:
    if floating is float:
        frn_lstm_gates_backward_f32(da, dc, dh, dh_next, gates, c, c_prev, H)
    else:
        frn_lstm_gates_backward_f64(da, dc, dh, dh_next, gates, c, c_prev, H)


cdef double softmax_loss(
        floating* dx, const floating* x, ptrdiff_t V, ptrdiff_t target, floating weight,
        double smoothing) noexcept nogil:
    if floating is float:
        return frn_softmax_loss_f32(dx, x, V, target, weight, smoothing)
    else:
        return frn_softmax_loss_f64(dx, x, V, target, weight, smoothing)


cdef ptrdiff_t argmax(const floating* x, ptrdiff_t n) noexcept nogil:
    if floating is float:
        return frn_argmax_f32(x, n)
    else:
        return frn_argmax_f64(x, n)


cdef double top_words(
        floating* value, ptrdiff_t* word, ptrdiff_t* count, const floating* x, ptrdiff_t V,
        ptrdiff_t k) noexcept nogil:
    if floating is float:
        return frn_top_words_f32(value, word, count, x, V, k)
    else:
        return frn_top_words_f64(value, word, count, x, V, k)


cdef double word_weights(
        floating* weight, const floating* x, ptrdiff_t V, floating scale, floating floor,
        ptrdiff_t last) noexcept nogil:
    if floating is float:
        return frn_word_weights_f32(weight, x, V, scale, floor, last)
    else:
        return frn_word_weights_f64(weight, x, V, scale, floor, last)


cdef ptrdiff_t word_at(const floating* weight, ptrdiff_t V, double mass) noexcept nogil:
    if floating is float:
        return frn_word_at_f32(weight, V, mass)
    else:
        return frn_word_at_f64(weight, V, mass)


cdef void rows_sum(
        floating* out, const floating* x, const ptrdiff_t* row, ptrdiff_t rows, ptrdiff_t n) noexcept nogil:
    if floating is float:
        frn_rows_sum_f32(out, x, row, rows, n)
    else:
        frn_rows_sum_f64(out, x, row, rows, n)


cdef void exp(floating* y, const floating* x, ptrdiff_t n) noexcept nogil:
    if floating is float:
        frn_exp_f32(y, x, n)
    else:
        frn_exp_f64(y, x, n)


cdef void log(floating* y, const floating* x, ptrdiff_t n) noexcept nogil:
    if floating is float:
        frn_log_f32(y, x, n)
    else:
        frn_log_f64(y, x, n)


cdef void tanh(floating* y, const floating* x, ptrdiff_t n) noexcept nogil:
    if floating is float:
        frn_tanh_f32(y, x, n)
    else:
        frn_tanh_f64(y, x, n)


cdef void sigmoid(floating* y, const floating* x, ptrdiff_t n) noexcept nogil:
    if floating is float:
        frn_sigmoid_f32(y, x, n)
    else:
        frn_sigmoid_f64(y, x, n)


cdef void sgd(floating* w, const floating* dw, ptrdiff_t n, double learning_rate) noexcept nogil:
    if floating is float:
        frn_sgd_f32(w, dw, n, learning_rate)
    else:
        frn_sgd_f64(w, dw, n, learning_rate)


cdef void sgd_momentum(
        floating* w, floating* next, const floating* velocity, const floating* dw, ptrdiff_t n,
        double learning_rate, double momentum) noexcept nogil:
    if floating is float:
        frn_sgd_momentum_f32(w, next, velocity, dw, n, learning_rate, momentum)
    else:
        frn_sgd_momentum_f64(w, next, velocity, dw, n, learning_rate, momentum)


cdef void rmsprop(
        floating* w, floating* next, const floating* cache, const floating* dw, ptrdiff_t n,
        double learning_rate, double decay_rate, double epsilon) noexcept nogil:
    if floating is float:
        frn_rmsprop_f32(w, next, cache, dw, n, learning_rate, decay_rate, epsilon)
    else:
        frn_rmsprop_f64(w, next, cache, dw, n, learning_rate, decay_rate, epsilon)


cdef void adam(
        floating* w, floating* next_m, floating* next_v, const floating* m, const floating* v,
        const floating* dw, ptrdiff_t n, double alpha, double beta1, double beta2, double epsilon,
        double keep) noexcept nogil:
    if floating is float:
        frn_adam_f32(w, next_m, next_v, m, v, dw, n, alpha, beta1, beta2, epsilon, keep)
    else:
        frn_adam_f64(w, next_m, next_v, m, v, dw, n, alpha, beta1, beta2, epsilon, keep)


cdef void clip(floating* x, ptrdiff_t n, double limit) noexcept nogil:
    if floating is float:
        frn_clip_f32(x, n, limit)
    else:
        frn_clip_f64(x, n, limit)


cdef void scale(floating* x, ptrdiff_t n, double factor) noexcept nogil:
    if floating is float:
        frn_scale_f32(x, n, factor)
    else:
        frn_scale_f64(x, n, factor)


cdef double sum_of_squares(const floating* x, ptrdiff_t n) noexcept nogil:
    if floating is float:
        return frn_sum_of_squares_f32(x, n)
    else:
        return frn_sum_of_squares_f64(x, n)


cdef void average(floating* mean, const floating* w, ptrdiff_t n, double rate) noexcept nogil:
    if floating is float:
        frn_average_f32(mean, w, n, rate)
    else:
        frn_average_f64(mean, w, n, rate)


cdef void dropout(floating* y, const floating* x, ptrdiff_t n, uint32_t key, double rate) noexcept nogil:
    if floating is float:
        frn_dropout_f32(y, x, n, key, rate)
    else:
        frn_dropout_f64(y, x, n, key, rate)


cdef uint64_t denormals_flush() noexcept nogil:
    return frn_denormals_flush()


cdef void denormals_restore(uint64_t mode) noexcept nogil:
    frn_denormals_restore(mode)


cdef double seconds() noexcept nogil:
    return frn_seconds()


cdef void lock() noexcept nogil:
    frn_lock()


cdef void unlock() noexcept nogil:
    frn_unlock()


# ---- Instruction set and threads -------------------------------------------------------------------------------------

cdef extern from *:
    """
    #if defined(_OPENMP)
    #define FRN_OPENMP _OPENMP
    #else
    #define FRN_OPENMP 0
    #endif
    """
    const int FRN_OPENMP

cdef const char* _isa = b""

# Below this many floating-point operations for each thread, waking it costs more than it brings.
cdef double WORK_PER_THREAD = 1.5e6


def choose_isa(cap=None):
    """Choose the instruction set, at most `cap` (str or None); False where `cap` is not a name of one."""
    global _isa
    cdef bytes name
    cdef const char* chosen
    if cap is None:
        chosen = frn_choose_isa(NULL)
    else:
        name = cap.encode()
        chosen = frn_choose_isa(name)
    if chosen == NULL:
        return False
    _isa = chosen
    return True


def isa():
    """Return the name of the instruction set in use: "avx512", "avx2" or "baseline"."""
    return _isa.decode()


def openmp():
    """Return the date of the OpenMP specification that the core was built with (an int), 0 where without."""
    return FRN_OPENMP


def set_threads(int count):
    """Set the number of threads, at least 1."""
    frn_set_threads(count)


def get_threads():
    """Return the number of threads that large calls use."""
    return 1 if FRN_OPENMP == 0 or frn_forked() else frn_threads()


def fma_flops(size_t size, ptrdiff_t rounds):
    """Run fused multiply-adds on registers in one thread, without the GIL; return how many operations it were."""
    cdef double flops
    with nogil:
        flops = frn_fma_flops(size, rounds)
    return flops


cdef int threads_for(double work) noexcept nogil:
    cdef int threads = frn_threads()
    # libgomp does not survive fork(): a child goes on alone
    if FRN_OPENMP == 0 or threads == 1 or frn_forked():
        return 1
    cdef double most = work / WORK_PER_THREAD
    return 1 if most < 2 else <int> min(<double> threads, most)


# ---- Debugging -------------------------------------------------------------------------------------------------------

cdef extern from "debug.h":
    void frn_fail_after(ptrdiff_t count)
    int frn_fails()
    ptrdiff_t frn_live_blocks()


def debugging():
    """Return whether this is a build with FASTRNN_DEBUG=1 or with a sanitizer."""
    return bool(DEBUGGING)


def fail_after(ptrdiff_t count):
    """Let the allocation after `count` more of them fail, a negative count none; in a debug build."""
    frn_fail_after(count)


def live_blocks():
    """Return how many blocks the core holds, those that it keeps included; in a debug build."""
    return frn_live_blocks()


# ---- Memory ----------------------------------------------------------------------------------------------------------

# Some freed blocks are kept, so that a call made again and again does not fault its pages in each time.
cdef enum:
    KEPT_BLOCKS = 32
    KEPT_BYTES = 128 << 20
# these are read and changed under lock() alone
cdef void* kept[KEPT_BLOCKS]  # the one that was freed first first
cdef size_t kept_size[KEPT_BLOCKS]
cdef int kept_count = 0
cdef size_t kept_total = 0


cdef void* take_kept(int place) noexcept:
    """Take a block out of those that are kept, under lock()."""
    global kept_count, kept_total
    cdef void* memory = kept[place]
    cdef int i
    kept_total -= kept_size[place]
    kept_count -= 1
    for i in range(place, kept_count):
        kept[i], kept_size[i] = kept[i + 1], kept_size[i + 1]
    return memory


cdef void block_release(void* memory, size_t size) noexcept:
    """Give a block of `size` bytes back to the system."""
    unpoison(memory, size)
    frn_free(memory)


cdef void* block_alloc(size_t size, size_t* got) noexcept:
    """A block of at least `size` bytes, `got` of them, or NULL."""
    cdef int i, best = -1
    cdef void* memory = NULL
    if frn_fails():
        return NULL
    frn_lock()
    for i in range(kept_count):
        if size <= kept_size[i] <= 2 * size + 4096:
            if best < 0 or kept_size[i] < kept_size[best]:
                best = i
    if best >= 0:
        got[0] = kept_size[best]
        memory = take_kept(best)
    frn_unlock()
    if best < 0:
        got[0] = size
        memory = frn_alloc(size)
    if memory != NULL:
        unpoison(memory, got[0])
        spoil(memory, got[0])
        poison(<char*> memory + size, got[0] - size)
    return memory


cdef void block_free(void* memory, size_t size) noexcept:
    """Give back a block of `size` bytes, all that block_alloc() got; memory may be NULL."""
    global kept_count, kept_total
    cdef void* oldest
    cdef size_t oldest_size
    if memory == NULL:
        return
    if size > KEPT_BYTES:
        block_release(memory, size)
        return
    unpoison(memory, size)
    spoil(memory, size)
    poison(memory, size)
    frn_lock()
    # what has lain about longest makes room, and goes back to the system while others may come and go
    while kept_count == KEPT_BLOCKS or kept_total + size > KEPT_BYTES:
        oldest_size = kept_size[0]
        oldest = take_kept(0)
        frn_unlock()
        block_release(oldest, oldest_size)
        frn_lock()
    kept[kept_count], kept_size[kept_count] = memory, size
    kept_count += 1
    kept_total += size
    frn_unlock()


cdef class Workspace:
    """Memory that grows to the largest need and stays.

    A call goes through its parts twice: ``for lap in range(2): workspace.begin(lap); part = workspace.take(...)``. On
    the first lap take() counts them and returns NULL, on the second they are there. Parts of an earlier call are no
    longer valid. A workspace that several calls may use is held by the one that works in it. A copy, and what is read
    from a pickle, is a new and empty workspace.
    """

    def __dealloc__(self):
        block_free(self.memory, self.capacity)

    def __reduce__(self):
        return Workspace, ()

    @property
    def nbytes(self):
        """Bytes held at present."""
        return self.capacity

    cdef int hold(self) except -1:
        """Keep others out until release()."""
        cdef bint busy
        frn_lock()
        busy = self.held
        self.held = True
        frn_unlock()
        if busy:
            raise RuntimeError("workspace is in use by another call; expected one workspace for each thread")
        return 0

    cdef void release(self) noexcept:
        frn_lock()
        self.held = False
        frn_unlock()

    cdef int begin(self, int lap) except -1:
        """Begin to go through the parts: lap 0 counts them, lap 1 hands them out."""
        if lap > 0:
            self.reserve(self.used)
            unpoison(self.memory, self.capacity)
            spoil(self.memory, self.capacity)
            poison(self.memory, self.capacity)
        self.counting = lap == 0
        self.used = 0
        return 0

    cdef int reserve(self, size_t size) except -1:
        if size >= <size_t> TOO_LARGE:
            raise MemoryError("no memory for a workspace of more bytes than a process can have")
        if size > self.capacity:
            # what has grown once will grow again: leave some room, and do not keep what has become too small
            if self.memory != NULL:
                block_release(self.memory, self.capacity)
                self.memory = NULL
                size += size // 8
            self.capacity = 0
            self.memory = <char*> block_alloc(size, &self.capacity)
            if self.memory == NULL:
                self.capacity = 0
                raise MemoryError(f"no memory for a workspace of {size} bytes")
        return 0

    cdef void* take(self, ptrdiff_t count, size_t size) noexcept:
        """The next part: room for `count` elements of `size` bytes; NULL while parts are counted."""
        cdef size_t at = self.used
        self.used = min(at + room(count, size), <size_t> TOO_LARGE)
        if self.counting:
            return NULL
        if self.used > self.capacity:
            abort()  # there were other parts on the first lap
        unpoison(self.memory + at, count * size)
        return self.memory + at

    cdef void* take_each(self, ptrdiff_t parts, ptrdiff_t count, size_t size) noexcept:
        """Room for `count` elements for each of several threads, the next one's room(count, size) bytes further."""
        cdef size_t step = room(count, size)
        cdef char* first = <char*> self.take(area(parts, step), 1)
        cdef ptrdiff_t q
        if first != NULL:
            for q in range(parts):
                poison(first + q * step + count * size, step - count * size)
        return first


cdef ptrdiff_t leading(ptrdiff_t columns, size_t size) noexcept nogil:
    """The row stride for `columns` elements: an odd multiple of 64 bytes, so that rows do not share cache sets."""
    cdef ptrdiff_t lines = (area(columns, size) + 63) // 64
    return (lines | 1) * 64 // <ptrdiff_t> size


cdef enum:
    CACHED_BYTES = 448 << 10


# ---- Large matrix products -------------------------------------------------------------------------------------------

cdef ptrdiff_t panel_width(size_t size) noexcept nogil:
    return frn_panel_width(size)


cdef ptrdiff_t packed_size(ptrdiff_t K, ptrdiff_t N, size_t size) noexcept nogil:
    """Elements of B (K, N) in panels."""
    cdef ptrdiff_t width = frn_panel_width(size)
    return area((N + width - 1) // width * width, K)


cdef ptrdiff_t tile_height(ptrdiff_t M, size_t size) noexcept nogil:
    """The height at which M rows make tiles of nearly one size."""
    cdef ptrdiff_t most = frn_tile_height(size)
    cdef ptrdiff_t tiles = (M + most - 1) // most
    return (M + tiles - 1) // tiles if tiles > 0 else most


cdef ptrdiff_t tiles_size(ptrdiff_t M, ptrdiff_t K, size_t size) noexcept nogil:
    """Elements of A (M, K) in tiles."""
    cdef ptrdiff_t height = tile_height(M, size)
    return area((M + height - 1) // height * height, K)


cdef void pack(floating* packed, ptrdiff_t step, floating* colsum, const floating* B, const ptrdiff_t* row,
               ptrdiff_t rs, ptrdiff_t cs, ptrdiff_t K, ptrdiff_t N, int threads) noexcept nogil:
    """gemm_pack() of every panel, shared out; step 0: one panel after the other."""
    cdef ptrdiff_t width = frn_panel_width(sizeof(floating))
    cdef ptrdiff_t panels = (N + width - 1) // width
    cdef ptrdiff_t q
    if step == 0:
        step = width * K
    if threads == 1:
        gemm_pack(packed, step, colsum, B, row, rs, cs, K, N, 0, panels)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        gemm_pack(packed + share(panels, q, threads, 1) * step, step, colsum, B, row, rs, cs, K, N,
                  share(panels, q, threads, 1), share(panels, q + 1, threads, 1))


cdef void pack_tiles(floating* tiles, const floating* A, const ptrdiff_t* row, ptrdiff_t rs,
                     const ptrdiff_t* col, ptrdiff_t cs, ptrdiff_t M, ptrdiff_t K, int threads) noexcept nogil:
    """gemm_pack_rows() of every tile, shared out."""
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    cdef ptrdiff_t count = (M + height - 1) // height
    cdef ptrdiff_t q
    if threads == 1:
        gemm_pack_rows(tiles, height * K, A, row, rs, col, cs, M, K, height, 0, count)
        return
    for q in prange(threads, num_threads=threads, schedule="static"):
        gemm_pack_rows(tiles + share(count, q, threads, 1) * height * K, height * K, A, row, rs, col, cs, M, K,
                       height, share(count, q, threads, 1), share(count, q + 1, threads, 1))


cdef void multiply(floating* C, ptrdiff_t ldc, const floating* tiles, const floating* packed,
                   const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, bint accumulate,
                   int threads) noexcept nogil:
    """C (M, N) = A B, plus bias or plus C, with A packed by pack_tiles() and B by pack(); see gemm() in kernels.h."""
    cdef ptrdiff_t height = tile_height(M, sizeof(floating))
    cdef ptrdiff_t width = frn_panel_width(sizeof(floating))
    cdef ptrdiff_t panels = (N + width - 1) // width
    cdef ptrdiff_t heights = (M + height - 1) // height
    cdef ptrdiff_t across, down, task
    if M == 0 or N == 0:
        return
    # so few rows at a time that their tiles stay in the second-level cache while the panels pass by, and several tasks
    # for each thread, so that one that is held up does not hold up the others
    down = min(heights, 1 + M * K * <ptrdiff_t> sizeof(floating) // CACHED_BYTES)
    if threads > 1:
        across = min(panels, (6 * threads + down - 1) // down)
        down = min(heights, max(down, (6 * threads + across - 1) // across))
        for task in prange(across * down, num_threads=threads, schedule="dynamic"):
            multiply_part(C, ldc, tiles, height, packed, bias, M, N, K, accumulate,
                          share(N, task % across, across, width), share(N, task % across + 1, across, width),
                          share(M, task // across, down, height), share(M, task // across + 1, down, height))
    else:
        for task in range(down):
            multiply_part(C, ldc, tiles, height, packed, bias, M, N, K, accumulate, 0, N,
                          share(M, task, down, height), share(M, task + 1, down, height))


cdef void multiply_part(floating* C, ptrdiff_t ldc, const floating* tiles, ptrdiff_t height,
                        const floating* packed, const floating* bias, ptrdiff_t M, ptrdiff_t N, ptrdiff_t K,
                        bint accumulate, ptrdiff_t n0, ptrdiff_t n1, ptrdiff_t m0, ptrdiff_t m1) noexcept nogil:
    cdef uint64_t mode = frn_denormals_flush()
    gemm_tiles(C + m0 * ldc + n0, ldc, tiles + m0 * K, height, packed + n0 * K,
               bias + n0 if bias != NULL else <const floating*> NULL, m1 - m0, n1 - n0, K, accumulate)
    frn_denormals_restore(mode)
