"""gemv: products of few rows, bound by memory: a weight is dequantized in registers for GEMV_PASS rows at once.

Under a precision below "highest" x is quantized to 16-bit integers first, for the weights that are integers themselves.
"""
from cython.parallel cimport prange

from entrenar._kernels.cpu cimport matmul_format, simd
from entrenar._kernels.partition cimport SCRATCH_PACKED_A, ceil_div, min, scratch, threads_for
from entrenar._kernels.simd.gemm cimport GEMM_FP32, gemm_operand_b
from entrenar._kernels.simd.gemv cimport gemv_args, gemv_words
from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef enum:
    NC = 16                # rows of W in a job
    THREAD_WORK = 1 << 14  # multiply-adds worth a thread


cdef struct gemv_plan:
    const gemm_operand_b* b
    const float* x
    const float* quantized_x  # of m rows, gemv_words(k) words each, or NULL
    Py_ssize_t m, k
    bint accumulate


cdef inline bint has_integers(const matrix_view* w) noexcept nogil:
    return simd.weight_types[w.type].kernels.gemv_integer != NULL


cdef void row_block(const gemv_plan* p, Py_ssize_t job) noexcept nogil:
    """NC rows of one of the W_i."""
    cdef const gemm_operand_b* b = p.b
    cdef gemv_args g
    while job >= ceil_div(b.n, NC):
        job -= ceil_div(b.n, NC)
        b += 1
    g.y = b.c
    g.ldy = b.n
    g.w = b.b
    g.first = job * NC
    g.count = min(NC, b.n - g.first)
    g.k = p.k
    g.m = <int> p.m
    if p.quantized_x != NULL and has_integers(b.b):
        g.x = p.quantized_x
        g.ldx = gemv_words(p.k)
        simd.gemv.multiply_integer(&g)
    else:
        g.x = p.x
        g.ldx = p.k
        g.accumulate = p.accumulate
        simd.gemv.multiply(&g)


# y_i (m, n_i) (+)= x (m, k) W_i (n_i, k)^T
cdef int grouped_gemv(const gemm_operand_b* b, int count, const float* x, Py_ssize_t m, Py_ssize_t k,
                      bint accumulate) noexcept nogil:
    cdef Py_ssize_t jobs = 0, columns = 0, i
    cdef float* quantized = NULL
    cdef int forms = 0
    cdef int threads
    cdef gemv_plan p
    for i in range(count):
        jobs += ceil_div(b[i].n, NC)
        columns += b[i].n
        if has_integers(b[i].b):
            forms |= 1 << simd.weight_types[b[i].b.type].kernels.x_form
    if forms and matmul_format != GEMM_FP32:
        quantized = <float*> scratch(SCRATCH_PACKED_A, <size_t> (m * gemv_words(k)) * sizeof(float))
        if quantized == NULL:
            return -1
        for i in range(m):
            simd.gemv.quantize(quantized + i * gemv_words(k), x + i * k, k, forms)
    p.b = b
    p.x = x
    p.quantized_x = quantized
    p.m = m
    p.k = k
    p.accumulate = accumulate
    threads = threads_for(m * columns * k, THREAD_WORK)
    if threads == 1:  # a parallel region costs 50 ns, a tenth of a tiny product
        for i in range(jobs):
            row_block(&p, i)
    else:
        for i in prange(jobs, schedule="static", num_threads=threads):
            row_block(&p, i)
    return 0


cdef int gemv(float* y, const float* x, const matrix_view* w, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
              bint accumulate) noexcept nogil:
    cdef gemm_operand_b one
    one.c = y
    one.b = w
    one.n = n
    return grouped_gemv(&one, 1, x, m, k, accumulate)
