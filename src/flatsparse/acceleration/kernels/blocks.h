/* The template of the kernels of 16x1 blocks, for one instruction set.

   Samples are worked on in tiles of SIDE, as many as a block has outputs. What is read or written at random, column by
   column (x and its gradient), is kept with a tile's samples innermost; y and its gradient stay as they are, since a block's
   outputs lie side by side in them. Each product multiplies a vector that blocks share with one number of each block:

       forward                  outputs of a sample += a block's weights, for each sample's x
       gradient of x            a column's samples += an output's samples, for each of a block's weights
       gradient of the weights  a block's weights  += a sample's outputs, for each block's x */

#undef SIDE
#undef PARTS
#undef TOGETHER
#undef SAMPLES
#undef CHUNK
#define SIDE 16
#define PARTS (SIDE / WIDTH) /* vectors of a block */
#define TOGETHER (WIDTH == 16 ? 8 : WIDTH == 8 ? 6 : 2)  /* blocks whose sums are kept in registers */
#define SAMPLES (WIDTH == 16 ? 16 : WIDTH == 8 ? 6 : 2)  /* samples whose outputs are */
#define CHUNK 8 /* tiles of x that stay in the second cache, for the gradient of the weights */

#undef turn
#undef turn_back
#undef turn_values
#define turn NAME(turn)
#define turn_back NAME(turn_back)
#define turn_values NAME(turn_values)

/* to[j][i] = from[i][j], for SIDE rows of a matrix; zeros past those it has. */
static void turn(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to) {
    int64_t j = 0;
    if (rows == SIDE)
        for (; j + WIDTH <= columns; j += WIDTH)
            for (int p = 0; p < PARTS; p++) {
                VEC r[WIDTH];
                _Pragma("GCC unroll 16") for (int i = 0; i < WIDTH; i++) r[i] = load(from + (p * WIDTH + i) * stride + j);
                transpose(r);
                _Pragma("GCC unroll 16") for (int i = 0; i < WIDTH; i++) store(to + (j + i) * SIDE + p * WIDTH, r[i]);
            }
    for (; j < columns; j++)
        for (int64_t i = 0; i < SIDE; i++) to[j * SIDE + i] = i < rows ? from[i * stride + j] : 0;
}

/* The way back: to[i][j] = from[j][i]. */
static void turn_back(const float *from, float *to, int64_t stride, int64_t rows, int64_t columns) {
    int64_t j = 0;
    if (rows == SIDE)
        for (; j + WIDTH <= columns; j += WIDTH)
            for (int p = 0; p < PARTS; p++) {
                VEC r[WIDTH];
                _Pragma("GCC unroll 16") for (int i = 0; i < WIDTH; i++) r[i] = load(from + (j + i) * SIDE + p * WIDTH);
                transpose(r);
                _Pragma("GCC unroll 16") for (int i = 0; i < WIDTH; i++) store(to + (p * WIDTH + i) * stride + j, r[i]);
            }
    for (; j < columns; j++)
        for (int64_t i = 0; i < rows; i++) to[i * stride + j] = from[j * SIDE + i];
}

/* The values of the blocks of rows 16 o to 16 o + 15, block by block. */
static void turn_values(Blocks m, int64_t o, const float *dense, float *values, float *blocks) {
    int64_t first = m.start[o], count = m.start[o + 1] - first;
    float *own = values + first * SIDE;
    if (dense)
        for (int64_t r = 0; r < SIDE; r++)
            for (int64_t k = 0; k < count; k++)
                own[r * count + k] = dense[(o * SIDE + r) * m.in + m.column[first + k]];
    turn(own, count, SIDE, count, blocks + first * SIDE);
}

/* The outputs 16 o to 16 o + 15 of `count` samples of a tile, of which `valid` are stored. */
INLINE void NAME(outputs)(Blocks m, int64_t o, const float *blocks, const float *xs, const float *bias, int count,
                          int64_t valid, float *y) {
    VEC sums[SIDE][PARTS];
    for (int p = 0; p < PARTS; p++) {
        VEC from = bias ? load(bias + o * SIDE + p * WIDTH) : (VEC){0};
        _Pragma("GCC unroll 16") for (int s = 0; s < count; s++) sums[s][p] = from;
    }
    for (int32_t k = m.start[o]; k < m.start[o + 1]; k++) {
        const float *x = xs + (int64_t)m.column[k] * SIDE;
        VEC w[PARTS];
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) w[p] = load(blocks + (int64_t)k * SIDE + p * WIDTH);
        _Pragma("GCC unroll 16") for (int s = 0; s < count; s++) {
            VEC each = spread(x[s]);
            _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) sums[s][p] += w[p] * each;
        }
    }
    _Pragma("GCC unroll 16") for (int s = 0; s < count; s++)
        if (s < valid)
            _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) store(y + s * m.out + o * SIDE + p * WIDTH, sums[s][p]);
}

static void NAME(forward)(Blocks m, const float *dense, float *values, const float *x, const float *bias, float *y,
                          int threads) {
    int64_t rows = m.out / SIDE, tiles = (m.batch + SIDE - 1) / SIDE;
    int64_t parts = tiles % threads && tiles < 8 * threads ? threads : 1; /* of the rows, where tiles are too few to share */
    float *blocks = aligned_alloc(64, ((int64_t)m.start[rows] * SIDE + SIDE) * sizeof(float));
    if (!blocks) abort();
#pragma omp parallel num_threads(threads)
    {
        float *xs = aligned_alloc(64, (m.in * SIDE + SIDE) * sizeof(float));
        if (!xs) abort();
#pragma omp for schedule(static)
        for (int64_t o = 0; o < rows; o++) turn_values(m, o, dense, values, blocks);
        int64_t held = -1; /* the tile that is turned */
#pragma omp for schedule(static)
        for (int64_t n = 0; n < tiles * parts; n++) {
            int64_t tile = n / parts, part = n % parts, lanes = MIN(SIDE, m.batch - tile * SIDE);
            if (held != tile) turn(x + tile * SIDE * m.in, m.in, lanes, m.in, xs);
            held = tile;
            for (int64_t o = rows * part / parts; o < rows * (part + 1) / parts; o++)
                for (int64_t s = 0; s < lanes; s += SAMPLES) {
                    int64_t left = MIN(SAMPLES, lanes - s);
                    float *to = y + (tile * SIDE + s) * m.out;
#define OUTPUTS(count) NAME(outputs)(m, o, blocks, xs + s, bias, MIN(count, SAMPLES), left, to)
                    if (left > 8) OUTPUTS(16);
                    else if (left > 4) OUTPUTS(8);
                    else if (left > 1) OUTPUTS(4);
                    else OUTPUTS(1);
#undef OUTPUTS
                }
        }
        free(xs);
    }
    free(blocks);
}

/* What `count` blocks, from k on, add to the gradient of a tile's x; dy [SIDE outputs, SIDE samples]. */
INLINE void NAME(to_x)(Blocks m, int32_t k, int count, const float *blocks, const float *dy, float *dxs) {
    VEC sums[SIDE][PARTS];
    _Pragma("GCC unroll 16") for (int e = 0; e < count; e++)
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++)
            sums[e][p] = load(dxs + (int64_t)m.column[k + e] * SIDE + p * WIDTH);
    _Pragma("GCC unroll 16") for (int r = 0; r < SIDE; r++) {
        VEC g[PARTS];
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) g[p] = load(dy + r * SIDE + p * WIDTH);
        _Pragma("GCC unroll 16") for (int e = 0; e < count; e++) {
            VEC w = spread(blocks[(int64_t)(k + e) * SIDE + r]);
            _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) sums[e][p] += w * g[p];
        }
    }
    _Pragma("GCC unroll 16") for (int e = 0; e < count; e++)
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++)
            store(dxs + (int64_t)m.column[k + e] * SIDE + p * WIDTH, sums[e][p]);
}

/* The gradient of `count` blocks, from k on, by some tiles of x [tile, in, SIDE samples] and dy [sample, SIDE outputs]. */
INLINE void NAME(to_blocks)(Blocks m, int32_t k, int count, const float *xs, const float *dy, int64_t tiles, int fresh,
                            float *dblocks) {
    VEC sums[SIDE][PARTS];
    _Pragma("GCC unroll 16") for (int e = 0; e < count; e++)
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++)
            sums[e][p] = fresh ? (VEC){0} : load(dblocks + (int64_t)(k + e) * SIDE + p * WIDTH);
    for (int64_t t = 0; t < tiles; t++) {
        const float *x[SIDE];
        _Pragma("GCC unroll 16") for (int e = 0; e < count; e++) x[e] = xs + (t * m.in + m.column[k + e]) * SIDE;
        _Pragma("GCC unroll 4") for (int s = 0; s < SIDE; s++) {
            VEC g[PARTS];
            _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) g[p] = load(dy + (t * SIDE + s) * SIDE + p * WIDTH);
            _Pragma("GCC unroll 16") for (int e = 0; e < count; e++) {
                VEC each = spread(x[e][s]);
                _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++) sums[e][p] += each * g[p];
            }
        }
    }
    _Pragma("GCC unroll 16") for (int e = 0; e < count; e++)
        _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++)
            store(dblocks + (int64_t)(k + e) * SIDE + p * WIDTH, sums[e][p]);
}

/* The blocks first to last in groups: WORK(k, count) with a constant count. */
#undef IN_GROUPS
#define IN_GROUPS(first, last, WORK)                                  \
    do {                                                              \
        int32_t k = first, end = last;                                \
        for (; k + TOGETHER <= end; k += TOGETHER) WORK(k, TOGETHER); \
        if (TOGETHER > 4 && k + 4 <= end) { WORK(k, 4); k += 4; }     \
        if (TOGETHER > 2 && k + 2 <= end) { WORK(k, 2); k += 2; }     \
        if (TOGETHER > 1 && k < end) WORK(k, 1);                      \
    } while (0)

/* The gradient of x for one tile. */
static void NAME(tile_to_x)(Blocks m, const float *blocks, const float *dy, int64_t lanes, float *dxs, float *dx) {
    float turned[SIDE * SIDE] __attribute__((aligned(64)));
    memset(dxs, 0, m.in * SIDE * sizeof(float));
    for (int64_t o = 0; o < m.out / SIDE; o++) {
        if (m.start[o] == m.start[o + 1]) continue;
        turn(dy + o * SIDE, m.out, lanes, SIDE, turned);
#define WORK(k, count) NAME(to_x)(m, k, count, blocks, turned, dxs)
        IN_GROUPS(m.start[o], m.start[o + 1], WORK);
#undef WORK
    }
    turn_back(dxs, dx, m.in, lanes, m.in);
}

/* The gradient of the blocks of rows 16 o to 16 o + 15, by some tiles that have `samples`. */
static void NAME(rows_to_blocks)(Blocks m, int64_t o, const float *xs, const float *dy, int64_t tiles, int64_t samples,
                                 int fresh, float *dblocks) {
    float own[CHUNK * SIDE * SIDE] __attribute__((aligned(64)));
    for (int64_t s = 0; s < tiles * SIDE; s++)
        for (int p = 0; p < PARTS; p++)
            store(own + s * SIDE + p * WIDTH, s < samples ? load(dy + s * m.out + o * SIDE + p * WIDTH) : (VEC){0});
#define WORK(k, count) NAME(to_blocks)(m, k, count, xs, own, tiles, fresh, dblocks)
    IN_GROUPS(m.start[o], m.start[o + 1], WORK);
#undef WORK
}

static void NAME(backward)(Blocks m, const float *values, const float *x, const float *dy, float *dx, float *dvalues,
                           float *dense, int threads) {
    int64_t rows = m.out / SIDE, tiles = (m.batch + SIDE - 1) / SIDE, size = (int64_t)m.start[rows] * SIDE + SIDE;
    float *blocks = aligned_alloc(64, size * sizeof(float)); /* the values, and then their gradient, block by block */
    float *xs = dvalues ? aligned_alloc(64, (MIN(CHUNK, tiles) * m.in + 1) * SIDE * sizeof(float)) : NULL;
    if (!blocks || (dvalues && !xs)) abort();
#pragma omp parallel num_threads(threads)
    {
        if (dx) {
            float *dxs = aligned_alloc(64, (m.in * SIDE + SIDE) * sizeof(float));
            if (!dxs) abort();
#pragma omp for schedule(static)
            for (int64_t o = 0; o < rows; o++) turn_values(m, o, NULL, (float *)values, blocks);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < tiles; t++)
                NAME(tile_to_x)(m, blocks, dy + t * SIDE * m.out, MIN(SIDE, m.batch - t * SIDE), dxs, dx + t * SIDE * m.in);
            free(dxs);
        }
        for (int64_t c = 0; dvalues && (c < tiles || c == 0); c += CHUNK) {
            int64_t here = MIN(CHUNK, tiles - c), first = c * SIDE;
#pragma omp for schedule(static)
            for (int64_t t = 0; t < here; t++)
                turn(x + (first + t * SIDE) * m.in, m.in, MIN(SIDE, m.batch - first - t * SIDE), m.in, xs + t * m.in * SIDE);
#pragma omp for schedule(static, 1)
            for (int64_t o = 0; o < rows; o++)
                NAME(rows_to_blocks)(m, o, xs, dy + first * m.out, here, m.batch - first, !c, blocks);
        }
        if (dvalues || dense) { /* no values have no address */
#pragma omp for schedule(static)
            for (int64_t o = 0; o < rows; o++) {
                int64_t start = m.start[o], count = m.start[o + 1] - start;
                float *own = dvalues + start * SIDE;
                turn_back(blocks + start * SIDE, own, count, SIDE, count);
                if (!dense) continue;
                for (int64_t r = 0; r < SIDE; r++) {
                    float *to = dense + (o * SIDE + r) * m.in;
                    memset(to, 0, m.in * sizeof(float));
                    for (int64_t k = 0; k < count; k++) to[m.column[start + k]] = own[r * count + k];
                }
            }
        }
    }
    free(xs);
    free(blocks);
}
