// This tier's dispatch table.
#include "simd/simd.h"
#include "simd/vec.h"

#define QUOTE_(x) #x
#define QUOTE(x) QUOTE_(x)

extern const activation_ops TIERED(activation_table);
extern const attention_ops TIERED(attention_table);
extern const digest_ops TIERED(digest_table);
extern const dropout_ops TIERED(dropout_table);
extern const elementwise_ops TIERED(elementwise_table);
extern const gemm_ops TIERED(gemm_table);
extern const gemv_ops TIERED(gemv_table);
extern const norm_ops TIERED(norm_table);
extern const optimizer_ops TIERED(optimizer_table);
extern const peak_ops TIERED(peak_table);
extern const quantize_ops TIERED(quantize_table);
extern const reduce_ops TIERED(reduce_table);
extern const rope_ops TIERED(rope_table);
extern const shape_ops TIERED(shape_table);
extern const skinny_ops TIERED(skinny_table);
extern const softmax_ops TIERED(softmax_table);

const simd_table TIERED(simd_table) = {
    .tier = QUOTE(TIER),
    .vector_floats = VLEN,
    .activation = &TIERED(activation_table),
    .attention = &TIERED(attention_table),
    .digest = &TIERED(digest_table),
    .dropout = &TIERED(dropout_table),
    .elementwise = &TIERED(elementwise_table),
    .gemm = &TIERED(gemm_table),
    .gemv = &TIERED(gemv_table),
    .norm = &TIERED(norm_table),
    .optimizer = &TIERED(optimizer_table),
    .peak = &TIERED(peak_table),
    .quantize = &TIERED(quantize_table),
    .reduce = &TIERED(reduce_table),
    .rope = &TIERED(rope_table),
    .shape = &TIERED(shape_table),
    .skinny = &TIERED(skinny_table),
    .softmax = &TIERED(softmax_table),
    .weight_types = TIERED(weight_types),
};
