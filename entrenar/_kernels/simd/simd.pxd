# Made from the header by scripts/simd_pxd.py.
from entrenar._kernels.simd.activation cimport activation_ops
from entrenar._kernels.simd.attention cimport attention_ops
from entrenar._kernels.simd.digest cimport digest_ops
from entrenar._kernels.simd.dropout cimport dropout_ops
from entrenar._kernels.simd.elementwise cimport elementwise_ops
from entrenar._kernels.simd.gemm cimport gemm_ops
from entrenar._kernels.simd.gemv cimport gemv_ops
from entrenar._kernels.simd.norm cimport norm_ops
from entrenar._kernels.simd.optimizer cimport optimizer_ops
from entrenar._kernels.simd.peak cimport peak_ops
from entrenar._kernels.simd.quantize cimport quantize_ops
from entrenar._kernels.simd.reduce cimport reduce_ops
from entrenar._kernels.simd.rope cimport rope_ops
from entrenar._kernels.simd.shape cimport shape_ops
from entrenar._kernels.simd.skinny cimport skinny_ops
from entrenar._kernels.simd.softmax cimport softmax_ops
from entrenar._kernels.simd.weights.types cimport weight_type

cdef extern from "simd/simd.h" nogil:
    ctypedef struct simd_table:
        const char* tier
        int vector_floats
        const activation_ops* activation
        const attention_ops* attention
        const digest_ops* digest
        const dropout_ops* dropout
        const elementwise_ops* elementwise
        const gemm_ops* gemm
        const gemv_ops* gemv
        const norm_ops* norm
        const optimizer_ops* optimizer
        const peak_ops* peak
        const quantize_ops* quantize
        const reduce_ops* reduce
        const rope_ops* rope
        const shape_ops* shape
        const skinny_ops* skinny
        const softmax_ops* softmax
        const weight_type* weight_types
    const simd_table* simd_find(const char* tier) noexcept
    int simd_supported(const char* tier) noexcept
