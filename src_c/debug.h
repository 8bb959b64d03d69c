/* Hooks for tests: they detect reads of uninitialized memory and accesses out of bounds, and make allocations fail. In
 * a build without FRN_DEBUG (setup.py) they do nothing. */
#ifndef FRN_DEBUG_H
#define FRN_DEBUG_H

#include <stddef.h>
#include <string.h>

#if defined(FRN_DEBUG)

/* Make one allocation fail, after `count` successful ones; none if count is negative. */
void frn_fail_after(ptrdiff_t count);

/* Returns whether the current allocation must fail. */
int frn_fails(void);

/* Returns the number of blocks of frn_alloc() that have not been freed. */
ptrdiff_t frn_live_blocks(void);

/* Fill memory with bytes that make floats and doubles NaN and indices -1. */
static inline void frn_spoil(void *memory, size_t bytes) { memset(memory, 0xFF, bytes); }

#define FRN_HAS_DEBUG 1
#else
static inline void frn_fail_after(ptrdiff_t count) { (void)count; }
static inline int frn_fails(void) { return 0; }
static inline ptrdiff_t frn_live_blocks(void) { return 0; }
static inline void frn_spoil(void *memory, size_t bytes) {
    (void)memory;
    (void)bytes;
}
#define FRN_HAS_DEBUG 0
#endif

/* Mark memory as inaccessible, or as accessible again, to AddressSanitizer. */
#if defined(__SANITIZE_ADDRESS__)
#define FRN_HAS_POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FRN_HAS_POISON 1
#endif
#endif
#if defined(FRN_HAS_POISON)
void __asan_poison_memory_region(void const volatile *memory, size_t bytes);
void __asan_unpoison_memory_region(void const volatile *memory, size_t bytes);
static inline void frn_poison(void *memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
static inline void frn_unpoison(void *memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
static inline void frn_poison(void *memory, size_t bytes) {
    (void)memory;
    (void)bytes;
}
static inline void frn_unpoison(void *memory, size_t bytes) {
    (void)memory;
    (void)bytes;
}
#endif

#endif
