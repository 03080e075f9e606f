/* Includes TEMPLATE once for each instruction set, after the vectors of its width. "sets.h" says how it is used. */

#include "sets.h"

#if HAS_AVX

#define SET avx512
#define WIDTH 16
#define REGISTERS 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")
#endif
#include "vector.h"
#include TEMPLATE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SET
#undef WIDTH
#undef REGISTERS

#define SET avx2
#define WIDTH 8
#define REGISTERS 16
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "vector.h"
#include TEMPLATE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SET
#undef WIDTH
#undef REGISTERS

#endif

/* What every processor of a kind has: SSE2 or NEON, or C without vectors. */
#define SET plain
#define WIDTH 4
#define REGISTERS 16
#include "vector.h"
#include TEMPLATE
#undef SET
#undef WIDTH
#undef REGISTERS
#undef TEMPLATE
