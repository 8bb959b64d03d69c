/* Sizes that cannot overflow, and the division of work into parts. */
#ifndef FRN_SIZES_H
#define FRN_SIZES_H

#include <stddef.h>
#include <stdint.h>

/* More than any memory holds, and small enough that 64 such sizes can be added. */
#define FRN_TOO_LARGE (PTRDIFF_MAX / 64)

/* The most rows of a tile in any instruction set (TILE_HEIGHT in vector.h). */
#define FRN_MAX_TILE_HEIGHT 16

/* a * b, or FRN_TOO_LARGE if that is less; neither is negative. */
static inline ptrdiff_t frn_area(ptrdiff_t a, ptrdiff_t b) {
    return (double)a * (double)b < (double)FRN_TOO_LARGE ? a * b : FRN_TOO_LARGE;
}

/* Bytes for `count` elements of `size` bytes and at least 64 bytes of padding, as a multiple of 64. About FRN_TOO_LARGE
 * or more if the product is that large. */
static inline size_t frn_padded_bytes(ptrdiff_t count, size_t size) {
    return ((size_t)frn_area(count, (ptrdiff_t)size) + 127) / 64 * 64;
}

/* The start of part q, where `count` elements are divided into `parts` whose starts are multiples of `unit`. Part q
 * ends where part q + 1 starts; part `parts` starts at `count`. */
static inline ptrdiff_t frn_share(ptrdiff_t count, ptrdiff_t q, ptrdiff_t parts, ptrdiff_t unit) {
    const ptrdiff_t units = count / unit + (count % unit != 0);
    const ptrdiff_t before = units / parts * q + units % parts * q / parts;
    return before < units ? before * unit : count;
}

#endif
