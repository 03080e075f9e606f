/* The arguments of the convolution kernels.

   Activations lie as [blocks][rows][channels][columns][LANES]: LANES images of a batch side by side. Strides are in floats,
   steps in pixels. */

#ifndef FLATSPARSE_CONV_H
#define FLATSPARSE_CONV_H

#include <stdint.h>

enum { LANES = 16, BANDS = 2 }; /* images side by side; bands of rows that a block's work is cut into */

typedef struct {
    int64_t block, row, channel, step;
} Strides;

/* y[o] = start[o] + the sum over o's non-zeros of value * x[offset], at every pixel. With mask, y is a gradient: add is
   added, and it is 0 where mask is not positive. sums[band][2][outputs][LANES] gets the sums of y, and of y times with
   (y where with is null). */
typedef struct {
    int64_t blocks, rows, columns, outputs;
    const int32_t *starts, *offsets;
    const float *values, *start, *x, *add, *mask, *with;
    float *y, *sums;
    Strides in, out, masked;
} Convolution;

/* gradient[k] = the sum over pixels and images of g[o] * x[offset k], for the non-zeros k of every output o. */
typedef struct {
    int64_t blocks, rows, columns, outputs;
    const int32_t *starts, *offsets;
    const float *g, *x;
    float *gradient, *sums;
    Strides outer, in;
} WeightGradient;

/* y = scale * x + scale2 * x2 + shift (x2 may be null), rectified where asked; 0 on its border of pad pixels, and for
   images from the last on. */
typedef struct {
    int64_t blocks, rows, columns, channels, images, pad, rectify;
    const float *x, *x2, *scale, *scale2, *shift;
    float *y;
    Strides in, in2, out;
} Combination;

/* g is a gradient: pooled[channel] spread over all pixels where given, else itself; 0 where mask is not positive, if given.
   sums[band][2][channels][LANES] gets the sums of g, and of g times with. */
typedef struct {
    int64_t blocks, rows, columns, channels;
    const float *pooled, *mask, *with;
    float *g, *sums;
    Strides out, masked;
} Reduction;

#endif
