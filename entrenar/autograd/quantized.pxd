from entrenar._kernels.simd.source cimport weight_source

cdef class QuantizedTensor:
    cdef weight_source source        # ready for a kernel; its pointers lead into the arrays below
    cdef readonly str kind           # "nf4", "q4_0", "q4_1", "q8_0" or "int16"
    cdef readonly Py_ssize_t rows
    cdef readonly Py_ssize_t columns
    cdef readonly object codes
    cdef readonly object absmax
    cdef readonly object absmax_codes
    cdef readonly object absmax_map
