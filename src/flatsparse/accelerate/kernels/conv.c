/* Sparse convolutions, and batch norm, ReLU and addition around them, with the images of a batch innermost. */

#include "conv.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define NAME(name) name##_avx512
#define WIDTH 16
#ifndef TILE512
#define TILE512 8
#endif
#define TILE TILE512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma,prefer-vector-width=512")))
#include "conv_body.h"
#undef NAME
#undef WIDTH
#undef TILE
#undef TARGET
#define NAME(name) name##_avx2
#define WIDTH 8
#define TILE 4
#define TARGET __attribute__((target("avx2,fma")))
#include "conv_body.h"
#undef NAME
#undef WIDTH
#undef TILE
#undef TARGET
#endif

#define NAME(name) name##_plain
#define WIDTH 4
#define TILE 2
#define TARGET
#include "conv_body.h"
#undef NAME
#undef WIDTH
#undef TILE
#undef TARGET

/* The instruction sets: 0 for vectors of 4 floats, 1 for AVX2, 2 for AVX-512. */
#ifdef __x86_64__
#define CALL(set, name, ...) \
    ((set) == 2 ? name##_avx512(__VA_ARGS__) : (set) == 1 ? name##_avx2(__VA_ARGS__) : name##_plain(__VA_ARGS__))
#else
#define CALL(set, name, ...) name##_plain(__VA_ARGS__)
#endif

/* The best instruction set that the processor has. */
int flatsparse_conv_set(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

static int64_t band_start(int64_t rows, int64_t band) { return rows * band / BANDS; }

void flatsparse_convolve(int set, int threads, const Convolution *c) {
    int64_t size = 2 * c->outputs * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < c->blocks * BANDS; i++) {
        float *sums = c->sums ? c->sums + i * size : 0;
        CALL(set, convolve_rows, c, i / BANDS, band_start(c->rows, i % BANDS), band_start(c->rows, i % BANDS + 1), sums);
    }
}

void flatsparse_weight_gradient(int set, int threads, const WeightGradient *c) {
    int64_t cut[65] = {0}, all = c->starts[c->outputs];
    if (threads > 64) threads = 64;
    for (int64_t t = 1, o = 0; t <= threads; t++) { /* outputs in shares of about as many non-zeros */
        while (o < c->outputs && c->starts[o] * (int64_t)threads < all * t) o++;
        cut[t] = t == threads ? c->outputs : o;
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) CALL(set, weight_gradient, c, cut[t], cut[t + 1]);
}

/* Zero a row's border: before and after the columns of every channel. */
static void clear_sides(const Combination *c, float *y) {
    size_t side = sizeof(float) * c->pad * LANES;
    for (int64_t channel = 0; channel < c->channels; channel++, y += c->out.channel) {
        memset(y - c->pad * LANES, 0, side);
        memset(y + c->columns * LANES, 0, side);
    }
}

void flatsparse_combine(int set, int threads, const Combination *c) {
    int64_t rows = c->rows + 2 * c->pad;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < c->blocks * rows; i++) {
        int64_t block = i / rows, row = i % rows - c->pad;
        float *y = c->y + block * c->out.block + row * c->out.row;
        if (row < 0 || row >= c->rows) {
            memset(y - c->pad * LANES, 0, sizeof(float) * c->channels * c->out.channel);
            continue;
        }
        if (c->pad) clear_sides(c, y);
        CALL(set, combine_row, c, block, row);
    }
}

void flatsparse_reduce(int set, int threads, const Reduction *c) {
    int64_t size = 2 * c->channels * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < c->blocks * BANDS; i++)
        for (int64_t row = band_start(c->rows, i % BANDS); row < band_start(c->rows, i % BANDS + 1); row++)
            CALL(set, reduce_row, c, i / BANDS, row, c->sums ? c->sums + i * size : 0);
}
