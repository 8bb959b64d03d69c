/* Loops that threads share out; see team.h. The order of all atomic operations here is sequentially consistent. */
#if defined(__linux__)
#define _GNU_SOURCE /* nanosleep(), sched_setaffinity() */
#endif
#include "team.h"

#include "sizes.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(_WIN32)
#include <windows.h>
#else
#include <time.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum {
    SPINS = 4000, /* before a waiting thread sleeps: about 0.1 ms */
    NAP_NS = 50000
};

#if defined(_MSC_VER) && !defined(__clang__)
static int exchange(FRN_ATOMIC(uint64_t) * word, uint64_t expected, uint64_t desired) {
    return (uint64_t)_InterlockedCompareExchange64((volatile long long *)word, (long long)desired,
                                                   (long long)expected) == expected;
}
static uint64_t add_one(FRN_ATOMIC(uint64_t) * word) {
    return (uint64_t)_InterlockedIncrement64((volatile long long *)word);
}
#else
static int exchange(FRN_ATOMIC(uint64_t) * word, uint64_t expected, uint64_t desired) {
    return atomic_compare_exchange_strong(word, &expected, desired);
}
static uint64_t add_one(FRN_ATOMIC(uint64_t) * word) { return atomic_fetch_add(word, 1) + 1; }
#endif

/* Let the calling thread run on the k-th processor of a team alone. */
#if defined(__linux__)
static void bind_to(const frn_team *team, int k) {
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, (const cpu_set_t *)team->allowed) && k-- == 0) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}
#endif

void frn_team_start(frn_team *team, int threads, int bound) {
    team->threads = threads;
    team->bound = 0;
    if (threads == 1)
        return;
    team->open.word = 0;
    team->done.word = 0;
    for (int g = 0; g < FRN_MAX_CHAINS; g++)
        team->taken[g].word = 0;
#if defined(__linux__)
    _Static_assert(sizeof team->allowed >= sizeof(cpu_set_t), "no room for the processors");
    cpu_set_t *allowed = (cpu_set_t *)team->allowed;
    team->bound = bound && sched_getaffinity(0, sizeof *allowed, allowed) == 0 && CPU_COUNT(allowed) == threads;
#else
    (void)bound;
#endif
}

frn_worker frn_worker_of(frn_team *team, int k) {
    const frn_worker worker = {team, team->threads, k, 0};
#if defined(__linux__)
    if (team->bound)
        bind_to(team, k);
#endif
    return worker;
}

void frn_worker_leave(const frn_worker *worker) {
#if defined(__linux__)
    if (worker->team->bound)
        sched_setaffinity(0, sizeof(cpu_set_t), (const cpu_set_t *)worker->team->allowed);
#else
    (void)worker;
#endif
}

/* Wait a little. `waited` counts the calls since the wait began. After a while it sleeps, so that the system can run
 * the thread that is waited for on this processor. */
static void wait_a_little(int *waited) {
    if (++*waited < SPINS) {
#if defined(__SSE2__)
        _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
        __asm__ volatile("isb" ::: "memory");
#endif
        return;
    }
#if defined(_WIN32)
    Sleep(0);
#else
    const struct timespec nap = {0, NAP_NS};
    nanosleep(&nap, NULL);
#endif
}

/* Count a part of the open loop as done. The last of `count` opens the next loop. */
static void finish_part(frn_worker *worker, uint64_t count) {
    frn_team *team = worker->team;
    if (add_one(&team->done.word) == count) {
        team->done.word = 0;
        team->open.word = (uint64_t)worker->loop + 1;
    }
}

static int is_open(const frn_worker *worker) { return worker->team->open.word == worker->loop; }

/* What a word of `taken` says of the worker's loop: 0 if no thread has taken anything yet. */
static uint64_t taken_of(const frn_worker *worker, uint64_t word) {
    return word >> 32 == worker->loop ? word & UINT32_MAX : 0;
}

ptrdiff_t frn_next_block(frn_worker *worker, ptrdiff_t count, ptrdiff_t previous) {
    frn_team *team = worker->team;
    if (worker->threads == 1 || count == 0)
        return previous + 1 < count ? previous + 1 : -1;
    const uint64_t loop = (uint64_t)worker->loop << 32;
    const int shares = worker->threads < FRN_MAX_CHAINS ? worker->threads : FRN_MAX_CHAINS;
    if (previous >= 0)
        finish_part(worker, (uint64_t)count);
    for (int i = 0; i < shares && is_open(worker); i++) {
        const int s = (worker->k + i) % shares;
        const ptrdiff_t first = frn_share(count, s, shares, 1), end = frn_share(count, s + 1, shares, 1);
        for (;;) {
            const uint64_t word = team->taken[s].word, taken = taken_of(worker, word);
            if (word >> 32 > worker->loop || first + (ptrdiff_t)taken >= end)
                break;
            if (exchange(&team->taken[s].word, word, loop + taken + 1))
                return first + (ptrdiff_t)taken;
        }
    }
    for (int waited = 0; is_open(worker);)
        wait_a_little(&waited);
    worker->loop++;
    return -1;
}

int frn_next_step(frn_worker *worker, int chains, ptrdiff_t steps, int chain, ptrdiff_t *step) {
    frn_team *team = worker->team;
    if (chains == 0 || steps == 0)
        return -1;
    if (worker->threads == 1) {
        if (chain >= 0 && *step < steps)
            return chain;
        *step = 0;
        return chain + 1 < chains ? chain + 1 : -1;
    }
    const uint64_t loop = (uint64_t)worker->loop << 32;
    if (chain >= 0) {
        team->taken[chain].word = loop + 2 * (uint64_t)*step;
        if (*step == steps)
            finish_part(worker, (uint64_t)chains);
    }
    for (int waited = 0; is_open(worker);) {
        int best = -1;
        uint64_t best_word = 0, least = 2 * (uint64_t)steps;
        for (int i = 0; i < chains; i++) {
            const int g = (worker->k * (chains / worker->threads) + i) % chains;
            const uint64_t word = team->taken[g].word, taken = taken_of(worker, word);
            if (word >> 32 <= worker->loop && taken % 2 == 0 && taken < least) {
                best = g;
                best_word = word;
                least = taken;
            }
        }
        if (best < 0) {
            wait_a_little(&waited);
        } else if (exchange(&team->taken[best].word, best_word, loop + least + 1)) {
            *step = (ptrdiff_t)(least / 2);
            return best;
        }
    }
    worker->loop++;
    return -1;
}
