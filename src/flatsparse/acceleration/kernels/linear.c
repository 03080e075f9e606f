/* Products of a sparse matrix and a batch: the forward of a linear layer and its gradients. */

#include "sets.h"

typedef struct {
    int64_t batch, in, out;
    const int32_t *row_start, *column;       /* by rows: row i has the entries row_start[i] to row_start[i + 1] */
    const int32_t *column_start, *row, *place; /* by columns, each with its place in the order by rows */
} Matrix;

#define TEMPLATE "linear.h"
#include "every_set.h"

/* y = x W^T + bias; x [batch, in], y [batch, out], bias [out] or null. */
void flatsparse_linear_forward(int64_t batch, int64_t in, int64_t out, const int32_t *row_start, const int32_t *column,
                               const float *values, const float *x, const float *bias, float *y, int threads) {
    CALL(forward)((Matrix){batch, in, out, row_start, column, NULL, NULL, NULL}, values, x, bias, y, threads);
}

/* dx = dy W and the gradient of the values alone, of which either may be null: dy [batch, out], x and dx [batch, in]. */
void flatsparse_linear_backward(int64_t batch, int64_t in, int64_t out, const int32_t *column_start, const int32_t *row,
                                const int32_t *place, const float *values, const float *x, const float *dy, float *dx,
                                float *dvalues, int threads) {
    CALL(backward)((Matrix){batch, in, out, NULL, NULL, column_start, row, place}, values, x, dy, dx, dvalues, threads);
}

/* The values of a dense matrix w at the entries. */
void flatsparse_gather(int64_t in, int64_t out, const int32_t *row_start, const int32_t *column, const float *w,
                       float *values, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < out; i++)
        for (int32_t k = row_start[i]; k < row_start[i + 1]; k++) values[k] = w[i * in + column[k]];
}

/* A dense matrix w with the values at the entries, and zeros elsewhere. */
void flatsparse_scatter(int64_t in, int64_t out, const int32_t *row_start, const int32_t *column, const float *values,
                        float *w, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < out; i++) {
        memset(w + i * in, 0, in * sizeof(float));
        for (int32_t k = row_start[i]; k < row_start[i + 1]; k++) w[i * in + column[k]] = values[k];
    }
}
