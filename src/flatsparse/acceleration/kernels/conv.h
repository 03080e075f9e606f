/* The template of the convolution kernels, for one instruction set. TILE pixels of a row are worked on at once. */

#undef PARTS
#undef TILE
#define PARTS (LANES / WIDTH)
#define TILE (REGISTERS / 4 / PARTS < 2 ? 2 : REGISTERS / 4 / PARTS)

#undef where_positive
#undef sum_taps
#undef tile
#undef convolve_row
#undef weight_tile
#undef weight_tiles
#undef combine_pixels
#define where_positive NAME(where_positive)
#define sum_taps NAME(sum_taps)
#define tile NAME(tile)
#define convolve_row NAME(convolve_row)
#define weight_tile NAME(weight_tile)
#define weight_tiles NAME(weight_tiles)
#define combine_pixels NAME(combine_pixels)

/* value where test is positive, 0 elsewhere; a test that is not a number lets it pass, as torch does. */
INLINE VEC where_positive(VEC test, VEC value) {
    typedef int32_t Bits __attribute__((vector_size(4 * WIDTH)));
    return (VEC)((Bits)value & ~(Bits)(test <= (VEC){0}));
}

/* One output at `pixels` pixels of a row. */
INLINE void sum_taps(const Convolution *c, int64_t o, const float *x, const int pixels, const int64_t step,
                     VEC sum[TILE][PARTS]) {
    VEC start = spread(c->start ? c->start[o] : 0);
    for (int p = 0; p < pixels; p++)
        for (int u = 0; u < PARTS; u++) sum[p][u] = start;
    for (int32_t k = c->starts[o]; k < c->starts[o + 1]; k++) {
        const float *tap = x + c->offsets[k];
        VEC value = spread(c->values[k]);
        _Pragma("GCC unroll 16") for (int p = 0; p < pixels; p++)
            _Pragma("GCC unroll 4") for (int u = 0; u < PARTS; u++)
                sum[p][u] += value * load(tap + p * step * LANES + u * WIDTH);
    }
}

/* The outputs at `pixels` pixels; at, added and masked are where the first of them lies in y and with, add and mask. */
INLINE void tile(const Convolution *c, const float *x, int64_t at, int64_t added, int64_t masked, const int pixels,
                 const int64_t in, const int64_t out, float *sums) {
    for (int64_t o = 0; o < c->outputs; o++) {
        VEC sum[TILE][PARTS], first[PARTS], second[PARTS];
        if (pixels == TILE)
            for (int p = 0; p < pixels; p++) {
                int64_t next = (pixels + p) * out * LANES;
                __builtin_prefetch(c->y + at + next, 1);
                if (c->with) __builtin_prefetch(c->with + at + next);
                if (c->mask) __builtin_prefetch(c->mask + masked + next);
                if (c->add) __builtin_prefetch(c->add + added + next);
            }
        sum_taps(c, o, x, pixels, in, sum);
        for (int u = 0; u < PARTS; u++) first[u] = second[u] = (VEC){0};
        _Pragma("GCC unroll 16") for (int p = 0; p < pixels; p++)
            _Pragma("GCC unroll 4") for (int u = 0; u < PARTS; u++) {
                int64_t pixel = p * out * LANES + u * WIDTH;
                VEC y = sum[p][u];
                if (c->add) y += load(c->add + added + pixel);
                if (c->rectify) y = where_positive(y, y);
                if (c->mask) y = where_positive(load(c->mask + masked + pixel), y);
                store(c->y + at + pixel, y);
                first[u] += y;
                second[u] += y * (c->with ? load(c->with + at + pixel) : y);
            }
        if (sums)
            for (int u = 0; u < PARTS; u++) {
                float *s = sums + o * LANES + u * WIDTH, *q = s + c->outputs * LANES;
                store(s, load(s) + first[u]);
                store(q, load(q) + second[u]);
            }
        at += c->out.channel, added += c->added.channel, masked += c->masked.channel;
    }
}

INLINE void convolve_row(const Convolution *c, const float *x, int64_t at, int64_t added, int64_t masked, const int64_t in,
                         const int64_t out, float *sums) {
    int64_t column = 0;
    for (; column + TILE <= c->columns; column += TILE) {
        tile(c, x, at, added, masked, TILE, in, out, sums);
        x += TILE * in * LANES;
        at += TILE * out * LANES, added += TILE * out * LANES, masked += TILE * out * LANES;
    }
    for (; column < c->columns; column++) {
        tile(c, x, at, added, masked, 1, in, out, sums);
        x += in * LANES;
        at += out * LANES, added += out * LANES, masked += out * LANES;
    }
}

static void NAME(convolve_rows)(const Convolution *c, int64_t block, int64_t first, int64_t last, float *sums) {
    for (int64_t row = first; row < last; row++) {
        const float *x = c->x + block * c->in.block + row * c->in.row;
        int64_t at = block * c->out.block + row * c->out.row, added = block * c->added.block + row * c->added.row;
        int64_t masked = block * c->masked.block + row * c->masked.row;
        if (c->in.step == 1 && c->out.step == 1) convolve_row(c, x, at, added, masked, 1, 1, sums);
        else convolve_row(c, x, at, added, masked, c->in.step, c->out.step, sums);
    }
}

/* What `pixels` pixels of a row add to the gradient of the weights of one output. */
INLINE void weight_tile(const WeightGradient *c, int64_t o, const float *g, const float *x, const int pixels,
                        const int64_t step) {
    VEC outer[TILE][PARTS];
    for (int p = 0; p < pixels; p++)
        for (int u = 0; u < PARTS; u++) outer[p][u] = load(g + p * LANES + u * WIDTH);
    for (int32_t k = c->starts[o]; k < c->starts[o + 1]; k++) {
        const float *tap = x + c->offsets[k];
        VEC even = load(c->sums + (int64_t)k * LANES), odd = {0};
        _Pragma("GCC unroll 16") for (int p = 0; p < pixels; p++)
            _Pragma("GCC unroll 4") for (int u = 0; u < PARTS; u++) {
                VEC factor = load(tap + p * step * LANES + u * WIDTH);
                if ((p * PARTS + u) % 2) odd += outer[p][u] * factor;
                else even += outer[p][u] * factor;
            }
        store(c->sums + (int64_t)k * LANES, even + odd);
    }
}

INLINE void weight_tiles(const WeightGradient *c, const float *g, const float *x, const int64_t step) {
    int64_t column = 0;
    for (; column + TILE <= c->columns; column += TILE)
        for (int64_t o = 0; o < c->outputs; o++)
            weight_tile(c, o, g + o * c->outer.channel + column * LANES, x + column * step * LANES, TILE, step);
    for (; column < c->columns; column++)
        for (int64_t o = 0; o < c->outputs; o++)
            weight_tile(c, o, g + o * c->outer.channel + column * LANES, x + column * step * LANES, 1, step);
}

static void NAME(weight_row)(const WeightGradient *c, int64_t block, int64_t row) {
    const float *g = c->g + block * c->outer.block + row * c->outer.row;
    const float *x = c->x + block * c->in.block + row * c->in.row;
    if (c->in.step == 1) weight_tiles(c, g, x, 1);
    else weight_tiles(c, g, x, c->in.step);
}

/* One channel of a row; images is 1 for those of the batch, or null where all are. */
INLINE void combine_pixels(const Combination *c, int64_t channel, const float *x, const float *x2, float *y,
                           const float *images) {
    float scale = c->scale[channel], scale2 = c->scale2 ? c->scale2[channel] : 1, shift = c->shift[channel];
    for (int64_t i = 0; i < c->columns * LANES; i += WIDTH) {
        VEC value = load(x + i) * scale + shift;
        if (x2) value += load(x2 + i) * scale2;
        if (c->rectify) value = where_positive(value, value);
        if (images) value = where_positive(load(images + i % LANES), value);
        store(y + i, value);
    }
}

static void NAME(combine_row)(const Combination *c, int64_t block, int64_t row) {
    float images[LANES];
    for (int i = 0; i < LANES; i++) images[i] = block * LANES + i < c->images;
    int partly = (block + 1) * LANES > c->images;
    for (int64_t channel = 0; channel < c->channels; channel++) {
        const float *x = c->x + block * c->in.block + row * c->in.row + channel * c->in.channel;
        const float *x2 = c->x2 ? c->x2 + block * c->in2.block + row * c->in2.row + channel * c->in2.channel : NULL;
        float *y = c->y + block * c->out.block + row * c->out.row + channel * c->out.channel;
        if (x2 && partly) combine_pixels(c, channel, x, x2, y, images);
        else if (x2) combine_pixels(c, channel, x, x2, y, NULL);
        else combine_pixels(c, channel, x, NULL, y, partly ? images : NULL);
    }
}

static void NAME(reduce_block)(const Reduction *c, int64_t block, float *sums) {
    const float *pooled = c->pooled ? c->pooled + block * c->channels * LANES : NULL;
    for (int64_t row = 0; row < c->rows; row++) {
        int64_t at = block * c->out.block + row * c->out.row, masked = block * c->masked.block + row * c->masked.row;
        for (int64_t channel = 0; channel < c->channels; channel++, at += c->out.channel, masked += c->masked.channel)
            for (int u = 0; u < PARTS; u++) {
                VEC first = {0}, second = {0};
                for (int64_t i = u * WIDTH; i < c->columns * LANES; i += LANES) {
                    VEC g = load(pooled ? pooled + channel * LANES + u * WIDTH : c->g + at + i);
                    if (c->mask) g = where_positive(load(c->mask + masked + i), g);
                    if (c->mask || pooled) store(c->g + at + i, g);
                    first += g;
                    if (c->with) second += g * load(c->with + at + i);
                }
                if (!sums) continue;
                float *s = sums + channel * LANES + u * WIDTH, *q = s + c->channels * LANES;
                store(s, load(s) + first);
                store(q, load(q) + second);
            }
    }
}
