/* SGD and the next perturbed weights in one pass over the weights, after one over the gradients for their norm. */

#include "pieces.h"

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
    int past = is_past(pieces);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        int64_t t = table[k].tensor;
        for (int64_t i = table[k].start; i < table[k].end; i += STRIP) {
            int64_t n = i + STRIP < table[k].end ? STRIP : table[k].end - i;
            float *restrict W = w[t] + i, *restrict M = m[t] + i, U[STRIP];
            const float *restrict G = g[t] + i;
            if (nesterov) {
#pragma omp simd
                for (int64_t j = 0; j < n; j++) {
                    float d = G[j] + decay * W[j];
                    M[j] = momentum * M[j] + fresh * d;
                    W[j] -= lr * (d + momentum * M[j]);
                    U[j] = W[j] + scale * G[j];
                }
            } else {
#pragma omp simd
                for (int64_t j = 0; j < n; j++) {
                    M[j] = momentum * M[j] + fresh * (G[j] + decay * W[j]);
                    W[j] -= lr * M[j];
                    U[j] = W[j] + scale * G[j];
                }
            }
            pass(u[t] + i, U, n, past);
        }
        passed();
    }
    free(table);
}
