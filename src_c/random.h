/* Random numbers that depend on their place alone: on a seed, a row of the batch, a time step and a unit. Nothing is
 * carried from one draw to the next, so neither the number of threads nor the order of the work changes a bit, and a
 * run that is resumed draws what it would have drawn. fastrnn/reference/random.py is the same in NumPy. */
#ifndef FRN_RANDOM_H
#define FRN_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* A mixing function of 32 bits, each of which depends on all (multipliers found by C. Wellons' search for low bias). */
static inline uint32_t frn_mix32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    x ^= x >> 15;
    return x;
}

/* The key of a row and a time step, from which the draws of its units follow. */
static inline uint32_t frn_random_key(uint64_t seed, uint64_t row, uint64_t t) {
    uint32_t key = frn_mix32((uint32_t)seed);
    key = frn_mix32(key ^ (uint32_t)(seed >> 32));
    key = frn_mix32(key ^ (uint32_t)row);
    return frn_mix32(key ^ (uint32_t)t);
}

/* The draw of a unit, 24 bits: divided by 2^24 it is uniform in [0, 1). */
static inline uint32_t frn_random_bits(uint32_t key, uint32_t unit) { return frn_mix32(key + unit * 0x9E3779B9u) >> 8; }

/* The same as a number in [0, 1). */
static inline double frn_uniform(uint32_t key, uint32_t unit) { return frn_random_bits(key, unit) * 0x1p-24; }

#endif
