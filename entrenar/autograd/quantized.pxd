from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef class QuantizedTensor:
    cdef matrix_view view          # ready for a kernel; its pointers lead into the arrays below
    cdef readonly str weight_type  # the name of view.type
    cdef readonly Py_ssize_t rows
    cdef readonly Py_ssize_t columns
    cdef object stored_values      # a line a row, in the order of `view`
    cdef readonly object scales
    cdef readonly object quantized_scales
    cdef readonly object scale_map
    cdef list references           # weak, so that NumPy does not resize those arrays
