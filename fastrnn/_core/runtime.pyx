"""Instruction set, threads and memory. The C code is linked into this module; the others reach it from here."""

from cython.parallel cimport prange
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

cdef extern from "fastrnn.h" nogil:
    frn_kernels frn_table
    const Cell* frn_cell_at(size_t k)
    const char* frn_choose_isa(const char* cap)
    ptrdiff_t frn_panel_width(size_t size)
    ptrdiff_t frn_tile_height(size_t size)
    double frn_fma_flops(size_t size, ptrdiff_t rounds)
    uint64_t frn_denormals_flush()
    void frn_denormals_restore(uint64_t mode)
    void frn_trim()
    void* frn_alloc(size_t size)
    void frn_free(void* memory)
    void frn_lock()
    void frn_unlock()
    void frn_set_threads(int count)
    int frn_threads()
    int frn_forked()
    double frn_seconds()

cdef extern from "team.h" nogil:
    void frn_team_start(Team* team, int threads, bint bound)
    Worker frn_worker_of(Team* team, int k)
    void frn_worker_leave(const Worker* worker)
    ptrdiff_t frn_next_block(Worker* worker, ptrdiff_t count, ptrdiff_t previous)
    int frn_next_step(Worker* worker, int chains, ptrdiff_t steps, int chain, ptrdiff_t* step)

cdef extern from "Python.h":
    int PyErr_CheckSignals() noexcept  # the exception stays set

cdef extern from *:
    """
    #ifdef _OPENMP
    #define FRN_OPENMP _OPENMP
    #else
    #define FRN_OPENMP 0
    #endif
    #define FRN_QUOTED_(x) #x
    #define FRN_QUOTED(x) FRN_QUOTED_(x)
    #if defined(__clang__)
    #define FRN_COMPILER "Clang " FRN_QUOTED(__clang_major__)
    #elif defined(__GNUC__)
    #define FRN_COMPILER "GCC " FRN_QUOTED(__GNUC__)
    #else
    #define FRN_COMPILER "another"
    #endif
    """
    const int FRN_OPENMP
    const char* FRN_COMPILER


# ---- C functions for the other modules -------------------------------------------------------------------------------

table = &frn_table


cdef dict cell_gates():
    cdef size_t k = 0
    cdef dict gates = {}
    while frn_cell_at(k) != NULL:
        gates[frn_cell_at(k).name.decode()] = frn_cell_at(k).gates
        k += 1
    return gates


# The cells of cells.h: their names, and the blocks of H columns in the weights of each.
CELL_GATES = cell_gates()
cdef tuple cell_names = tuple(CELL_GATES)


cdef const Cell* find_cell(object cell_type) except NULL:
    """Return the cell of a name, such as "lstm"."""
    cdef Py_ssize_t k
    for k in range(len(cell_names)):
        if cell_names[k] == cell_type:
            return frn_cell_at(k)
    raise ValueError(f"cell_type is {cell_type!r}; expected one of {', '.join(cell_names)}")


cdef ptrdiff_t panel_width(size_t size) noexcept nogil:
    return frn_panel_width(size)


cdef ptrdiff_t max_tile_height(size_t size) noexcept nogil:
    return frn_tile_height(size)


cdef uint64_t denormals_flush() noexcept nogil:
    return frn_denormals_flush()


cdef void denormals_restore(uint64_t mode) noexcept nogil:
    frn_denormals_restore(mode)


cdef double seconds() noexcept nogil:
    return frn_seconds()


cdef void team_start(Team* team, int threads, bint bound) noexcept nogil:
    frn_team_start(team, threads, bound)


cdef Worker worker_of(Team* team, int k) noexcept nogil:
    return frn_worker_of(team, k)


cdef void leave(const Worker* me) noexcept nogil:
    frn_worker_leave(me)


cdef ptrdiff_t next_block(Worker* me, ptrdiff_t count, ptrdiff_t previous) noexcept nogil:
    return frn_next_block(me, count, previous)


cdef int next_step(Worker* me, int chains, ptrdiff_t steps, int chain, ptrdiff_t* step) noexcept nogil:
    return frn_next_step(me, chains, steps, chain, step)


# Seconds between two looks for signals: each takes the GIL.
cdef double SIGNAL_INTERVAL = 0.02


cdef bint interrupted(double* looked) noexcept nogil:
    """Run the Python handlers of signals that have arrived, if the last look is long enough ago.

    looked is the time of the last look. Return True if a handler has raised an exception, such as KeyboardInterrupt:
    the caller must then end its work and return -1 from a function that is `except -1`. In a thread that is not
    Python's main thread, there is nothing to handle.
    """
    cdef double now = frn_seconds()
    if now - looked[0] < SIGNAL_INTERVAL:
        return False
    looked[0] = now
    with gil:
        return PyErr_CheckSignals() != 0


cdef void lock() noexcept nogil:
    frn_lock()


cdef void unlock() noexcept nogil:
    frn_unlock()


# ---- Instruction set and threads -------------------------------------------------------------------------------------

cdef const char* _isa = b""

# The fewest floating-point operations for which waking another thread pays off.
cdef double WORK_PER_THREAD = 1.5e6


def choose_isa(cap=None):
    """Choose the best instruction set up to `cap` (str or None). Return False if `cap` is not the name of one."""
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
    """Return the date of the OpenMP specification of the build as an int, or 0 for a build without OpenMP."""
    return FRN_OPENMP


def set_threads(int count):
    """Set the number of threads, at least 1."""
    frn_set_threads(count)


def get_threads():
    """Return the number of threads that large calls use."""
    return 1 if FRN_OPENMP == 0 or frn_forked() else frn_threads()


def fma_flops(size_t size, ptrdiff_t rounds):
    """Run fused multiply-adds on registers in one thread, without the GIL. Return the number of operations."""
    cdef double flops
    with nogil:
        flops = frn_fma_flops(size, rounds)
    return flops


def fork_join(int threads, ptrdiff_t rounds):
    """Return the seconds of `rounds` parallel regions that do nothing."""
    cdef ptrdiff_t _round
    cdef int _k
    cdef double began
    with nogil:
        began = frn_seconds()
        for _round in range(rounds):
            for _k in prange(threads, num_threads=threads, schedule="static"):
                pass
        began = frn_seconds() - began
    return began


def panel_columns(size_t size):
    """Return the columns of a panel of elements of `size` bytes: threads divide columns by panels."""
    return panel_width(size)


cdef int threads_for(double work) noexcept nogil:
    """Return the number of threads for `work` floating-point operations."""
    cdef int threads = frn_threads()
    # libgomp does not survive fork(): a child uses one thread
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


def compiler():
    """Return the compiler and its major version, "GCC 12": another one may contract and order sums differently."""
    return FRN_COMPILER.decode()


def fail_after(ptrdiff_t count):
    """Make one allocation fail, after `count` successful ones; none if count is negative. For debug builds."""
    frn_fail_after(count)


def live_blocks():
    """Return the number of allocated blocks, including those in the pool. For debug builds."""
    return frn_live_blocks()


# ---- Memory ----------------------------------------------------------------------------------------------------------

def trim_memory():
    """Give the memory that the C library has kept for later back to the system, after large temporary arrays."""
    with nogil:
        frn_trim()


# A pool of freed blocks: a call that is repeated does not fault its pages in each time.
cdef enum:
    POOL_BLOCKS = 32
    POOL_BYTES = 256 << 20
# read and changed under the lock only
cdef void* pool[POOL_BLOCKS]  # oldest first
cdef size_t pool_size[POOL_BLOCKS]
cdef int pool_count = 0
cdef size_t pool_bytes = 0


cdef void* pool_remove(int k) noexcept:
    """Remove the k-th block from the pool and return it. The caller holds the lock."""
    global pool_count, pool_bytes
    cdef void* memory = pool[k]
    cdef int i
    pool_bytes -= pool_size[k]
    pool_count -= 1
    for i in range(k, pool_count):
        pool[i], pool_size[i] = pool[i + 1], pool_size[i + 1]
    return memory


cdef void block_release(void* memory, size_t size) noexcept:
    """Return a block of `size` bytes to the system."""
    unpoison(memory, size)
    frn_free(memory)


cdef void* block_alloc(size_t size, size_t* got) noexcept:
    """Return a block of at least `size` bytes and its size in `got`, or NULL."""
    cdef int i, best = -1
    cdef void* memory = NULL
    if frn_fails():
        return NULL
    frn_lock()
    for i in range(pool_count):
        if size <= pool_size[i] <= 2 * size + 4096:
            if best < 0 or pool_size[i] < pool_size[best]:
                best = i
    if best >= 0:
        got[0] = pool_size[best]
        memory = pool_remove(best)
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
    """Free a block of block_alloc(), whose `got` was `size`. memory may be NULL."""
    global pool_count, pool_bytes
    cdef void* oldest
    cdef size_t oldest_size
    if memory == NULL:
        return
    if size > POOL_BYTES:
        block_release(memory, size)
        return
    unpoison(memory, size)
    spoil(memory, size)
    poison(memory, size)
    frn_lock()
    # evict the oldest blocks; the lock is free while the system takes them
    while pool_count == POOL_BLOCKS or pool_bytes + size > POOL_BYTES:
        oldest_size = pool_size[0]
        oldest = pool_remove(0)
        frn_unlock()
        block_release(oldest, oldest_size)
        frn_lock()
    pool[pool_count], pool_size[pool_count] = memory, size
    pool_count += 1
    pool_bytes += size
    frn_unlock()


cdef class Workspace:
    """A block of memory that is kept between calls and grows to the largest size needed.

    A call runs through its parts twice: ``for pass_ in range(2): workspace.begin(pass_); part = workspace.take(...)``.
    The first pass measures them, take() returns NULL; the second pass returns the parts, and invalidates those of
    earlier calls. A workspace that several calls may share is held by the call that uses it. Copying or unpickling a
    workspace gives a new, empty one.
    """

    def __dealloc__(self):
        block_free(self.memory, self.capacity)

    def __reduce__(self):
        return Workspace, ()

    @property
    def nbytes(self):
        """Size of the block in bytes."""
        return self.capacity

    cdef int hold(self) except -1:
        """Refuse other calls until release()."""
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

    cdef int begin(self, int pass_) except -1:
        """Begin pass 0, which measures the parts, or pass 1, which returns them."""
        if pass_ == 0:
            self.layout = layout_of(NULL, 0)
        else:
            self.reserve(self.layout.used)
            unpoison(self.memory, self.capacity)
            spoil(self.memory, self.capacity)
            poison(self.memory, self.capacity)
            self.layout = layout_of(self.memory, self.capacity)
        return 0

    cdef int reserve(self, size_t size) except -1:
        if size >= <size_t> TOO_LARGE:
            raise MemoryError("no memory for a workspace of more bytes than a process can have")
        if size > self.capacity:
            # a workspace that grows once is likely to grow again
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
        """Return the next part, for `count` elements of `size` bytes; NULL in pass 0."""
        return take(&self.layout, count, size)

    cdef Slices take_slices(self, ptrdiff_t parts, ptrdiff_t count, size_t size) noexcept:
        """Return a slice of `count` elements for each of several threads."""
        cdef Slices slices
        cdef ptrdiff_t k
        slices.step = padded_bytes(count, size)
        slices.memory = <char*> take(&self.layout, area(parts, slices.step), 1)
        if slices.memory != NULL:
            for k in range(parts):
                poison(slices.memory + k * slices.step + count * size, slices.step - count * size)
        return slices
