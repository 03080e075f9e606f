/* Products of a sparse matrix and a batch: the forward of a linear layer and its gradients. */

#include "sets.h"

typedef struct {
    int64_t batch, in, out;
    const int32_t *row_start, *column;       /* by rows: row i has the entries row_start[i] to row_start[i + 1] */
    const int32_t *column_start, *row, *place; /* by columns, each with its place in the order by rows */
} Matrix;

#define TEMPLATE "linear.h"
#include "every_set.h"

/* y = x W^T + bias; x [batch, in], y [batch, out], bias [out] or null. The values are taken from a dense W [out, in] first,
   where it is given. */
void flatsparse_linear_forward(int64_t batch, int64_t in, int64_t out, const int32_t *row_start, const int32_t *column,
                               const float *dense, float *values, const float *x, const float *bias, float *y,
                               int threads) {
    CALL(forward)((Matrix){batch, in, out, row_start, column, NULL, NULL, NULL}, dense, values, x, bias, y, threads);
}

/* dx = dy W and the gradient of the values alone, of which either may be null: dy [batch, out], x and dx [batch, in]. The
   gradient of the values is also put into a dense matrix [out, in] of zeros, where one is given. */
void flatsparse_linear_backward(int64_t batch, int64_t in, int64_t out, const int32_t *row_start, const int32_t *column,
                                const int32_t *column_start, const int32_t *row, const int32_t *place,
                                const float *values, const float *x, const float *dy, float *dx, float *dvalues,
                                float *dense, int threads) {
    CALL(backward)((Matrix){batch, in, out, row_start, column, column_start, row, place}, values, x, dy, dx, dvalues,
                   dense, threads);
}
