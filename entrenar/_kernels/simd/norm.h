// Normalisation of one row.
#pragma once
#include <stddef.h>

typedef struct norm_ops {
    // y = x rstd w with rstd = 1 / sqrt(mean(x^2) + eps), which is returned
    float (*rms_forward)(float *y, const float *x, const float *w, ptrdiff_t dim, float eps);
    // dx (+)= rstd (dy w - xhat mean(dy w xhat)), xhat = x rstd; dw += dy xhat. Either may be NULL.
    void (*rms_backward)(float *dx, float *dw, const float *dy, const float *x, const float *w, float rstd,
                         ptrdiff_t dim, int accumulate);
    // y = (x - mean) rstd w + b; w and b may be NULL
    void (*layer_forward)(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                          ptrdiff_t dim, float eps);
    // dx (+)= rstd (g - mean(g) - xhat mean(g xhat)), g = dy w; dw += dy xhat; db += dy. Each may be NULL.
    void (*layer_backward)(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, float mean,
                           float rstd, ptrdiff_t dim, int accumulate);
} norm_ops;
