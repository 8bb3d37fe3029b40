// The dispatch table: one family of micro-kernels a member, one table a tier. cpu.pyx picks a table at import.
#pragma once
#include "activation.h"
#include "attention.h"
#include "digest.h"
#include "dropout.h"
#include "elementwise.h"
#include "gemm.h"
#include "gemv.h"
#include "norm.h"
#include "optimizer.h"
#include "peak.h"
#include "quantize.h"
#include "reduce.h"
#include "rope.h"
#include "shape.h"
#include "skinny.h"
#include "softmax.h"
#include "weights/types.h"

// Every member `norm` is the `norm_ops` of simd/norm.h, which simd/norm.c fills in as `norm_table_<tier>`.
typedef struct simd_table {
    const char *tier;
    int vector_floats;  // floats in one vector register as this tier uses it
    const activation_ops *activation;
    const attention_ops *attention;
    const digest_ops *digest;
    const dropout_ops *dropout;
    const elementwise_ops *elementwise;
    const gemm_ops *gemm;
    const gemv_ops *gemv;
    const norm_ops *norm;
    const optimizer_ops *optimizer;
    const peak_ops *peak;
    const quantize_ops *quantize;
    const reduce_ops *reduce;
    const rope_ops *rope;
    const shape_ops *shape;
    const skinny_ops *skinny;
    const softmax_ops *softmax;
    const weight_type *weight_types;  // the traits table: an entry of this for each weight type
} simd_table;

const simd_table *simd_find(const char *tier);  // NULL where this build has no such tier
int simd_supported(const char *tier);           // CPU and operating system run it
