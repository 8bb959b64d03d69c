/* What is compiled once for all instruction sets: the choice of one, the denormal mode, memory, the lock, fork(). */
#if defined(__linux__)
#define _GNU_SOURCE /* clock_gettime(), madvise() */
#endif
#include "fastrnn.h"

#include "debug.h"
#include "flag.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#define HAS_MXCSR 1
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__) || defined(_WIN32)
#include <malloc.h>
#endif
#if defined(_WIN32)
#include <windows.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define HAS_FORK 1
#endif

frn_kernels frn_table;

static frn_cell cells[] = {
#define FRN_CELL(name, gates, has_c, direct) {#name, gates, has_c, direct, NULL, NULL, NULL, NULL},
#include "cells.h"
#undef FRN_CELL
};

const frn_cell *frn_cell_at(size_t k) { return k < sizeof cells / sizeof *cells ? &cells[k] : NULL; }

/* Each variant of kernels.c enters its kernels into the table and its row kernels into the cells, each of bfloat16.c
 * its kernels. */
#define VARIANT(isa)                                                                                                   \
    void frn_install_f32_##isa(frn_variant *variant, frn_cell *cells);                                                 \
    void frn_install_f64_##isa(frn_variant *variant, frn_cell *cells);                                                 \
    void frn_install_bf16_##isa(frn_variant *variant);
VARIANT(baseline)
#if defined(FRN_X86_VARIANTS)
VARIANT(avx2)
VARIANT(avx512)
#endif
#if defined(FRN_AVX512_BF16)
void frn_install_bf16_avx512_bf16(frn_variant *variant);
#endif

/* setup.py reads this from an existing build to see whether its switches have changed */
#define QUOTED_(a) #a
#define QUOTED(a) QUOTED_(a)
extern const char frn_built_as[];
const char frn_built_as[] = "fastrnn built as " QUOTED(FRN_SWITCHES) ";";

static frn_variant variant_f32, variant_f64, variant_bf16;

#if defined(FRN_X86_VARIANTS)
static int has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif
#if defined(FRN_AVX512_BF16)
static int has_avx512_bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

static int always(void) { return 1; }

/* In order of preference; a cap excludes the variants of a higher rank. */
static const struct {
    const char *name;
    int rank;
    int (*supported)(void);
    void (*install_f32)(frn_variant *, frn_cell *), (*install_f64)(frn_variant *, frn_cell *);
    void (*install_bf16)(frn_variant *);
} variants[] = {
#define INSTALL(isa) frn_install_f32_##isa, frn_install_f64_##isa
#if defined(FRN_AVX512_BF16)
    {"avx512_bf16", 3, has_avx512_bf16, INSTALL(avx512), frn_install_bf16_avx512_bf16},
#endif
#if defined(FRN_X86_VARIANTS)
    {"avx512", 2, has_avx512, INSTALL(avx512), frn_install_bf16_avx512},
    {"avx2", 1, has_avx2, INSTALL(avx2), frn_install_bf16_avx2},
#endif
    {"baseline", 0, always, INSTALL(baseline), frn_install_bf16_baseline},
};

#if defined(_WIN32)
static SRWLOCK shared = SRWLOCK_INIT;
void frn_lock(void) { AcquireSRWLockExclusive(&shared); }
void frn_unlock(void) { ReleaseSRWLockExclusive(&shared); }
#else
static pthread_mutex_t shared = PTHREAD_MUTEX_INITIALIZER;
void frn_lock(void) { pthread_mutex_lock(&shared); }
void frn_unlock(void) { pthread_mutex_unlock(&shared); }
#endif

static FRN_ATOMIC(int) threads = 1;
void frn_set_threads(int count) { threads = count; }
int frn_threads(void) { return threads; }

#if defined(HAS_FORK)
static FRN_ATOMIC(int) forked;
static void in_child(void) {
    forked = 1;
    frn_unlock();
}
#endif

const char *frn_choose_isa(const char *cap) {
    static const char *const names[] = {"baseline", "avx2", "avx512", "avx512_bf16"}; /* by rank, in any build */
    const int count = sizeof names / sizeof *names;
    int highest = count - 1;
    if (cap) {
        while (highest >= 0 && strcmp(cap, names[highest]) != 0)
            highest--;
        if (highest < 0)
            return NULL;
    }
#if defined(HAS_FORK)
    static int registered;
    if (!registered)
        registered = pthread_atfork(frn_lock, frn_unlock, in_child) == 0; /* no other thread holds the lock then */
#endif
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        if (variants[i].rank > highest || !variants[i].supported())
            continue;
        variants[i].install_f32(&variant_f32, cells);
        variants[i].install_f64(&variant_f64, cells);
        variants[i].install_bf16(&variant_bf16);
        return variants[i].name;
    }
    return NULL;
}

static const frn_variant *variant_of(size_t size) {
    return size == 2 ? &variant_bf16 : size == 4 ? &variant_f32 : &variant_f64;
}
ptrdiff_t frn_panel_width(size_t size) { return variant_of(size)->panel_width; }
ptrdiff_t frn_tile_height(size_t size) { return variant_of(size)->tile_height; }
double frn_fma_flops(size_t size, ptrdiff_t rounds) { return variant_of(size)->fma_flops(rounds); }

uint64_t frn_denormals_flush(void) {
#if defined(HAS_MXCSR)
    const uint64_t mode = _mm_getcsr();
    _mm_setcsr((unsigned)mode | 0x8040u); /* flush to zero, denormals are zero */
    return mode;
#elif defined(__aarch64__) && defined(__GNUC__)
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (UINT64_C(1) << 24)));
    return mode;
#else
    return 0;
#endif
}

void frn_denormals_restore(uint64_t mode) {
#if defined(HAS_MXCSR)
    /* restores the exception flags, too: those raised meanwhile are not the caller's */
    _mm_setcsr((unsigned)mode);
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#else
    (void)mode;
#endif
}

#if defined(FRN_DEBUG)
static FRN_ATOMIC(ptrdiff_t) live_blocks, until_failure = -1;
void frn_fail_after(ptrdiff_t count) { until_failure = count; }
int frn_fails(void) { return until_failure >= 0 && until_failure-- == 0; }
ptrdiff_t frn_live_blocks(void) { return live_blocks; }
#define COUNT_BLOCKS(change) (live_blocks += (change))
#else
#define COUNT_BLOCKS(change) ((void)0)
#endif

void frn_trim(void) {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

void *frn_alloc(size_t bytes) {
    /* huge pages for large blocks, where the system has them: fewer page faults and TLB misses */
    const size_t alignment = bytes >= (size_t)4 << 20 ? (size_t)2 << 20 : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    if (rounded < bytes)
        return NULL;
    void *memory = NULL;
#if defined(_WIN32)
    memory = _aligned_malloc(rounded ? rounded : alignment, alignment);
    if (!memory)
        return NULL;
#else
    if (posix_memalign(&memory, alignment, rounded ? rounded : alignment) != 0)
        return NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment > 64)
        madvise(memory, rounded, MADV_HUGEPAGE);
#endif
#endif
    COUNT_BLOCKS(1);
    frn_poison((char *)memory + bytes, (rounded ? rounded : alignment) - bytes);
    return memory;
}

void frn_free(void *memory) {
    if (memory)
        COUNT_BLOCKS(-1);
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

double frn_seconds(void) {
    struct timespec now;
#if defined(CLOCK_MONOTONIC)
    clock_gettime(CLOCK_MONOTONIC, &now); /* adjustments of the system time do not affect it */
#else
    timespec_get(&now, TIME_UTC);
#endif
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int frn_forked(void) {
#if defined(HAS_FORK)
    return forked;
#else
    return 0;
#endif
}
