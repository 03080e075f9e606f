/* The choice of an instruction set, made once, when a program runs. */

#include "sets.h"

int flatsparse_set = SET_PLAIN;

static int has(int set) {
#if HAS_AVX
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (set == SET_AVX2) return avx2;
    if (set == SET_AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
#endif
    return set == SET_PLAIN;
}

/* Use a set, or the best where it is negative. Returns the set in use, which stays where this processor has no such set. */
int flatsparse_use(int set) {
    if (set < 0)
        for (set = SET_AVX512; !has(set); set--) {}
    if (has(set)) flatsparse_set = set;
    return flatsparse_set;
}
