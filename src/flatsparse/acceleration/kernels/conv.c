/* Sparse convolutions, with batch norm, ReLU and additions around them, for activations with the images of a batch innermost.

   An activation lies as [blocks][rows][channels][columns][LANES]: LANES images side by side, so that one weight meets a run
   of memory at every pixel. Strides are in floats, steps in pixels. Sums over pixels are [blocks][2][channels][LANES]; a block
   is worked on by one thread, so they do not depend on the number of threads. */

#include "conv_layout.h"

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

enum { BANDS = 4, SHARES = 8, PHASES = 16 };

/* y = scale * x + scale2 * x2 + shift (x2, and scale2 for 1, may be null), rectified where asked; 0 on a border of pad
   pixels, and for images past the last. Nothing is done where x is null. */
typedef struct {
    int64_t rows, columns, channels, images, pad, rectify;
    const float *x, *x2, *scale, *scale2, *shift;
    float *y;
    Strides in, in2, out;
} Combination;

/* y[o] = start[o] + the sum over o's non-zeros of value * x[offset] + add, at every pixel; 0 where mask is not positive, or
   y is not and rectify is set. start, add and mask may be null. sums, unless null, gets those of y and of y times with (y
   where with is null). */
typedef struct {
    int64_t rows, columns, outputs, rectify;
    const int32_t *starts, *offsets;
    const float *values, *start, *x, *add, *mask, *with;
    float *y, *sums;
    Strides in, added, masked, out;
} Convolution;

/* sums[k] += g[o] * x[offset of k] over the pixels, for the non-zeros k of every output o: WIDTH floats each. */
typedef struct {
    int64_t rows, columns, outputs;
    const int32_t *starts, *offsets;
    const float *g, *x;
    float *sums;
    Strides outer, in;
} WeightGradient;

/* A convolution whose input is made first, row by row, so that it is read from the cache. Where kept is 0, the input is made
   in room for one block a thread, and forgotten. Row i of the output reads rows from step * i - above to, without it,
   step * i + reach. shift, unless null, becomes the start of the outputs: less their mean over one row, so that sums of
   squares lose few digits. */
typedef struct {
    int64_t blocks, kept, step, above, reach;
    float *room, *shift;
    Combination input;
    Convolution convolution;
} Forward;

/* The backward of a convolution: the gradient of its output is made row by row (in room for one block a thread), its input
   made again where it was not kept, and from both the gradients of the weights (gradient may be null) and of the input, one
   convolution for each phase of its rows and columns. Row i of a phase reads gradients below i + gradient_reach. */
typedef struct {
    int64_t blocks, kept, step, reach, gradient_reach, phases, values;
    float *room, *gradient_room, *gradient, *sums;
    Combination input, output_gradient;
    WeightGradient weights;
    Convolution input_gradient[PHASES];
} Backward;

/* g, a gradient that lies as with does, is made that of [block][channel][LANES] pooled, where given, and 0 where mask is not
   positive, where given. sums gets those of g and of g times with. */
typedef struct {
    int64_t blocks, rows, columns, channels;
    const float *pooled, *mask, *with;
    float *g, *sums;
    Strides out, masked;
} Reduction;

#define TEMPLATE "conv.h"
#include "every_set.h"

static int64_t block_size(const Combination *c) {
    return (c->rows + 2 * c->pad) * c->channels * (c->columns + 2 * c->pad) * LANES;
}

/* Zero a block's border; y lies at the first pixel within. */
static void clear_border(const Combination *c, float *y) {
    for (int64_t row = -c->pad; row < c->rows + c->pad && c->pad; row++) {
        float *first = y + row * c->out.row - c->pad * LANES;
        if (row < 0 || row >= c->rows) memset(first, 0, sizeof(float) * c->channels * c->out.channel);
        else
            for (int64_t channel = 0; channel < c->channels; channel++, first += c->out.channel) {
                memset(first, 0, sizeof(float) * c->pad * LANES);
                memset(first + (c->columns + c->pad) * LANES, 0, sizeof(float) * c->pad * LANES);
            }
    }
}

/* A combination by itself; without x, the border alone is cleared. */
void flatsparse_combine(const Combination *c, int64_t blocks, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        clear_border(c, c->y + block * c->out.block);
        for (int64_t row = 0; row < c->rows && c->x; row++) CALL(combine_row)(c, block, row);
    }
}

/* Where a thread makes one block at a time, with a cleared border. */
static void use_room(Combination *c, float *room) {
    c->y = room + c->pad * (c->out.row + LANES);
    c->out.block = 0;
    clear_border(c, c->y);
}

static void forward_block(const Forward *f, const Combination *input, const Convolution *c, int64_t block, float *sums) {
    int64_t made = 0;
    for (int64_t row = 0; row < c->rows; row++) {
        for (; input->x && made < MIN(input->rows, f->step * row + f->reach); made++) CALL(combine_row)(input, block, made);
        CALL(convolve_rows)(c, block, row, row + 1, sums);
    }
    for (; input->x && made < input->rows; made++) CALL(combine_row)(input, block, made);
}

/* Let an input that is not kept be made in a thread's room. */
static void use_forward_room(const Forward *f, Combination *input, Convolution *c, int thread) {
    if (!input->x || f->kept) return;
    int64_t first = c->x - input->y; /* from the input's first pixel to what the first tap reads */
    use_room(input, f->room + thread * block_size(input));
    c->x = input->y + first;
    c->in.block = 0;
}

/* Minus the mean of each output over the middle row of the first block. */
static void find_shift(const Forward *f) {
    Combination input = f->input;
    Convolution c = f->convolution;
    int64_t middle = c.rows / 2, first = f->step * middle - f->above, images = MIN(LANES, input.images);
    float *sums = calloc(2 * c.outputs * LANES, sizeof(float));
    if (!sums) abort();
    use_forward_room(f, &input, &c, 0);
    if (input.x && f->kept) clear_border(&input, input.y);
    for (int64_t row = first < 0 ? 0 : first; input.x && row < MIN(input.rows, f->step * middle + f->reach); row++)
        CALL(combine_row)(&input, 0, row);
    c.start = NULL;
    CALL(convolve_rows)(&c, 0, middle, middle + 1, sums);
    for (int64_t o = 0; o < c.outputs; o++) {
        double sum = 0;
        for (int64_t lane = 0; lane < images; lane++) sum += sums[o * LANES + lane];
        f->shift[o] = -sum / (images * c.columns);
    }
    free(sums);
}

void flatsparse_forward(const Forward *f, int threads) {
    int64_t sums = 2 * f->convolution.outputs * LANES;
    if (f->shift) find_shift(f);
#pragma omp parallel num_threads(threads)
    {
        Combination input = f->input;
        Convolution c = f->convolution;
        if (f->shift) c.start = f->shift;
        use_forward_room(f, &input, &c, THREAD);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < f->blocks; block++) {
            if (input.x && f->kept) clear_border(&input, input.y + block * input.out.block);
            forward_block(f, &input, &c, block, c.sums ? c.sums + block * sums : NULL);
        }
    }
}

/* A convolution by itself, without sums. */
void flatsparse_convolve(const Convolution *c, int64_t blocks, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < blocks * BANDS; i++)
        CALL(convolve_rows)(c, i / BANDS, c->rows * (i % BANDS) / BANDS, c->rows * (i % BANDS + 1) / BANDS, NULL);
}

static void backward_block(const Backward *b, const Combination *input, const Combination *g, const WeightGradient *w,
                           const Convolution *dx, int64_t block) {
    int64_t made = 0, made_g = 0, rows = g->rows;
    for (int64_t p = 0; p < b->phases; p++)
        if (dx[p].rows > rows) rows = dx[p].rows;
    for (int64_t row = 0; row < rows; row++) {
        for (; made_g < MIN(g->rows, row + b->gradient_reach); made_g++) CALL(combine_row)(g, block, made_g);
        for (; input->x && made < MIN(input->rows, b->step * row + b->reach); made++) CALL(combine_row)(input, block, made);
        if (b->gradient && row < g->rows) CALL(weight_row)(w, block, row);
        for (int64_t p = 0; p < b->phases; p++)
            if (row < dx[p].rows)
                CALL(convolve_rows)(dx + p, block, row, row + 1,
                                    dx[p].sums ? dx[p].sums + block * 2 * dx[p].outputs * LANES : NULL);
    }
}

/* The work is cut into shares of blocks, each with sums of its own, so that those do not depend on the threads. */
static void backward_share(const Backward *b, int64_t share, int64_t shares) {
    Combination input = b->input, g = b->output_gradient;
    WeightGradient w = b->weights;
    Convolution dx[PHASES];
    memcpy(dx, b->input_gradient, sizeof(dx));
    float *first_g = g.y, *first_input = input.y;
    use_room(&g, b->gradient_room + THREAD * block_size(&g));
    w.g = g.y, w.outer.block = 0;
    w.sums = b->sums + share * b->values * LANES;
    for (int64_t p = 0; p < b->phases; p++) dx[p].x = g.y + (dx[p].x - first_g), dx[p].in.block = 0;
    if (input.x) {
        use_room(&input, b->room + THREAD * block_size(&input));
        w.x = input.y + (w.x - first_input), w.in.block = 0;
        for (int64_t p = 0; p < b->phases; p++)
            if (dx[p].mask) dx[p].mask = input.y + (dx[p].mask - first_input), dx[p].masked.block = 0;
    }
    if (b->gradient) memset(w.sums, 0, sizeof(float) * b->values * LANES);
    for (int64_t block = b->blocks * share / shares; block < b->blocks * (share + 1) / shares; block++)
        backward_block(b, &input, &g, &w, dx, block);
}

void flatsparse_backward(const Backward *b, int threads) {
    int64_t shares = MIN(b->blocks, SHARES);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t share = 0; share < shares; share++) backward_share(b, share, shares);
    for (int64_t k = 0; k < b->values && b->gradient; k++) {
        float sum = 0;
        for (int64_t share = 0; share < shares; share++)
            for (int i = 0; i < LANES; i++) sum += b->sums[(share * b->values + k) * LANES + i];
        b->gradient[k] = sum;
    }
}

void flatsparse_reduce(const Reduction *c, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < c->blocks; block++)
        CALL(reduce_block)(c, block, c->sums ? c->sums + block * 2 * c->channels * LANES : NULL);
}
