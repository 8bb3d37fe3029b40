# The dispatch table as Cython sees it: one member a family, the same order as SIMD_FAMILIES in simd.h.
from entrenar._kernels.simd.elementwise cimport elementwise_ops
from entrenar._kernels.simd.quant cimport quant_ops

cdef extern from "simd/simd.h" nogil:
    ctypedef struct simd_table:
        const char* tier
        int vector_floats
        const elementwise_ops* elementwise
        const quant_ops* quant
    const simd_table* simd_find(const char* tier)
    bint simd_supported(const char* tier)
