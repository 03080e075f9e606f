/* Sparse convolutions, with batch norm, ReLU and additions around them, for activations with the images of a batch innermost.

   An activation lies as [blocks][rows][channels][columns][LANES]: LANES images side by side, so that one weight meets a run
   of memory at every pixel. Strides are in floats, steps in pixels. Sums over pixels are kept by band, a part of the rows of
   a block, as [band][2][channels][LANES]; so they do not depend on the number of threads. */

#include "sets.h"

enum { LANES = 16, BANDS = 2 };

typedef struct {
    int64_t block, row, channel, step;
} Strides;

/* y[o] = start[o] + the sum over o's non-zeros of value * x[offset] + add, at every pixel; 0 where mask is not positive, or
   y is not and rectify is set. start, add and mask may be null. sums, unless null, gets those of y and of y times with (y
   where with is null). */
typedef struct {
    int64_t blocks, rows, columns, outputs, rectify;
    const int32_t *starts, *offsets;
    const float *values, *start, *x, *add, *mask, *with;
    float *y, *sums;
    Strides in, added, masked, out;
} Convolution;

/* gradient[k] = the sum over pixels and images of g[o] * x[offset of k], for the non-zeros k of every output o; sums has room
   for LANES floats each. */
typedef struct {
    int64_t blocks, rows, columns, outputs;
    const int32_t *starts, *offsets;
    const float *g, *x;
    float *gradient, *sums;
    Strides outer, in;
} WeightGradient;

/* y = scale * x + scale2 * x2 + shift (x2, and scale2 for 1, may be null), rectified where asked; 0 on a border of pad
   pixels, and for images past the last. */
typedef struct {
    int64_t blocks, rows, columns, channels, images, pad, rectify;
    const float *x, *x2, *scale, *scale2, *shift;
    float *y;
    Strides in, in2, out;
} Combination;

/* g, a gradient that lies as with does, is made that of [block][channel][LANES] pooled, where given, and 0 where mask is not
   positive, where given. sums gets those of g and of g times with. */
typedef struct {
    int64_t blocks, rows, columns, channels;
    const float *pooled, *mask, *with;
    float *g, *sums;
    Strides out, masked;
} Reduction;

/* Batch norm as scale * x + shift, from the sums of x and of x * x, where x is short of the true input by `less` (which may
   be null); or from the running statistics, where sums is null. mean is that of x. Running statistics may be null. */
typedef struct {
    int64_t channels, images, count;
    const float *sums, *less, *weight, *bias;
    float *running_mean, *running_var, *scale, *shift, *mean, *inverse;
    double eps, factor;
} Norm;

/* The gradient of x as a * g + b * x + c, from the sums of g and of g * x, and those of weight and bias; with fixed set, mean
   and inverse do not depend on x. */
typedef struct {
    int64_t channels, images, count, fixed;
    const float *sums, *scale, *mean, *inverse;
    float *a, *b, *c, *weight_gradient, *bias_gradient;
} NormGradient;

/* Images as torch has them, with strides of their own; y lies as said above. */
typedef struct {
    int64_t images, channels, rows, columns, image, channel, row, column;
    float *there, *here;
    Strides in;
} Exchange;

static int64_t band_start(int64_t rows, int64_t band) { return rows * band / BANDS; }

#define TEMPLATE "conv.h"
#include "every_set.h"

void flatsparse_convolve(const Convolution *c, int threads) {
    int64_t size = 2 * c->outputs * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < c->blocks * BANDS; i++)
        CALL(convolve_rows)(c, i / BANDS, band_start(c->rows, i % BANDS), band_start(c->rows, i % BANDS + 1),
                            c->sums ? c->sums + i * size : NULL);
}

/* Every thread has outputs of its own, in shares of about as many non-zeros, so sums do not depend on the threads. */
void flatsparse_weight_gradient(const WeightGradient *c, int threads) {
    int64_t all = c->starts[c->outputs];
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        int64_t first = 0, last = 0;
        while (first < c->outputs && (int64_t)c->starts[first] * threads < all * t) first++;
        last = first;
        while (last < c->outputs && (t == threads - 1 || (int64_t)c->starts[last] * threads < all * (t + 1))) last++;
        CALL(weight_gradient)(c, first, last);
    }
}

static void clear_sides(const Combination *c, float *y) {
    size_t side = sizeof(float) * c->pad * LANES;
    for (int64_t channel = 0; channel < c->channels; channel++, y += c->out.channel) {
        memset(y - c->pad * LANES, 0, side);
        memset(y + c->columns * LANES, 0, side);
    }
}

/* A combination; without x, the border alone is cleared. */
void flatsparse_combine(const Combination *c, int threads) {
    int64_t rows = c->rows + 2 * c->pad;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < c->blocks * rows; i++) {
        int64_t block = i / rows, row = i % rows - c->pad;
        float *y = c->y + block * c->out.block + row * c->out.row;
        if (row < 0 || row >= c->rows) memset(y - c->pad * LANES, 0, sizeof(float) * c->channels * c->out.channel);
        else {
            if (c->pad) clear_sides(c, y);
            if (c->x) CALL(combine_row)(c, block, row);
        }
    }
}

void flatsparse_reduce(const Reduction *c, int threads) {
    int64_t size = 2 * c->channels * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < c->blocks * BANDS; i++)
        CALL(reduce_rows)(c, i / BANDS, band_start(c->rows, i % BANDS), band_start(c->rows, i % BANDS + 1),
                          c->sums ? c->sums + i * size : NULL);
}

/* The sum of a channel over all images of the batch; which is 0 for the first of both sums, 1 for the second. */
static double sum_images(const float *sums, int64_t images, int64_t channels, int64_t which, int64_t channel) {
    double sum = 0;
    for (int64_t first = 0; first < images; first += LANES)
        for (int64_t band = first / LANES * BANDS; band < (first / LANES + 1) * BANDS; band++)
            for (int64_t lane = 0; lane < MIN(LANES, images - first); lane++)
                sum += sums[((band * 2 + which) * channels + channel) * LANES + lane];
    return sum;
}

#define SQRT __builtin_sqrt

void flatsparse_norm(const Norm *n) {
    for (int64_t i = 0; i < n->channels; i++) {
        double less = n->less ? n->less[i] : 0, mean, var;
        if (n->sums) {
            mean = sum_images(n->sums, n->images, n->channels, 0, i) / n->count;
            var = sum_images(n->sums, n->images, n->channels, 1, i) / n->count - mean * mean;
            if (var < 0) var = 0;
            if (n->running_mean) {
                n->running_mean[i] = (1 - n->factor) * n->running_mean[i] + n->factor * (mean + less);
                n->running_var[i] = (1 - n->factor) * n->running_var[i] + n->factor * var * n->count / (n->count - 1);
            }
        } else {
            mean = n->running_mean[i] - less;
            var = n->running_var[i];
        }
        double inverse = 1 / SQRT(var + n->eps), scale = inverse * (n->weight ? n->weight[i] : 1);
        n->mean[i] = mean;
        n->inverse[i] = inverse;
        n->scale[i] = scale;
        n->shift[i] = (n->bias ? n->bias[i] : 0) - mean * scale;
    }
}

void flatsparse_norm_gradient(const NormGradient *n) {
    for (int64_t i = 0; i < n->channels; i++) {
        double g = sum_images(n->sums, n->images, n->channels, 0, i), inverse = n->inverse[i];
        double weight = (sum_images(n->sums, n->images, n->channels, 1, i) - n->mean[i] * g) * inverse;
        double a = n->scale[i], b = n->fixed ? 0 : -a * inverse * weight / n->count;
        n->a[i] = a;
        n->b[i] = b;
        n->c[i] = n->fixed ? 0 : -a * g / n->count - b * n->mean[i];
        n->weight_gradient[i] = weight;
        n->bias_gradient[i] = g;
    }
}

/* From torch's images to this layout, with zeros for images past the last; the border is left as it is. */
void flatsparse_enter(const Exchange *c, int threads) {
    int64_t blocks = (c->images + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < blocks * c->rows * c->channels; i++) {
        int64_t block = i / (c->rows * c->channels), row = i / c->channels % c->rows, channel = i % c->channels;
        int64_t lanes = MIN(LANES, c->images - block * LANES);
        const float *from = c->there + block * LANES * c->image + channel * c->channel + row * c->row;
        float *to = c->here + block * c->in.block + row * c->in.row + channel * c->in.channel;
        if (lanes < LANES) memset(to, 0, sizeof(float) * c->columns * LANES);
        for (int64_t lane = 0; lane < lanes; lane++)
            for (int64_t column = 0; column < c->columns; column++)
                to[column * LANES + lane] = from[lane * c->image + column * c->column];
    }
}

/* And back. */
void flatsparse_leave(const Exchange *c, int threads) {
    int64_t blocks = (c->images + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < blocks * c->rows * c->channels; i++) {
        int64_t block = i / (c->rows * c->channels), row = i / c->channels % c->rows, channel = i % c->channels;
        float *to = c->there + block * LANES * c->image + channel * c->channel + row * c->row;
        const float *from = c->here + block * c->in.block + row * c->in.row + channel * c->in.channel;
        for (int64_t lane = 0; lane < MIN(LANES, c->images - block * LANES); lane++)
            for (int64_t column = 0; column < c->columns; column++)
                to[lane * c->image + column * c->column] = from[column * LANES + lane];
    }
}
