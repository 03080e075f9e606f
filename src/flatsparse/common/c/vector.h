/* Vectors of WIDTH floats for one instruction set; a part of every template, by "every_set.h". */

#undef VEC
#undef LOOSE
#undef load
#undef store
#undef stream
#undef spread
#undef total
#undef totals
#undef transpose
#define VEC NAME(vec)
#define LOOSE NAME(loose)
#define load NAME(load)
#define store NAME(store)
#define stream NAME(stream)
#define spread NAME(spread)
#define total NAME(total)
#define totals NAME(totals)
#define transpose NAME(transpose)

typedef float VEC __attribute__((vector_size(4 * WIDTH)));
typedef float LOOSE __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias)); /* at any address of a float */

/* Two vectors' entries, picked by their places in both: WIDTH places, written out. */
#undef PICK
#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(4 * WIDTH)))){__VA_ARGS__})
#endif

/* MERGE_s(a, b, LOW or HIGH): runs of s entries in turn from a and b, the even runs (LOW) or the odd ones (HIGH) of both. */
#undef MERGE_1
#undef MERGE_2
#undef MERGE_4
#undef MERGE_8
#undef LOW
#undef HIGH
#define LOW 0
#define HIGH 1
#if WIDTH == 16
#define MERGE_1(a, b, h) PICK(a, b, h, 16 + h, 2 + h, 18 + h, 4 + h, 20 + h, 6 + h, 22 + h, 8 + h, 24 + h, 10 + h, 26 + h, 12 + h, 28 + h, 14 + h, 30 + h)
#define MERGE_2(a, b, h) PICK(a, b, 2 * h, 1 + 2 * h, 16 + 2 * h, 17 + 2 * h, 4 + 2 * h, 5 + 2 * h, 20 + 2 * h, 21 + 2 * h, 8 + 2 * h, 9 + 2 * h, 24 + 2 * h, 25 + 2 * h, 12 + 2 * h, 13 + 2 * h, 28 + 2 * h, 29 + 2 * h)
#define MERGE_4(a, b, h) PICK(a, b, 4 * h, 1 + 4 * h, 2 + 4 * h, 3 + 4 * h, 16 + 4 * h, 17 + 4 * h, 18 + 4 * h, 19 + 4 * h, 8 + 4 * h, 9 + 4 * h, 10 + 4 * h, 11 + 4 * h, 24 + 4 * h, 25 + 4 * h, 26 + 4 * h, 27 + 4 * h)
#define MERGE_8(a, b, h) PICK(a, b, 8 * h, 1 + 8 * h, 2 + 8 * h, 3 + 8 * h, 4 + 8 * h, 5 + 8 * h, 6 + 8 * h, 7 + 8 * h, 16 + 8 * h, 17 + 8 * h, 18 + 8 * h, 19 + 8 * h, 20 + 8 * h, 21 + 8 * h, 22 + 8 * h, 23 + 8 * h)
#elif WIDTH == 8
#define MERGE_1(a, b, h) PICK(a, b, h, 8 + h, 2 + h, 10 + h, 4 + h, 12 + h, 6 + h, 14 + h)
#define MERGE_2(a, b, h) PICK(a, b, 2 * h, 1 + 2 * h, 8 + 2 * h, 9 + 2 * h, 4 + 2 * h, 5 + 2 * h, 12 + 2 * h, 13 + 2 * h)
#define MERGE_4(a, b, h) PICK(a, b, 4 * h, 1 + 4 * h, 2 + 4 * h, 3 + 4 * h, 8 + 4 * h, 9 + 4 * h, 10 + 4 * h, 11 + 4 * h)
#else
#define MERGE_1(a, b, h) PICK(a, b, h, 4 + h, 2 + h, 6 + h)
#define MERGE_2(a, b, h) PICK(a, b, 2 * h, 1 + 2 * h, 4 + 2 * h, 5 + 2 * h)
#endif

/* One step of a transposition of WIDTH vectors: entries s apart change places between the vectors s apart. */
#undef EXCHANGE
#define EXCHANGE(r, s)                                            \
    _Pragma("GCC unroll 16") for (int i = 0; i < WIDTH; i++)                               \
        if (!(i & s)) {                                           \
            VEC a = r[i], b = r[i + s];                           \
            r[i] = MERGE_##s(a, b, LOW), r[i + s] = MERGE_##s(a, b, HIGH); \
        }

/* One step of WIDTH sums: half as many vectors, with the sums of two vectors' entries that are s apart. */
#undef FOLD
#define FOLD(r, s)                      \
    _Pragma("GCC unroll 16") for (int i = 0; i < s; i++) r[i] = MERGE_##s(r[i], r[i + s], LOW) + MERGE_##s(r[i], r[i + s], HIGH);

INLINE VEC load(const float *from) { return *(const LOOSE *)from; }

INLINE void store(float *to, VEC x) { *(LOOSE *)to = x; }

/* Store past the caches, where that is possible; the address is a vector's. */
INLINE void stream(float *to, VEC x) {
#if !defined(__SSE__)
    store(to, x);
#elif WIDTH == 16
    _mm512_stream_ps(to, (__m512)x);
#elif WIDTH == 8
    _mm256_stream_ps(to, (__m256)x);
#else
    _mm_stream_ps(to, (__m128)x);
#endif
}

INLINE VEC spread(float x) { return x - (VEC){0}; }

/* Transpose WIDTH vectors in place. */
INLINE void transpose(VEC r[WIDTH]) {
    EXCHANGE(r, 1)
    EXCHANGE(r, 2)
#if WIDTH > 4
    EXCHANGE(r, 4)
#endif
#if WIDTH > 8
    EXCHANGE(r, 8)
#endif
}

/* The sum of the entries of each of WIDTH vectors, in their order. */
INLINE VEC totals(VEC r[WIDTH]) {
#if WIDTH > 8
    FOLD(r, 8)
#endif
#if WIDTH > 4
    FOLD(r, 4)
#endif
    FOLD(r, 2)
    FOLD(r, 1)
    return r[0];
}

/* The sum of the entries of a vector. */
INLINE float total(VEC x) {
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += x[i];
    return sum;
}
