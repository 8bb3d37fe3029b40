"""Skinny GEMM: products with an operand of a small rank r.

Packing a wide operand would cost as much as multiplying it by a skinny one, so only the skinny one is copied, to rows
padded to whole vectors; the wide one is read where it lies.
"""
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memset

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.gemm cimport linear_backward_weight
from entrenar._kernels.gemv cimport gemv
from entrenar._kernels.partition cimport SCRATCH_PACKED_A, ceil_div, max, min, round_up, scratch, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of
from entrenar._kernels.simd.gemm cimport GEMM_FP32
from entrenar._kernels.simd.gemv cimport GEMV_ROWS
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar._kernels.simd.skinny cimport skinny_args, skinny_ones
from entrenar._kernels.simd.weights.types cimport f32_view

cdef enum:
    MC = 48                # rows and columns of C in a job
    NC = 192
    KC = 128               # steps at once where A is read down its columns: each touches a cache line of its own
    VECTOR = 16            # floats of the widest vector, to which rows of B are padded
    THREAD_WORK = 1 << 17  # multiply-adds worth a thread

cdef int SKINNY_FORWARD = register("skinny_forward")
cdef int SKINNY_BACKWARD = register("skinny_backward")
cdef int SKINNY_BACKWARD_A = register("skinny_backward_a")
cdef int SKINNY_BACKWARD_INPUT = register("skinny_backward_input")


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return round_up(n, VECTOR)


cdef float* padded_copy(const float* x, Py_ssize_t rows, Py_ssize_t columns, float scale) noexcept nogil:
    """scale x (rows, columns) in scratch, rows padded with zeros; NULL where scratch memory is out."""
    cdef Py_ssize_t ld = padded(columns), i
    cdef float* out = <float*> scratch(SCRATCH_PACKED_A, <size_t> (rows * ld + VECTOR) * sizeof(float))
    if out == NULL or columns == 0:
        return out
    for i in range(rows):
        simd.elementwise.scale(out + i * ld, x + i * columns, scale, columns)
        memset(out + i * ld + columns, 0, (ld - columns) * sizeof(float))
    return out


cdef float* padded_transpose(const float* x, Py_ssize_t rows, Py_ssize_t columns, float scale) noexcept nogil:
    """scale x^T (columns, rows) in scratch, rows padded with zeros; NULL where scratch memory is out."""
    cdef Py_ssize_t ld = padded(rows)
    cdef matrix_view view = f32_view(x, columns, columns)
    cdef float* out = <float*> scratch(SCRATCH_PACKED_A, <size_t> (columns * ld + VECTOR) * sizeof(float))
    if out == NULL or rows == 0:
        return out
    simd.gemm.format[GEMM_FP32].pack_b(out, <int> ld, &view, True, 0, <int> rows, 0, columns)  # one wide micro-panel
    if scale != 1:
        simd.elementwise.scale(out, out, scale, columns * ld)
    return out


cdef void block(const skinny_args* whole, Py_ssize_t job) noexcept nogil:
    """A block of MC x NC of C."""
    cdef skinny_args s = whole[0]
    cdef Py_ssize_t blocks = ceil_div(whole.n, NC), ic = job // blocks * MC, jc = job % blocks * NC, pc = 0
    cdef Py_ssize_t kc = KC if whole.rs_a == 1 else max(1, whole.k)
    s.c += ic * s.ldc + jc
    s.m = min(MC, whole.m - ic)
    s.n = min(NC, whole.n - jc)
    while True:  # an empty contraction writes zeros
        s.a = whole.a + ic * s.rs_a + pc * s.cs_a
        s.b = whole.b + pc * s.ldb + jc
        s.k = min(kc, whole.k - pc)
        simd.skinny.multiply(&s)
        s.beta = skinny_ones
        pc += kc
        if pc >= whole.k:
            return


cdef void skinny_gemm(const skinny_args* s) noexcept nogil:
    """C (m, n) (+)= A (m, k) B (k, n), in parallel; beta is NULL or skinny_ones."""
    cdef Py_ssize_t jobs = ceil_div(s.m, MC) * ceil_div(s.n, NC), job
    cdef int threads = threads_for(s.m * s.n * s.k, THREAD_WORK)
    if threads == 1:  # a parallel region costs 50 ns, a tenth of a tiny product
        for job in range(jobs):
            block(s, job)
    else:
        for job in prange(jobs, schedule="static", num_threads=threads):
            block(s, job)


cdef void skinny_rows(float* c, const float* a, const float* b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
                      bint accumulate) noexcept nogil:
    """C (m, n) (+)= A (m, k) B (k, n), rows of B padded."""
    cdef skinny_args s
    s.c, s.a, s.b = c, a, b
    s.beta = skinny_ones if accumulate else NULL
    s.ldc, s.rs_a, s.cs_a, s.ldb = n, k, 1, padded(n)
    s.m, s.n, s.k = m, n, k
    skinny_gemm(&s)


cdef void skinny_columns(float* c, const float* a, const float* b, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
                         bint accumulate) noexcept nogil:
    """C (m, n) (+)= A^T B (k, n) for A (k, m), rows of B padded."""
    cdef skinny_args s
    s.c, s.a, s.b = c, a, b
    s.beta = skinny_ones if accumulate else NULL
    s.ldc, s.rs_a, s.cs_a, s.ldb = n, 1, m, padded(n)
    s.m, s.n, s.k = m, n, k
    skinny_gemm(&s)


cdef int forward(float* y, float* h, const float* x, const skinny_factors* f) noexcept nogil:
    cdef matrix_view a = f32_view(f.a, f.k, f.k), b = f32_view(f.b, f.r, f.r)
    cdef float* transposed
    cdef Py_ssize_t i
    if 0 < f.m <= GEMV_ROWS:
        gemv(h, x, &a, f.m, f.r, f.k, False)
        for i in range(f.m * f.r):
            h[i] *= f.scale
        return gemv(y, h, &b, f.m, f.n, f.r, True)
    transposed = padded_transpose(f.a, f.r, f.k, f.scale)
    if transposed == NULL:
        return -1
    skinny_rows(h, x, transposed, f.m, f.r, f.k, False)
    transposed = padded_transpose(f.b, f.n, f.r, 1)
    if transposed == NULL:
        return -1
    skinny_rows(y, h, transposed, f.m, f.n, f.r, True)
    return 0


cdef int backward(float* g, float* db, const float* dy, const float* h, const skinny_factors* f,
                  bint accumulate) noexcept nogil:
    """g, and dB unless it is NULL."""
    cdef float* rows = padded_copy(f.b, f.n, f.r, f.scale)
    if rows == NULL:
        return -1
    skinny_rows(g, dy, rows, f.m, f.r, f.n, False)
    if db != NULL:
        rows = padded_copy(h, f.m, f.r, 1)
        if rows == NULL:
            return -1
        skinny_columns(db, dy, rows, f.n, f.r, f.m, accumulate)
    return 0


cdef int backward_a(float* da, const float* g, const float* x, const skinny_factors* f, bint accumulate) noexcept nogil:
    if f.k % VECTOR:  # rows of x are no whole vectors
        return linear_backward_weight(da, g, x, f.m, f.r, f.k, accumulate)
    skinny_columns(da, g, x, f.r, f.k, f.m, accumulate)
    return 0


cdef int backward_input(float* dx, const float* g, const skinny_factors* f, bint accumulate) noexcept nogil:
    cdef float* rows = padded_copy(f.a, f.r, f.k, 1)
    if rows == NULL:
        return -1
    skinny_rows(dx, g, rows, f.m, f.k, f.r, accumulate)
    return 0


# y (m, n) += h B^T with h (m, r) = scale x (m, k) A^T, for A (r, k) and B (n, r)
# g (m, r) = scale dy B;  dB (n, r) (+)= dy^T h;  dA (r, k) (+)= g^T x;  dx (m, k) (+)= g A
cdef int skinny_forward(float* y, float* h, const float* x, const skinny_factors* f) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef int status = forward(y, h, x, f)
    end_kernel(SKINNY_FORWARD, started, shape_of(f.m, f.n, f.k, f.r), 2 * f.m * f.r * (f.k + f.n),
               4 * (f.m * (f.k + 2 * f.n + f.r) + f.r * (f.k + f.n)))
    return status


cdef int skinny_backward(float* g, float* db, const float* dy, const float* h, const skinny_factors* f,
                         bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef int status = backward(g, db, dy, h, f, accumulate)
    end_kernel(SKINNY_BACKWARD, started, shape_of(f.m, f.n, f.k, f.r), 2 * f.m * f.r * f.n * (1 if db == NULL else 2),
               4 * (f.m * (f.n + 2 * f.r) + 2 * f.r * f.n))
    return status


cdef int skinny_backward_a(float* da, const float* g, const float* x, const skinny_factors* f,
                           bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef int status = backward_a(da, g, x, f, accumulate)
    end_kernel(SKINNY_BACKWARD_A, started, shape_of(f.m, f.n, f.k, f.r), 2 * f.m * f.r * f.k,
               4 * (f.m * (f.k + f.r) + f.r * f.k))
    return status


cdef int skinny_backward_input(float* dx, const float* g, const skinny_factors* f, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef int status = backward_input(dx, g, f, accumulate)
    end_kernel(SKINNY_BACKWARD_INPUT, started, shape_of(f.m, f.n, f.k, f.r), 2 * f.m * f.r * f.k,
               4 * (f.m * (2 * f.k + f.r) + f.r * f.k))
    return status
