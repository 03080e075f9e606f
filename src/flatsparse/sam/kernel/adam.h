/* The template of Adam's loop over a piece of a tensor, for one instruction set. */

/* The step of n weights w with gradients g and moments m and v, and u = w + scale g. */
static void NAME(adams)(float *w, const float *g, float *m, float *v, float *u, int64_t n, Settings set, int past) {
    for (int64_t i = 0; i < n; i += STRIP) {
        int64_t size = MIN(STRIP, n - i);
        float *restrict W = w + i, *restrict M = m + i, *restrict V = v + i, U[STRIP];
        const float *restrict G = g + i;
#pragma omp simd
        for (int64_t j = 0; j < size; j++) {
            float d = G[j] + set.decay * W[j];
            M[j] = set.beta1 * M[j] + set.fresh1 * d;
            V[j] = set.beta2 * V[j] + set.fresh2 * d * d;
            W[j] = set.keep * W[j] - set.rate * M[j] / (set.root * sqrtf(V[j]) + set.eps);
            U[j] = W[j] + set.scale * G[j];
        }
        pass(u + i, U, size, past);
    }
}
