/* SGD and the next perturbed weights in one pass over the weights, after one over the gradients for their norm. */

#include "pieces.h"
#include "sets.h"

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
    int past = is_past(pieces);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        int64_t t = table[k].tensor, at = table[k].start;
        CALL(steps)(w[t] + at, g[t] + at, m[t] + at, u[t] + at, table[k].end - at, settings, past);
        passed();
    }
    free(table);
}
