"""Instruction set, threads and memory; this module holds the C code. See src_c/fastrnn.h and sizes.h."""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport abort

from .cell cimport Cell

cdef extern from "fastrnn.h":
    ctypedef struct frn_kernels:
        pass

cdef extern from "random.h" nogil:
    uint32_t random_key "frn_random_key"(uint64_t seed, uint64_t row, uint64_t t)
    double uniform "frn_uniform"(uint32_t key, uint32_t unit)

cdef extern from "flag.h" nogil:
    ctypedef struct frn_flag:
        pass
    void flag_clear "frn_flag_clear"(frn_flag* flag)
    void flag_set "frn_flag_set"(frn_flag* flag)
    bint flag_is_set "frn_flag_is_set"(frn_flag* flag)

cdef extern from "team.h" nogil:
    enum: MAX_CHAINS "FRN_MAX_CHAINS"
    ctypedef struct Team "frn_team":
        pass
    ctypedef struct Worker "frn_worker":
        int threads
        int k

cdef extern from "sizes.h" nogil:
    const ptrdiff_t TOO_LARGE "FRN_TOO_LARGE"
    enum: MAX_TILE_HEIGHT "FRN_MAX_TILE_HEIGHT"
    ptrdiff_t area "frn_area"(ptrdiff_t a, ptrdiff_t b)
    size_t padded_bytes "frn_padded_bytes"(ptrdiff_t count, size_t size)
    ptrdiff_t share "frn_share"(ptrdiff_t count, ptrdiff_t q, ptrdiff_t parts, ptrdiff_t unit)

cdef extern from "debug.h" nogil:
    const bint DEBUGGING "FRN_HAS_DEBUG"
    void spoil "frn_spoil"(void* memory, size_t bytes)
    void poison "frn_poison"(void* memory, size_t bytes)
    void unpoison "frn_unpoison"(void* memory, size_t bytes)

# ---- Kernels and threads ---------------------------------------------------------------------------------------------

# the kernels of the chosen instruction set; kernels.pxd, generated from kernels.h, calls them
cdef frn_kernels* table

cdef const Cell* find_cell(object cell_type) except NULL
cdef ptrdiff_t panel_width(size_t size) noexcept nogil
cdef ptrdiff_t max_tile_height(size_t size) noexcept nogil
cdef uint64_t denormals_flush() noexcept nogil
cdef void denormals_restore(uint64_t mode) noexcept nogil
cdef double seconds() noexcept nogil
cdef bint interrupted(double* looked) noexcept nogil
cdef void lock() noexcept nogil
cdef void unlock() noexcept nogil
cdef int threads_for(double work) noexcept nogil

# ---- Loops that threads share out, see src_c/team.h ------------------------------------------------------------------

cdef void team_start(Team* team, int threads, bint bound) noexcept nogil
cdef Worker worker_of(Team* team, int k) noexcept nogil
cdef void leave(const Worker* me) noexcept nogil
cdef ptrdiff_t next_block(Worker* me, ptrdiff_t count, ptrdiff_t previous) noexcept nogil
cdef int next_step(Worker* me, int chains, ptrdiff_t steps, int chain, ptrdiff_t* step) noexcept nogil


# ---- Memory ----------------------------------------------------------------------------------------------------------

cdef void* block_alloc(size_t size, size_t* got) noexcept
cdef void block_free(void* memory, size_t size) noexcept


cdef struct Layout:
    # A block of memory that is divided into parts by calls of take().
    char* memory      # NULL while the parts are only measured
    size_t used
    size_t capacity


cdef struct Slices:
    # Memory of several threads, each with a slice of its own.
    char* memory
    size_t step


cdef inline void* take(Layout* layout, ptrdiff_t count, size_t size) noexcept nogil:
    """Return the next part, `count` elements of `size` bytes, aligned to 64 bytes; NULL while parts are measured."""
    cdef size_t start = layout.used
    layout.used = min(start + padded_bytes(count, size), <size_t> TOO_LARGE)
    if layout.memory == NULL:
        return NULL
    if layout.used > layout.capacity:
        abort()  # more was taken than was measured
    unpoison(layout.memory + start, count * size)
    poison(layout.memory + start + count * size, layout.used - start - count * size)
    return layout.memory + start


cdef inline Layout layout_of(void* memory, size_t capacity) noexcept nogil:
    """Return a layout for `capacity` bytes, or one that measures if memory is NULL."""
    cdef Layout layout
    layout.memory, layout.used, layout.capacity = <char*> memory, 0, capacity
    return layout


cdef inline void* slice_of(Slices slices, ptrdiff_t k) noexcept nogil:
    """Return the slice of the k-th thread."""
    return slices.memory + k * slices.step


cdef class Workspace:
    cdef char* memory
    cdef size_t capacity
    cdef Layout layout
    cdef bint held
    cdef int hold(self) except -1
    cdef void release(self) noexcept
    cdef int begin(self, int pass_) except -1
    cdef int reserve(self, size_t size) except -1
    cdef void* take(self, ptrdiff_t count, size_t size) noexcept
    cdef Slices take_slices(self, ptrdiff_t parts, ptrdiff_t count, size_t size) noexcept
