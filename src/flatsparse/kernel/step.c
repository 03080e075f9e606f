/* SGD and the next neighbour in one pass over the weights, after one over the gradients for their norm.

   Work is cut into pieces of a fixed size, so sums are added in the same order for any number of threads. */

#include <stdint.h>
#include <stdlib.h>

enum { PIECE = 32768, LANE = 512 };

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

/* The sum of squares of all entries. */
double flatsparse_square(int64_t tensors, float *const *g, const int64_t *sizes, int threads) {
    int64_t pieces;
    Piece *table = cut(tensors, sizes, &pieces);
    double *sums = malloc((pieces + 1) * sizeof(double)), total = 0;
    if (!sums) abort();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        const float *x = g[table[k].tensor];
        double sum = 0;
        for (int64_t i = table[k].start; i < table[k].end; i += LANE) {
            int64_t end = i + LANE < table[k].end ? i + LANE : table[k].end;
            float lane = 0;
#pragma omp simd reduction(+ : lane)
            for (int64_t j = i; j < end; j++) lane += x[j] * x[j];
            sum += lane;
        }
        sums[k] = sum;
    }
    for (int64_t k = 0; k < pieces; k++) total += sums[k];
    free(sums);
    free(table);
    return total;
}

/* Weights w, their gradients g and momenta m take SGD's step; u = w + scale g. */
void flatsparse_step(int64_t tensors, float *const *w, float *const *g, float *const *m, float *const *u,
                     const int64_t *sizes, float lr, float momentum, float fresh, float decay, int nesterov, float scale,
                     int threads) {
    int64_t pieces;
    Piece *table = cut(tensors, sizes, &pieces);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        int64_t t = table[k].tensor, start = table[k].start, n = table[k].end - start;
        float *restrict W = w[t] + start, *restrict M = m[t] + start, *restrict U = u[t] + start;
        const float *restrict G = g[t] + start;
        if (nesterov) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) {
                float d = G[i] + decay * W[i];
                M[i] = momentum * M[i] + fresh * d;
                W[i] -= lr * (d + momentum * M[i]);
                U[i] = W[i] + scale * G[i];
            }
        } else {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) {
                M[i] = momentum * M[i] + fresh * (G[i] + decay * W[i]);
                W[i] -= lr * M[i];
                U[i] = W[i] + scale * G[i];
            }
        }
    }
    free(table);
}
