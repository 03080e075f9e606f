/* SGD and the next perturbed weights in one pass over the weights, after one over the gradients for their norm.

   Work is cut into pieces of a fixed size, so sums are added in the same order for any number of threads. */

#include "sets.h"
#ifdef __SSE__
#include <immintrin.h>
#endif

enum { PIECE = 32768, LANE = 512, CACHE = 1 << 24 }; /* entries, entries, bytes */

typedef struct {
    int64_t tensor, start, end;
} Piece;

static Piece *cut(int64_t tensors, const int64_t *sizes, int64_t *pieces) {
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

/* Copy a lane past the caches: what is read next is far behind it, and a cached store would fetch the line first. */
static void pass(float *restrict to, const float *restrict from, int64_t n, int past) {
    int64_t i = 0;
#ifdef __SSE__
    if (past && ((uintptr_t)to & 15) == 0)
        for (; i + 4 <= n; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
#endif
    memcpy(to + i, from + i, (n - i) * sizeof(float));
}

typedef struct {
    float lr, momentum, fresh, decay, scale;
    int nesterov;
} Settings;

#define TEMPLATE "step.h"
#include "every_set.h"

/* The sum of squares of all entries. */
double flatsparse_square(int64_t tensors, float *const *g, const int64_t *sizes, int threads) {
    int64_t pieces;
    Piece *table = cut(tensors, sizes, &pieces);
    double *sums = malloc((pieces + 1) * sizeof(double)), sum = 0;
    if (!sums) abort();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        const Piece *piece = &table[k];
        sums[k] = CALL(squares)(g[piece->tensor] + piece->start, piece->end - piece->start);
    }
    for (int64_t k = 0; k < pieces; k++) sum += sums[k];
    free(sums);
    free(table);
    return sum;
}

/* Weights w, their gradients g and momenta m take SGD's step; u = w + scale g. */
void flatsparse_step(int64_t tensors, float *const *w, float *const *g, float *const *m, float *const *u,
                     const int64_t *sizes, float lr, float momentum, float fresh, float decay, int nesterov, float scale,
                     int threads) {
    int64_t pieces;
    Piece *table = cut(tensors, sizes, &pieces);
    Settings settings = {lr, momentum, fresh, decay, scale, nesterov};
    int past = pieces * (int64_t)(PIECE * sizeof(float)) > CACHE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        int64_t t = table[k].tensor, at = table[k].start;
        CALL(steps)(w[t] + at, g[t] + at, m[t] + at, u[t] + at, table[k].end - at, settings, past);
#ifdef __SSE__
        _mm_sfence(); /* what was stored past the caches is there before others read it */
#endif
    }
    free(table);
}
