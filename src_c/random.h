/* Counter-based random numbers: a function of a seed, a row of the batch, a time step and a unit, without state. They
 * do not depend on the number of threads or the order of the work, and a resumed run draws the same numbers as an
 * uninterrupted one. fastrnn/reference/random.py has the same functions in NumPy. */
#ifndef FRN_RANDOM_H
#define FRN_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* A 32-bit mixing function (multipliers from C. Wellons' search for low bias). */
static inline uint32_t frn_mix32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    x ^= x >> 15;
    return x;
}

/* Returns the key of a row and time step, from which the random numbers of its units follow. */
static inline uint32_t frn_random_key(uint64_t seed, uint64_t row, uint64_t t) {
    uint32_t key = frn_mix32((uint32_t)seed);
    key = frn_mix32(key ^ (uint32_t)(seed >> 32));
    key = frn_mix32(key ^ (uint32_t)row);
    return frn_mix32(key ^ (uint32_t)t);
}

/* Returns the random number of a unit, an integer below 2^24. */
static inline uint32_t frn_random_bits(uint32_t key, uint32_t unit) { return frn_mix32(key + unit * 0x9E3779B9u) >> 8; }

/* Returns the random number of a unit, in [0, 1). */
static inline double frn_uniform(uint32_t key, uint32_t unit) { return frn_random_bits(key, unit) * 0x1p-24; }

#endif
