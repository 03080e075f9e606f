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

/* The step of n weights w with gradients g and momenta m, and u = w + scale g; past the caches, u need not wait for its lines. */
static void NAME(steps)(float *restrict w, const float *restrict g, float *restrict m, float *restrict u, int64_t n,
                        Settings set, int past) {
    int64_t i = 0, whole = n - n % WIDTH;
    past = past && (uintptr_t)u % (4 * WIDTH) == 0;
    for (; i < whole; i += WIDTH) {
        VEC G = load(g + i), W = load(w + i), d = G + set.decay * W, M = set.momentum * load(m + i) + set.fresh * d;
        W -= set.lr * (set.nesterov ? d + set.momentum * M : M);
        store(m + i, M);
        store(w + i, W);
        if (past)
            stream(u + i, W + set.scale * G);
        else
            store(u + i, W + set.scale * G);
    }
    for (; i < n; i++) {
        float d = g[i] + set.decay * w[i];
        m[i] = set.momentum * m[i] + set.fresh * d;
        w[i] -= set.lr * (set.nesterov ? d + set.momentum * m[i] : m[i]);
        u[i] = w[i] + set.scale * g[i];
    }
}
