/* Products of a matrix of whole 16x1 blocks and a batch: the forward of a linear layer and its gradients. */

#include "sets.h"

typedef struct {
    int64_t batch, in, out;
    const int32_t *start, *column; /* rows 16 o to 16 o + 15 have the blocks start[o] to start[o + 1], each in one column */
} Blocks;

#define TEMPLATE "blocks.h"
#include "every_set.h"

/* y = x W^T + bias; x [batch, in], y [batch, out], bias [out] or null. The values are W's entries row by row; they are taken
   from a dense W [out, in] first, where it is given. */
void flatsparse_blocks_forward(int64_t batch, int64_t in, int64_t out, const int32_t *start, const int32_t *column,
                               const float *dense, float *values, const float *x, const float *bias, float *y,
                               int threads) {
    CALL(forward)((Blocks){batch, in, out, start, column}, dense, values, x, bias, y, threads);
}

/* dx = dy W and the gradient of the values alone, of which either may be null: dy [batch, out], x and dx [batch, in]. The
   gradient of the values is also put into a dense matrix [out, in] of zeros, where one is given. */
void flatsparse_blocks_backward(int64_t batch, int64_t in, int64_t out, const int32_t *start, const int32_t *column,
                                const float *values, const float *x, const float *dy, float *dx, float *dvalues,
                                float *dense, int threads) {
    CALL(backward)((Blocks){batch, in, out, start, column}, values, x, dy, dx, dvalues, dense, threads);
}
