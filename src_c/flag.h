/* A flag that threads share: any of them may set it and read it at any time. */
#ifndef FRN_FLAG_H
#define FRN_FLAG_H

#if defined(_MSC_VER) && !defined(__clang__)
#define FRN_ATOMIC(type) volatile type /* reads and writes of whole words are atomic with this compiler */
#else
#include <stdatomic.h>
#define FRN_ATOMIC(type) _Atomic(type)
#endif

typedef struct {
    FRN_ATOMIC(int) set;
} frn_flag;

static inline void frn_flag_clear(frn_flag *flag) { flag->set = 0; }
static inline void frn_flag_set(frn_flag *flag) { flag->set = 1; }
static inline int frn_flag_is_set(frn_flag *flag) { return flag->set; }

#endif
