/* The layout of activations in the convolution kernels: [blocks][rows][channels][columns][LANES]. */
#ifndef FLATSPARSE_CONV_LAYOUT
#define FLATSPARSE_CONV_LAYOUT

#include "sets.h"

enum { LANES = 16 }; /* images side by side */

typedef struct {
    int64_t block, row, channel, step; /* in floats; the step in pixels */
} Strides;

#endif
