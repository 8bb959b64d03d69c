/* Sizes that do not overflow, and shares of work. */
#ifndef FRN_SIZES_H
#define FRN_SIZES_H

#include <stddef.h>
#include <stdint.h>

/* More than any memory holds, and so small that 64 such sizes can be added up. */
#define FRN_TOO_LARGE (PTRDIFF_MAX / 64)

/* The elements of `a` rows of `b`, or about FRN_TOO_LARGE where those are less; neither is negative. */
static inline ptrdiff_t frn_area(ptrdiff_t a, ptrdiff_t b) {
    return (double)a * (double)b < (double)FRN_TOO_LARGE ? a * b : FRN_TOO_LARGE;
}

/* Bytes for `count` elements of `size` bytes and at least 64 bytes behind them, so that what follows begins at a
 * multiple of 64. About FRN_TOO_LARGE or more where that much is asked for. */
static inline size_t frn_room(ptrdiff_t count, size_t size) {
    return ((size_t)frn_area(count, (ptrdiff_t)size) + 127) / 64 * 64;
}

/* Where part q of `parts` begins among `count` elements: at a multiple of `unit`, and where part q - 1 ends. Part
 * `parts` begins at `count`. */
static inline ptrdiff_t frn_share(ptrdiff_t count, ptrdiff_t q, ptrdiff_t parts, ptrdiff_t unit) {
    const ptrdiff_t units = count / unit + (count % unit != 0);
    const ptrdiff_t before = units / parts * q + units % parts * q / parts;
    return before < units ? before * unit : count;
}

#endif
