/* Loops that the threads of a team share out in blocks, as they come for them.
 *
 * All threads of a team run the same code, so they meet the same loops in the same order. In each loop, a thread takes
 * the blocks of its own share first, and then what is left of the others' shares. A loop is over when all its blocks
 * are done: nobody waits for a thread that holds no block. A thread that another program keeps from running thus delays
 * the team by one block at most. When it runs again, it passes the loops that are over, and joins the others.
 *
 * Which thread computes a block varies, so the result of a block must not depend on the thread. */
#ifndef FRN_TEAM_H
#define FRN_TEAM_H

#include <stddef.h>
#include <stdint.h>

#include "flag.h"

enum {
    FRN_MAX_CHAINS = 128, /* also the number of shares of a loop */
    FRN_CACHE_LINE = 64
};

/* A count that several threads change, in a cache line of its own. */
typedef struct {
    FRN_ATOMIC(uint64_t) word;
    char rest_of_line[FRN_CACHE_LINE - sizeof(uint64_t)];
} frn_count;

/* What the threads of a team share. */
typedef struct {
    int threads;
    int bound;            /* whether each thread keeps to a processor of its own */
    uint64_t allowed[16]; /* the processors that the process may use, if it is */
    frn_count open;       /* the number of the loop that is open; all before it are over */
    frn_count done;       /* blocks of the open loop that are done */
    /* For each share of the open loop, the number of its blocks that are taken; for each chain, 2 times the number of
     * its steps that are done, plus 1 while a thread is at one. The number of the loop stands in the upper half, so
     * that a thread which is late cannot take a block of a later loop. */
    frn_count taken[FRN_MAX_CHAINS];
} frn_team;

/* A thread of a team. Each has its own. */
typedef struct {
    frn_team *team;
    int threads;
    int k;         /* its number, below `threads` */
    uint32_t loop; /* the number of the loop at which it is */
} frn_worker;

/* Fill in a team. Its threads then call frn_worker_of(), and frn_worker_leave() at the end. A team of one thread has no
 * atomic operations.
 *
 * bound: if there are as many threads as processors that the process may use, each keeps to one of them until it
 * leaves. Otherwise, where other programs run, Linux often puts two threads of the team on one processor and leaves
 * another to the other program. This takes a few microseconds. */
void frn_team_start(frn_team *team, int threads, int bound);
frn_worker frn_worker_of(frn_team *team, int k);
void frn_worker_leave(const frn_worker *worker);

/* Take a block of a loop of `count` blocks (below 2^32). `previous` is -1 at first, later the block that was returned
 * before and is done. Returns -1 when all blocks are done, those of other threads included:
 *
 *     for (ptrdiff_t q = -1; (q = frn_next_block(worker, count, q)) >= 0;) ...
 *
 * What was written in the blocks of a loop can be read after the loop. */
ptrdiff_t frn_next_block(frn_worker *worker, ptrdiff_t count, ptrdiff_t previous);

/* Take a step of one of several chains, at most FRN_MAX_CHAINS. The steps of a chain are taken one after the other, by
 * any threads, and see what the earlier ones wrote. The chain that is furthest behind comes first; of equal ones, a
 * thread takes the same as before.
 *
 * chain is -1 at first, later what was returned before; *step then is the number of its steps that are done, up to
 * `steps`. Returns a chain, and its next step in *step; or -1 when all chains are done. */
int frn_next_step(frn_worker *worker, int chains, ptrdiff_t steps, int chain, ptrdiff_t *step);

#endif
