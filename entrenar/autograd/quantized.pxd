from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef class QuantizedTensor:
    cdef matrix_view view        # ready for a kernel; its pointers lead into the arrays below
    cdef readonly str weight_type           # "nf4", "q4_0", "q4_1", "q8_0" or "int16"
    cdef readonly Py_ssize_t rows
    cdef readonly Py_ssize_t columns
    cdef readonly object quantized_values
    cdef readonly object absmax
    cdef readonly object quantized_absmax
    cdef readonly object absmax_map
