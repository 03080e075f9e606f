/* Pieces of work of a fixed size, so that sums are added in the same order for any number of threads; stores past the caches. */
#ifndef FLATSPARSE_PIECES
#define FLATSPARSE_PIECES

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE__
#include <immintrin.h>
#endif

/* Entries that one thread works on, that are summed in float, and that are made before they are stored; bytes. */
enum { PIECE = 32768, LANE = 512, STRIP = 128, CACHE = 1 << 24 };

typedef struct {
    int64_t tensor, start, end;
} Piece;

static inline Piece *cut(int64_t tensors, const int64_t *sizes, int64_t *pieces) {
    *pieces = 0;
    for (int64_t t = 0; t < tensors; t++) *pieces += (sizes[t] + PIECE - 1) / PIECE;
    Piece *table = malloc((*pieces + 1) * sizeof(Piece));
    if (!table) abort();
    int64_t next = 0;
    for (int64_t t = 0; t < tensors; t++)
        for (int64_t i = 0; i < sizes[t]; i += PIECE)
            table[next++] = (Piece){t, i, i + PIECE < sizes[t] ? i + PIECE : sizes[t]};
    return table;
}

/* Copy a strip past the caches: what is read next is far behind it, and a cached store would fetch the line first. */
static inline void pass(float *restrict to, const float *restrict from, int64_t n, int past) {
    int64_t i = 0;
#ifdef __SSE__
    if (past && ((uintptr_t)to & 15) == 0)
        for (; i + 4 <= n; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
#endif
    memcpy(to + i, from + i, (n - i) * sizeof(float));
}

/* Whether so much is written that its beginning has left the caches when it is read. */
static inline int is_past(int64_t pieces) { return pieces * (int64_t)(PIECE * sizeof(float)) > CACHE; }

/* What this thread stored past the caches is there before others read it. */
static inline void passed(void) {
#ifdef __SSE__
    _mm_sfence();
#endif
}

#endif
