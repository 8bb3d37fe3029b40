// The dispatch table: one family of micro-kernels a member, one table a tier. cpu.pyx picks a table at import.
#pragma once
#include "activation.h"
#include "attention.h"
#include "dropout.h"
#include "elementwise.h"
#include "gemm.h"
#include "norm.h"
#include "optimizer.h"
#include "quantize.h"
#include "reduce.h"
#include "rope.h"
#include "shape.h"
#include "softmax.h"

// Every family of micro-kernels: X(norm) needs simd/norm.{c,h}, which define `norm_ops` and `norm_table_<tier>`.
#define SIMD_FAMILIES(X)                                                                                               \
    X(elementwise)                                                                                                     \
    X(gemm)                                                                                                            \
    X(reduce)                                                                                                          \
    X(dropout)                                                                                                         \
    X(optimizer)                                                                                                       \
    X(attention)                                                                                                       \
    X(rope)                                                                                                            \
    X(quantize)                                                                                                        \
    X(norm)                                                                                                            \
    X(activation)                                                                                                      \
    X(softmax)                                                                                                         \
    X(shape)

#define SIMD_MEMBER(family) const family##_ops *family;
typedef struct simd_table {
    const char *tier;
    int vector_floats;  // floats in one vector register as this tier uses it
    SIMD_FAMILIES(SIMD_MEMBER)
} simd_table;

const simd_table *simd_find(const char *tier);  // NULL where this build has no such tier
int simd_supported(const char *tier);           // CPU and operating system run it
