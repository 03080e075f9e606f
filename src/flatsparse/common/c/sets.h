/* The instruction sets that kernels are compiled for, and the one in use.

   A kernel is written once, as a template: a header over vectors of WIDTH floats, whose functions are named through
   NAME(). "every_set.h" includes it once for each set; CALL() then runs the form of the set in use:

       #define TEMPLATE "linear.h"
       #include "every_set.h"
       void flatsparse_forward(const float *x, ...) { CALL(forward)(x, ...); } */
#ifndef FLATSPARSE_SETS
#define FLATSPARSE_SETS
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE__
#include <immintrin.h>
#endif

enum { SET_PLAIN, SET_AVX2, SET_AVX512 };
extern int flatsparse_set; /* the set in use */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, SET)

#if defined(__x86_64__) || defined(_M_X64)
#define HAS_AVX 1
#define CALL(name) (flatsparse_set == SET_AVX512 ? name##_avx512 : flatsparse_set == SET_AVX2 ? name##_avx2 : name##_plain)
#else
#define HAS_AVX 0
#define CALL(name) (name##_plain)
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

#endif
