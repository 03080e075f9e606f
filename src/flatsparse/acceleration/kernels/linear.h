/* The template of the linear kernels, for one instruction set.

   A batch is worked on in blocks of LANES samples with the samples innermost, so that an entry of the matrix meets a run of
   memory. What is read at random (x in the forward, dy in the backward) is copied into that layout, a block at a time, and
   stays in the second cache; the rest is transposed in registers, WIDTH by WIDTH. */

#undef LANES
#undef PARTS
#define LANES 32
#define PARTS (LANES / WIDTH)

#undef tile
#undef untile
#undef pack
#undef entries
#undef share
#define tile NAME(tile)
#define untile NAME(untile)
#define pack NAME(pack)
#define entries NAME(entries)
#define share NAME(share)

/* to[j][lane] = from[lane][j], for WIDTH columns of a block; zeros past its `lanes` rows and `columns`. */
INLINE void tile(const float *from, int64_t stride, int64_t lanes, int64_t columns, float *to) {
    if (lanes == LANES && columns >= WIDTH) {
        for (int p = 0; p < PARTS; p++) {
            VEC r[WIDTH];
            _Pragma("GCC unroll 16") for (int l = 0; l < WIDTH; l++) r[l] = load(from + (p * WIDTH + l) * stride);
            transpose(r);
            _Pragma("GCC unroll 16") for (int j = 0; j < WIDTH; j++) store(to + j * LANES + p * WIDTH, r[j]);
        }
        return;
    }
    for (int64_t j = 0; j < MIN(columns, WIDTH); j++)
        for (int64_t l = 0; l < LANES; l++) to[j * LANES + l] = l < lanes ? from[l * stride + j] : 0;
}

/* The way back: to[lane][j] = from[j][lane]. */
INLINE void untile(const float *from, float *to, int64_t stride, int64_t lanes, int64_t columns) {
    if (lanes == LANES && columns >= WIDTH) {
        for (int p = 0; p < PARTS; p++) {
            VEC r[WIDTH];
            _Pragma("GCC unroll 16") for (int j = 0; j < WIDTH; j++) r[j] = load(from + j * LANES + p * WIDTH);
            transpose(r);
            _Pragma("GCC unroll 16") for (int l = 0; l < WIDTH; l++) store(to + (p * WIDTH + l) * stride, r[l]);
        }
        return;
    }
    for (int64_t l = 0; l < lanes; l++)
        for (int64_t j = 0; j < MIN(columns, WIDTH); j++) to[l * stride + j] = from[j * LANES + l];
}

/* Rows `first` to `last` of a block with the samples innermost. */
static void pack(const float *from, int64_t stride, int64_t lanes, int64_t first, int64_t last, float *to) {
    for (int64_t j = first; j < last; j += WIDTH) tile(from + j, stride, lanes, last - j, to + j * LANES);
}

/* The first of the rows that one of several threads works on: a multiple of WIDTH, with its share of the entries before it. */
static int64_t share(const int32_t *start, int64_t rows, int64_t thread, int64_t threads) {
    if (thread >= threads) return rows;
    int64_t low = 0, high = rows, before = (int64_t)start[rows] * thread / threads;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (start[middle] < before) low = middle + 1;
        else high = middle;
    }
    return low / WIDTH * WIDTH;
}

static void NAME(forward_rows)(Matrix m, const float *values, const float *packed, const float *bias, int64_t lanes,
                               int64_t first, int64_t last, float *y) {
    float sums[WIDTH * LANES] __attribute__((aligned(64)));
    for (int64_t i = first; i < last; i += WIDTH) {
        for (int64_t r = i; r < MIN(i + WIDTH, last); r++) {
            VEC even[PARTS], odd[PARTS];
            for (int p = 0; p < PARTS; p++) even[p] = spread(bias ? bias[r] : 0), odd[p] = (VEC){0};
            int32_t k = m.row_start[r], end = m.row_start[r + 1];
            for (; k + 2 <= end; k += 2) {
                const float *a = packed + (int64_t)m.column[k] * LANES, *b = packed + (int64_t)m.column[k + 1] * LANES;
                VEC v = spread(values[k]), w = spread(values[k + 1]);
                for (int p = 0; p < PARTS; p++) even[p] += v * load(a + p * WIDTH);
                for (int p = 0; p < PARTS; p++) odd[p] += w * load(b + p * WIDTH);
            }
            if (k < end)
                for (int p = 0; p < PARTS; p++)
                    even[p] += spread(values[k]) * load(packed + (int64_t)m.column[k] * LANES + p * WIDTH);
            for (int p = 0; p < PARTS; p++) store(sums + (r - i) * LANES + p * WIDTH, even[p] + odd[p]);
        }
        untile(sums, y + i, m.out, lanes, last - i);
    }
}

static void NAME(forward)(Matrix m, const float *dense, float *values, const float *x, const float *bias, float *y,
                          int threads) {
    int64_t blocks = (m.batch + LANES - 1) / LANES, parts = blocks % threads && blocks < 8 * threads ? threads : 1;
#pragma omp parallel num_threads(threads)
    {
        float *packed = aligned_alloc(64, (m.in * LANES + LANES) * sizeof(float));
        if (!packed) abort();
        if (dense) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < m.out; i++)
                for (int32_t k = m.row_start[i]; k < m.row_start[i + 1]; k++) values[k] = dense[i * m.in + m.column[k]];
        }
        int64_t held = -1; /* the block that is packed */
#pragma omp for schedule(static)
        for (int64_t n = 0; n < blocks * parts; n++) {
            int64_t block = n / parts, lanes = MIN(LANES, m.batch - block * LANES);
            if (held != block) pack(x + block * LANES * m.in, m.in, lanes, 0, m.in, packed);
            held = block;
            NAME(forward_rows)(m, values, packed, bias, lanes, share(m.row_start, m.out, n % parts, parts),
                               share(m.row_start, m.out, n % parts + 1, parts), y + block * LANES * m.out);
        }
        free(packed);
    }
}

/* `count` entries of a column, at most WIDTH, of which the last may be repeated: what they add to the gradient of x, and
   their own gradients. */
INLINE void entries(const int32_t *row, const float *values, int count, int valid, const float *packed, const VEC x[PARTS],
                    VEC dx[PARTS], float *dvalues, int fresh, int wants_x, int wants_values) {
    VEC sums[WIDTH];
    _Pragma("GCC unroll 16") for (int e = 0; e < WIDTH; e++) {
        if (e >= count) {
            sums[e] = (VEC){0};
            continue;
        }
        int last = e > count - 4 && e >= valid;
        const float *g = packed + (int64_t)row[last ? valid - 1 : e] * LANES;
        VEC v = spread(last ? 0 : values[e]);
        sums[e] = (VEC){0};
        for (int p = 0; p < PARTS; p++) {
            VEC dy = load(g + p * WIDTH);
            if (wants_x) dx[p] += v * dy;
            if (wants_values) sums[e] += x[p] * dy;
        }
    }
    if (!wants_values) return;
    VEC sum = totals(sums);
    if (valid == WIDTH) store(dvalues, fresh ? sum : load(dvalues) + sum);
    else
        for (int e = 0; e < valid; e++) dvalues[e] = sum[e] + (fresh ? 0 : dvalues[e]);
}

/* The columns `first` to `last` for one block. */
INLINE void NAME(backward_columns)(Matrix m, const float *values, const float *packed, int64_t lanes, int64_t first,
                                   int64_t last, const float *x, float *dx, float *dvalues, int fresh,
                                   int wants_x, int wants_values) {
    float xs[WIDTH * LANES] __attribute__((aligned(64))), sums[WIDTH * LANES] __attribute__((aligned(64)));
    for (int64_t c = first; c < last; c += WIDTH) {
        if (wants_values) tile(x + c, m.in, lanes, last - c, xs);
        for (int64_t j = c; j < MIN(c + WIDTH, last); j++) {
            VEC own[PARTS], sum[PARTS];
            for (int p = 0; p < PARTS; p++) {
                own[p] = wants_values ? load(xs + (j - c) * LANES + p * WIDTH) : (VEC){0};
                sum[p] = (VEC){0};
            }
            int32_t k = m.column_start[j], end = m.column_start[j + 1];
#define ENTRIES(count, valid) \
    entries(m.row + k, values + k, count, valid, packed, own, sum, dvalues + k, fresh, wants_x, wants_values)
            for (; k + WIDTH <= end; k += WIDTH) ENTRIES(WIDTH, WIDTH);
            int left = end - k;
            if (left > 12) ENTRIES(MIN(16, WIDTH), left);
            else if (left > 8) ENTRIES(MIN(12, WIDTH), left);
            else if (left > 4) ENTRIES(MIN(8, WIDTH), left);
            else if (left > 0) ENTRIES(4, left);
#undef ENTRIES
            if (wants_x)
                for (int p = 0; p < PARTS; p++) store(sums + (j - c) * LANES + p * WIDTH, sum[p]);
        }
        if (wants_x) untile(sums, dx + c, m.in, lanes, last - c);
    }
}

static void NAME(backward)(Matrix m, const float *values, const float *x, const float *dy, float *dx, float *dvalues,
                           float *dense, int threads) {
    int64_t blocks = (m.batch + LANES - 1) / LANES, count = m.column_start[m.in];
    float *packed = aligned_alloc(64, (blocks * m.out * LANES + LANES) * sizeof(float));
    float *by_column = malloc((2 * count + 1) * sizeof(float)), *sums = by_column + count;
    if (!packed || !by_column) abort();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++)
            pack(dy + block * LANES * m.out, m.out, MIN(LANES, m.batch - block * LANES), 0, m.out,
                 packed + block * m.out * LANES);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < threads; t++) {
            int64_t first = share(m.column_start, m.in, t, threads), last = share(m.column_start, m.in, t + 1, threads);
            int32_t start = m.column_start[first], end = m.column_start[last];
            for (int32_t k = start; k < end; k++) by_column[k] = values[m.place[k]];
            for (int64_t block = 0; block < blocks; block++) {
                int64_t lanes = MIN(LANES, m.batch - block * LANES), offset = block * LANES * m.in;
                const float *mine = packed + block * m.out * LANES;
                if (dx && dvalues)
                    NAME(backward_columns)(m, by_column, mine, lanes, first, last, x + offset, dx + offset, sums, !block, 1, 1);
                else if (dx)
                    NAME(backward_columns)(m, by_column, mine, lanes, first, last, NULL, dx + offset, NULL, 0, 1, 0);
                else
                    NAME(backward_columns)(m, by_column, mine, lanes, first, last, x + offset, NULL, sums, !block, 0, 1);
            }
            if (dvalues)
                for (int32_t k = start; k < end; k++) dvalues[m.place[k]] = sums[k];
        }
        if (dense) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < m.out; i++) {
                memset(dense + i * m.in, 0, m.in * sizeof(float));
                for (int32_t k = m.row_start[i]; k < m.row_start[i + 1]; k++) dense[i * m.in + m.column[k]] = dvalues[k];
            }
        }
    }
    free(by_column);
    free(packed);
}
