/* The convolution kernels over vectors of WIDTH floats; NAME gives functions their names, TILE is the pixels worked on at once. */

typedef float NAME(vector) __attribute__((vector_size(4 * WIDTH)));
#define VECTOR NAME(vector)
#define PARTS (LANES / WIDTH)
#define INLINE TARGET static inline __attribute__((always_inline))

INLINE VECTOR NAME(load)(const float *from) { return *(const VECTOR *)from; }
INLINE void NAME(store)(float *to, VECTOR value) { *(VECTOR *)to = value; }
INLINE VECTOR NAME(same)(float value) { return value - (VECTOR){0}; }
INLINE VECTOR NAME(where_positive)(VECTOR test, VECTOR value) {
    typedef int32_t Bits __attribute__((vector_size(4 * WIDTH)));
    return (VECTOR)((Bits)value & (Bits)(test > (VECTOR){0}));
}

/* One output at `pixels` pixels of a row. */
INLINE void NAME(sum_taps)(
    const Convolution *c, int64_t o, const float *x, const int pixels, const int64_t step, VECTOR sum[TILE][PARTS]
) {
    VECTOR start = NAME(same)(c->start ? c->start[o] : 0);
    for (int p = 0; p < pixels; p++)
        for (int u = 0; u < PARTS; u++) sum[p][u] = start;
    for (int32_t k = c->starts[o]; k < c->starts[o + 1]; k++) {
        const float *tap = x + c->offsets[k];
        VECTOR value = NAME(same)(c->values[k]);
#pragma GCC unroll 16
        for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
            for (int u = 0; u < PARTS; u++) sum[p][u] += value * NAME(load)(tap + p * step * LANES + u * WIDTH);
    }
}

INLINE void NAME(tile)(
    const Convolution *c, const float *x, int64_t at, int64_t masked, const int pixels, const int64_t in, const int64_t out,
    float *sums
) {
    for (int64_t o = 0; o < c->outputs; o++, at += c->out.channel, masked += c->masked.channel) {
        VECTOR sum[TILE][PARTS], first[PARTS], second[PARTS];
        NAME(sum_taps)(c, o, x, pixels, in, sum);
        for (int u = 0; u < PARTS; u++) first[u] = second[u] = (VECTOR){0};
#pragma GCC unroll 16
        for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
            for (int u = 0; u < PARTS; u++) {
                int64_t pixel = p * out * LANES + u * WIDTH;
                VECTOR y = sum[p][u];
                if (c->add) y += NAME(load)(c->add + at + pixel);
                if (c->mask) y = NAME(where_positive)(NAME(load)(c->mask + masked + pixel), y);
                NAME(store)(c->y + at + pixel, y);
                first[u] += y;
                second[u] += y * (c->with ? NAME(load)(c->with + at + pixel) : y);
            }
        if (sums)
            for (int u = 0; u < PARTS; u++) {
                float *s = sums + o * LANES + u * WIDTH, *q = s + c->outputs * LANES;
                NAME(store)(s, NAME(load)(s) + first[u]);
                NAME(store)(q, NAME(load)(q) + second[u]);
            }
    }
}

INLINE void NAME(convolve_row)(
    const Convolution *c, const float *x, int64_t at, int64_t masked, const int64_t in, const int64_t out, float *sums
) {
    int64_t column = 0;
    for (; column + TILE <= c->columns; column += TILE)
        NAME(tile)(c, x + column * in * LANES, at + column * out * LANES, masked + column * out * LANES, TILE, in, out, sums);
    for (; column < c->columns; column++)
        NAME(tile)(c, x + column * in * LANES, at + column * out * LANES, masked + column * out * LANES, 1, in, out, sums);
}

TARGET static void NAME(convolve_rows)(const Convolution *c, int64_t block, int64_t first, int64_t last, float *sums) {
    for (int64_t row = first; row < last; row++) {
        const float *x = c->x + block * c->in.block + row * c->in.row;
        int64_t at = block * c->out.block + row * c->out.row, masked = block * c->masked.block + row * c->masked.row;
        if (c->in.step == 1 && c->out.step == 1) NAME(convolve_row)(c, x, at, masked, 1, 1, sums);
        else NAME(convolve_row)(c, x, at, masked, c->in.step, c->out.step, sums);
    }
}

INLINE void NAME(weight_tile)(
    const WeightGradient *c, int64_t o, const float *g, const float *x, const int pixels, const int64_t step
) {
    VECTOR outer[TILE][PARTS];
    for (int p = 0; p < pixels; p++)
        for (int u = 0; u < PARTS; u++) outer[p][u] = NAME(load)(g + p * LANES + u * WIDTH);
    for (int32_t k = c->starts[o]; k < c->starts[o + 1]; k++) {
        const float *tap = x + c->offsets[k];
        VECTOR even = NAME(load)(c->sums + (int64_t)k * WIDTH), odd = {0};
#pragma GCC unroll 16
        for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
            for (int u = 0; u < PARTS; u++) {
                VECTOR factor = NAME(load)(tap + p * step * LANES + u * WIDTH);
                if ((p * PARTS + u) % 2) odd += outer[p][u] * factor;
                else even += outer[p][u] * factor;
            }
        NAME(store)(c->sums + (int64_t)k * WIDTH, even + odd);
    }
}

INLINE void NAME(weight_row)(
    const WeightGradient *c, int64_t first, int64_t last, const float *g, const float *x, const int64_t step
) {
    int64_t column = 0;
    for (; column + TILE <= c->columns; column += TILE)
        for (int64_t o = first; o < last; o++)
            NAME(weight_tile)(c, o, g + o * c->outer.channel + column * LANES, x + column * step * LANES, TILE, step);
    for (; column < c->columns; column++)
        for (int64_t o = first; o < last; o++)
            NAME(weight_tile)(c, o, g + o * c->outer.channel + column * LANES, x + column * step * LANES, 1, step);
}

/* The gradient of the weights of outputs [first, last): one thread's share, so that sums do not depend on the threads. */
TARGET static void NAME(weight_gradient)(const WeightGradient *c, int64_t first, int64_t last) {
    for (int32_t k = c->starts[first]; k < c->starts[last]; k++) NAME(store)(c->sums + (int64_t)k * WIDTH, (VECTOR){0});
    for (int64_t block = 0; block < c->blocks; block++)
        for (int64_t row = 0; row < c->rows; row++) {
            const float *g = c->g + block * c->outer.block + row * c->outer.row;
            const float *x = c->x + block * c->in.block + row * c->in.row;
            if (c->in.step == 1) NAME(weight_row)(c, first, last, g, x, 1);
            else NAME(weight_row)(c, first, last, g, x, c->in.step);
        }
    for (int32_t k = c->starts[first]; k < c->starts[last]; k++) {
        float sum = 0;
        for (int i = 0; i < WIDTH; i++) sum += c->sums[(int64_t)k * WIDTH + i];
        c->gradient[k] = sum;
    }
}

INLINE void NAME(combine_pixels)(
    const Combination *c, int64_t channel, const float *x, const float *x2, float *y, const float *images
) {
    float scale = c->scale[channel], scale2 = x2 ? c->scale2[channel] : 0, shift = c->shift[channel];
    for (int64_t i = 0; i < c->columns * LANES; i += WIDTH) {
        VECTOR value = NAME(load)(x + i) * scale + shift;
        if (x2) value += NAME(load)(x2 + i) * scale2;
        if (c->rectify) value = NAME(where_positive)(value, value);
        if (images) value = NAME(where_positive)(NAME(load)(images + i % LANES), value);
        NAME(store)(y + i, value);
    }
}

TARGET static void NAME(combine_row)(const Combination *c, int64_t block, int64_t row) {
    float images[LANES] __attribute__((aligned(64)));
    for (int i = 0; i < LANES; i++) images[i] = block * LANES + i < c->images;
    const float *mask = (block + 1) * LANES > c->images ? images : 0;
    for (int64_t channel = 0; channel < c->channels; channel++) {
        const float *x = c->x + block * c->in.block + row * c->in.row + channel * c->in.channel;
        const float *x2 = c->x2 ? c->x2 + block * c->in2.block + row * c->in2.row + channel * c->in2.channel : 0;
        float *y = c->y + block * c->out.block + row * c->out.row + channel * c->out.channel;
        if (x2 && mask) NAME(combine_pixels)(c, channel, x, x2, y, mask);
        else if (x2) NAME(combine_pixels)(c, channel, x, x2, y, 0);
        else if (mask) NAME(combine_pixels)(c, channel, x, 0, y, mask);
        else NAME(combine_pixels)(c, channel, x, 0, y, 0);
    }
}

TARGET static void NAME(reduce_row)(const Reduction *c, int64_t block, int64_t row, float *sums) {
    int64_t at = block * c->out.block + row * c->out.row, masked = block * c->masked.block + row * c->masked.row;
    const float *pooled = c->pooled ? c->pooled + block * c->channels * LANES : 0;
    for (int64_t channel = 0; channel < c->channels; channel++, at += c->out.channel, masked += c->masked.channel)
        for (int u = 0; u < PARTS; u++) {
            VECTOR first = {0}, second = {0};
            for (int64_t i = u * WIDTH; i < c->columns * LANES; i += LANES) {
                VECTOR g = NAME(load)(pooled ? pooled + channel * LANES + u * WIDTH : c->g + at + i);
                if (c->mask) g = NAME(where_positive)(NAME(load)(c->mask + masked + i), g);
                if (c->mask || pooled) NAME(store)(c->g + at + i, g);
                first += g;
                if (c->with) second += g * NAME(load)(c->with + at + i);
            }
            if (sums) {
                float *s = sums + channel * LANES + u * WIDTH, *q = s + c->channels * LANES;
                NAME(store)(s, NAME(load)(s) + first);
                NAME(store)(q, NAME(load)(q) + second);
            }
        }
}

#undef VECTOR
#undef PARTS
#undef INLINE
