/* Adam, its weight decay decoupled or not, and the next perturbed weights in one pass over the weights. */

#include <math.h>

#include "pieces.h"
#include "sets.h"

/* What a tensor's entries share: its own step count gives the corrections of its moments. */
typedef struct {
    float keep, decay; /* of the weights: the factor, the share that joins the gradient */
    float beta1, fresh1, beta2, fresh2;
    float rate, root, eps; /* w -= rate m / (root sqrt(v) + eps) */
    float scale;
} Settings;

/* A power with a whole exponent, which counts of steps are. */
static double power(double base, int64_t exponent) {
    double result = 1;
    for (; exponent > 0; exponent /= 2, base *= base)
        if (exponent % 2) result *= base;
    return result;
}

#define TEMPLATE "adam.h"
#include "every_set.h"

/* Weights w, their gradients g and moments m and v take Adam's step, and each count of steps one more; u = w + scale g. */
void flatsparse_adam(int64_t tensors, float *const *w, float *const *g, float *const *m, float *const *v,
                     float *const *count, float *const *u, const int64_t *sizes, double lr, double beta1, double beta2,
                     double eps, double decay, int decoupled, float scale, int threads) {
    int64_t pieces;
    Piece *table = cut(tensors, sizes, &pieces);
    Settings *of = malloc((tensors + 1) * sizeof(Settings));
    if (!of) abort();
    for (int64_t t = 0; t < tensors; t++) {
        int64_t taken = (int64_t)(*count[t] += 1);
        of[t] = (Settings){.keep = decoupled ? 1 - lr * decay : 1, .decay = decoupled ? 0 : decay,
                           .beta1 = beta1, .fresh1 = 1 - beta1, .beta2 = beta2, .fresh2 = 1 - beta2,
                           .rate = lr / (1 - power(beta1, taken)), .root = 1 / sqrt(1 - power(beta2, taken)),
                           .eps = eps, .scale = scale};
    }
    int past = is_past(pieces);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < pieces; k++) {
        int64_t t = table[k].tensor, at = table[k].start;
        CALL(adams)(w[t] + at, g[t] + at, m[t] + at, v[t] + at, u[t] + at, table[k].end - at, of[t], past);
        passed();
    }
    free(of);
    free(table);
}
