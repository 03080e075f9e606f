/* The template of the step's loops over a piece of a tensor, for one instruction set. */

/* The sum of the squares of n entries, a lane at a time in float. */
static double NAME(squares)(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i += LANE) {
        int64_t end = MIN(i + LANE, n), j = i;
        VEC even = {0}, odd = {0};
        for (; j + 2 * WIDTH <= end; j += 2 * WIDTH) {
            VEC a = load(x + j), b = load(x + j + WIDTH);
            even += a * a;
            odd += b * b;
        }
        float lane = total(even + odd);
        for (; j < end; j++) lane += x[j] * x[j];
        sum += lane;
    }
    return sum;
}

/* The step of n weights w with gradients g and momenta m, and u = w + scale g. */
static void NAME(steps)(float *w, const float *g, float *m, float *u, int64_t n, Settings set, int past) {
    for (int64_t i = 0; i < n; i += LANE) {
        int64_t size = MIN(LANE, n - i);
        float *restrict W = w + i, *restrict M = m + i, U[LANE];
        const float *restrict G = g + i;
        if (set.nesterov) {
#pragma omp simd
            for (int64_t j = 0; j < size; j++) {
                float d = G[j] + set.decay * W[j];
                M[j] = set.momentum * M[j] + set.fresh * d;
                W[j] -= set.lr * (d + set.momentum * M[j]);
                U[j] = W[j] + set.scale * G[j];
            }
        } else {
#pragma omp simd
            for (int64_t j = 0; j < size; j++) {
                M[j] = set.momentum * M[j] + set.fresh * (G[j] + set.decay * W[j]);
                W[j] -= set.lr * M[j];
                U[j] = W[j] + set.scale * G[j];
            }
        }
        pass(u + i, U, size, past);
    }
}
