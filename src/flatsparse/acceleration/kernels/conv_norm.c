/* What convolution kernels need besides: batch norm from sums, its gradient, and changes of layout. */

#include "conv_layout.h"

/* Batch norm as scale * x + shift, from the sums of x and of x * x, where x is the true input less `less` (which may be
   null); or from the running statistics, where sums is null. mean is that of x. Running statistics may be null. */
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

/* The sum of a channel over all images of the batch; which is 0 for the first of both sums, 1 for the second. */
static double sum_images(const float *sums, int64_t images, int64_t channels, int64_t which, int64_t channel) {
    double sum = 0;
    for (int64_t image = 0; image < images; image++)
        sum += sums[((image / LANES * 2 + which) * channels + channel) * LANES + image % LANES];
    return sum;
}

#define SQRT __builtin_sqrt

void flatsparse_norm(const Norm *n, int threads) {
    (void)threads;
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

void flatsparse_norm_gradient(const NormGradient *n, int threads) {
    (void)threads;
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
