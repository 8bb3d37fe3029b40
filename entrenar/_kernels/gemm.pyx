"""GEMM: C_i (m, n_i) (+)= A B_i for one A and one or more B_i of any weight type, blocked for the caches.

    for ia, pa over m, k  by MA, KA   pack A: micro-panels of MR rows, by all threads               L3, shared
      for jc   over n     by NC       in parallel, a job each
        for pc over KA    by KC       pack B: micro-panels of NR columns, dequantized on the way    L2, of the thread
          for ic over MA  by MC       macro-kernel: a block of packed A (MC x KC) meets packed B    L2
            for jr over NC by NR      a micro-panel of packed B (KC x NR)                           L1
              for ir over MC by MR    a micro-panel of packed A (MR x KC)                           L1
                micro-kernel          C[ir, jr] (MR x NR) += KC rank-1 updates                      registers

A format (simd/gemm.h) has MR, NR, the packing and the micro-kernel: fp32, or block-scaled int16 or int8; the precision
chooses it, and the number of rows. The contraction is cut into KC by its length alone, so every element of C is the
same sum in the same order for any number of threads. Fewer rows than packing is worth go to gemv.
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int64_t
from libc.string cimport memset

from entrenar._kernels.cpu cimport matmul_format, simd
from entrenar._kernels.gemv cimport grouped_gemv
from entrenar._kernels.partition cimport (
    SCRATCH_PACKED_A, SCRATCH_PACKED_B, ceil_div, min, round_up, scratch, threads_for,
)
from entrenar._kernels.profile cimport begin_kernel, end_kernel, kernel_shape, product_shape, register, weight_bytes
from entrenar._kernels.simd.gemm cimport (
    GEMM_BLOCK, GEMM_FP32, GEMM_HALF_STEPS, GEMM_INT8, GEMM_INT16, GEMM_STEPS, gemm_format, gemm_operand_b,
)
from entrenar._kernels.simd.gemv cimport GEMV_PLANES_ROWS, GEMV_ROWS, GEMV_STEPS
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar._kernels.simd.weights.types cimport f32_view, weight_type

cdef enum:
    MA = 1024              # at most
    KA = 8192              # about: whole blocks of KC
    MC = 96
    KC = 384               # at most
    NC_PANELS = 6          # micro-panels of B in NC, at most
    JOBS_PER_THREAD = 8    # at least, where n has the micro-panels for it
    FEW_ROWS = 48          # up to which packing is most of a product, and the integers of a quantized B are moved
    THREAD_WORK = 1 << 17  # multiply-adds worth a thread
    GEMV = -1              # no format: not packed
    SPARE = 64             # floats behind packed micro-panels that the last store may touch

cdef int LINEAR_FORWARD = register("linear_forward")
cdef int LINEAR_BACKWARD_INPUT = register("linear_backward_input")
cdef int LINEAR_BACKWARD_WEIGHT = register("linear_backward_weight")
cdef int MATMUL = register("matmul")


cdef struct gemm_plan:
    const gemm_format* format
    const matrix_view* a
    const gemm_operand_b* b
    int count                # of b
    bint a_k_major           # whether the contraction runs along the rows of A as it is stored, and of B
    bint b_k_major
    bint accumulate
    Py_ssize_t m, k
    Py_ssize_t ma, ka, kc    # equal blocks, at most MA, about KA and at most KC
    Py_ssize_t nc_panels
    Py_ssize_t jobs          # of the loop jc, over all b
    int threads
    float* packed_a          # [block of KC steps][micro-panel]
    float* packed_b          # [thread][micro-panel]
    size_t packed_a_floats
    size_t packed_b_floats   # of a thread


cdef struct gemm_block:
    # c (m, n) (+)= packed_a packed_b: what the macro-kernel multiplies
    float* c
    const float* packed_a
    float* packed_b
    Py_ssize_t ldc, m, n, kc
    bint accumulate


cdef inline Py_ssize_t panel_words(const gemm_format* f, Py_ssize_t kc) noexcept nogil:
    """32-bit words that a row of A or a column of B takes in a micro-panel of kc steps."""
    return ceil_div(kc, f.block) * f.block_words


cdef int format_number(const matrix_view* b, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """The format of the precision, if the tier has it; fp32 where packing would cost more than the product."""
    cdef int format = matmul_format
    if k < GEMM_BLOCK or n < GEMM_BLOCK:
        return GEMM_FP32
    if format == GEMM_INT8 and simd.weight_types[b.type].bits > 8:
        format = GEMM_INT16
    while simd.gemm.format[format].mr == 0:
        format -= 1
    return format


cdef int forward_format(const matrix_view* w, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """The number of the format of x W^T, or GEMV."""
    cdef const weight_type* t = &simd.weight_types[w.type]
    cdef bint integers = matmul_format != GEMM_FP32 and t.kernels.integers != NULL
    if 0 < m <= (GEMV_PLANES_ROWS if integers and t.kernels.x_form != GEMV_STEPS else GEMV_ROWS):
        return GEMV
    if m <= FEW_ROWS and integers:
        return GEMM_HALF_STEPS if t.half_steps else GEMM_STEPS
    return format_number(w, n, k)


cdef inline const gemm_format* choose_format(const matrix_view* b, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    return simd.gemm.format[format_number(b, n, k)]


cdef inline kernel_shape linear_shape(const matrix_view* w, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """What a product of m rows with a weight (n, k) counts as; the contraction is over n or k."""
    return product_shape(m, n, k, w.type, format_number(w, n, k))


cdef inline kernel_shape forward_shape(const matrix_view* w, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """What x W^T counts as: every product of 16-bit integers as int16."""
    cdef int format = forward_format(w, m, n, k)
    return product_shape(m, n, k, w.type, format_number(w, n, k) if format == GEMV else min(format, GEMM_INT16))


cdef int plan_blocks(gemm_plan* p) noexcept nogil:
    """Fill in block sizes, jobs, threads and scratch; -1 where scratch memory is out."""
    cdef const gemm_format* f = p.format
    cdef Py_ssize_t columns = 0, panels = 0, blocks = ceil_div(p.k, KC), i
    for i in range(p.count):
        columns += p.b[i].n
        panels += ceil_div(p.b[i].n, f.nr)
    p.threads = threads_for(p.m * columns * p.k, THREAD_WORK)
    p.ma = min(MA, p.m)
    p.kc = round_up(ceil_div(p.k, blocks), 64)  # so that no block of a weight type is cut
    p.ka = ceil_div(blocks, ceil_div(p.k, KA)) * p.kc
    p.nc_panels = min(NC_PANELS, ceil_div(panels, JOBS_PER_THREAD * p.threads))
    p.jobs = 0
    for i in range(p.count):
        p.jobs += ceil_div(ceil_div(p.b[i].n, f.nr), p.nc_panels)
    p.packed_a_floats = ceil_div(p.ma, f.mr) * f.packmr * panel_words(f, min(p.ka, p.k)) + SPARE
    p.packed_b_floats = p.nc_panels * f.nr * panel_words(f, p.kc) + SPARE
    p.packed_a = <float*> scratch(SCRATCH_PACKED_A, p.packed_a_floats * sizeof(float))
    p.packed_b = <float*> scratch(SCRATCH_PACKED_B, p.packed_b_floats * p.threads * sizeof(float))
    return -1 if p.packed_a == NULL or p.packed_b == NULL else 0


cdef void pack_a(const gemm_plan* p, Py_ssize_t ia, Py_ssize_t pa, Py_ssize_t job) noexcept nogil:
    """One micro-panel of one block of KC steps."""
    cdef const gemm_format* f = p.format
    cdef Py_ssize_t rows = min(p.ma, p.m - ia), panels = ceil_div(rows, f.mr), ir = job % panels * f.mr
    cdef Py_ssize_t pc = pa + job // panels * p.kc, kc = min(p.kc, p.k - pc)
    cdef Py_ssize_t words = panel_words(f, pc - pa) * panels + panel_words(f, kc) * (job % panels)
    f.pack_a(p.packed_a + words * f.packmr, f.packmr, p.a, p.a_k_major, ia + ir, <int> min(f.mr, rows - ir), pc, kc)


cdef void macro_kernel(const gemm_format* f, const gemm_block* b) noexcept nogil:
    """The loops ic, jr and ir."""
    cdef Py_ssize_t ic = 0, jr, ir, mc = round_up(MC, f.mr), words = panel_words(f, b.kc)
    while ic < b.m:
        jr = 0
        while jr < b.n:
            ir = ic
            while ir < min(b.m, ic + mc):
                f.micro_kernel(b.c + ir * b.ldc + jr, b.ldc, b.packed_a + ir // f.mr * f.packmr * words,
                               b.packed_b + jr * words, b.kc, <int> min(f.mr, b.m - ir), <int> min(f.nr, b.n - jr),
                               b.accumulate)
                ir += f.mr
            jr += f.nr
        ic += mc


cdef void column_block(const gemm_plan* p, Py_ssize_t ia, Py_ssize_t pa, Py_ssize_t job, int thread) noexcept nogil:
    """A job of the loop jc, the loop pc in it: micro-panels of one B_i, in jobs as equal as they go."""
    cdef const gemm_format* f = p.format
    cdef const gemm_operand_b* b = p.b
    cdef Py_ssize_t panels = ceil_div(b.n, f.nr), jobs = ceil_div(panels, p.nc_panels), jc, jr, pc = pa, words
    cdef gemm_block block
    while job >= jobs:
        job -= jobs
        b += 1
        panels = ceil_div(b.n, f.nr)
        jobs = ceil_div(panels, p.nc_panels)
    jc = job * panels // jobs * f.nr
    block.c = b.c + ia * b.n + jc
    block.ldc = b.n
    block.m = min(p.ma, p.m - ia)
    block.n = min((job + 1) * panels // jobs * f.nr, b.n) - jc
    block.packed_b = p.packed_b + p.packed_b_floats * thread
    while pc < min(p.k, pa + p.ka):
        block.kc = min(p.kc, p.k - pc)
        block.packed_a = p.packed_a + panel_words(f, pc - pa) * ceil_div(block.m, f.mr) * f.packmr
        block.accumulate = p.accumulate or pc > 0
        words = panel_words(f, block.kc)
        jr = 0
        while jr < block.n:
            f.pack_b(block.packed_b + jr * words, f.nr, b.b, p.b_k_major, jc + jr, <int> min(f.nr, block.n - jr), pc,
                     block.kc)
            jr += f.nr
        macro_kernel(f, &block)
        pc += block.kc


cdef int run(gemm_plan* p) noexcept nogil:
    """The loops ia, pa and jc."""
    cdef Py_ssize_t ia = 0, pa, i, panels_a
    if plan_blocks(p) != 0:
        return -1
    while ia < p.m:
        pa = 0
        while pa < p.k:
            panels_a = ceil_div(min(p.ma, p.m - ia), p.format.mr) * ceil_div(min(p.ka, p.k - pa), p.kc)
            if p.threads == 1:  # a parallel region costs 50 ns, a tenth of a tiny product
                for i in range(panels_a):
                    pack_a(p, ia, pa, i)
                for i in range(p.jobs):
                    column_block(p, ia, pa, i, 0)
            else:
                for i in prange(panels_a, schedule="static", num_threads=p.threads):
                    pack_a(p, ia, pa, i)
                for i in prange(p.jobs, schedule="dynamic", num_threads=p.threads):
                    column_block(p, ia, pa, i, threadid())
            pa += p.ka
        ia += p.ma
    return 0


cdef int grouped_gemm(gemm_layout layout, const gemm_format* f, const matrix_view* a, const gemm_operand_b* b,
                      int count, Py_ssize_t m, Py_ssize_t k, bint accumulate) noexcept nogil:
    """C_i (m, n_i) (+)= A B_i for every B_i, A packed once for all."""
    cdef gemm_plan p
    cdef Py_ssize_t columns = 0
    cdef int i
    for i in range(count):
        columns += b[i].n
        if k == 0 and not accumulate:
            memset(b[i].c, 0, m * b[i].n * sizeof(float))
    if m == 0 or columns == 0 or k == 0:
        return 0
    p.format = f
    p.a = a
    p.b = b
    p.count = count
    p.a_k_major = layout != TN
    p.b_k_major = layout == NT
    p.accumulate = accumulate
    p.m = m
    p.k = k
    return run(&p)


cdef int gemm(gemm_layout layout, float* c, const matrix_view* a, const matrix_view* b, Py_ssize_t m, Py_ssize_t n,
              Py_ssize_t k, bint accumulate) noexcept nogil:
    """C (m, n) (+)= A (m, k) B (k, n)."""
    cdef int64_t started = begin_kernel()
    cdef gemm_operand_b one
    cdef int status
    one.c = c
    one.b = b
    one.n = n
    status = grouped_gemm(layout, choose_format(b, n, k), a, &one, 1, m, k, accumulate)
    if started:
        end_kernel(MATMUL, started, linear_shape(b, m, n, k), 2 * m * n * k, 4 * (m * n + m * k + n * k))
    return status


# linear, for x (m, k) and a weight W (n, k) of any type:
#   y (m, n) = x W^T;  dx (m, k) (+)= dy (m, n) W;  dW (n, k) (+)= dy^T x, W then float32
cdef int linear_forward(float* y, const float* x, const matrix_view* w, Py_ssize_t m, Py_ssize_t n,
                        Py_ssize_t k) noexcept nogil:
    cdef gemm_operand_b one
    one.c = y
    one.b = w
    one.n = n
    return grouped_linear_forward(&one, 1, x, m, k)


cdef int64_t columns_of(const gemm_operand_b* b, int count) noexcept nogil:
    cdef int64_t n = 0
    cdef int i
    for i in range(count):
        n += b[i].n
    return n


cdef int64_t weights_of(const gemm_operand_b* b, int count) noexcept nogil:
    """Bytes of the weights."""
    cdef int64_t nbytes = 0
    cdef int i
    for i in range(count):
        nbytes += weight_bytes(b[i].b, b[i].n)
    return nbytes


cdef int grouped_linear_forward(const gemm_operand_b* b, int count, const float* x, Py_ssize_t m,
                                Py_ssize_t k) noexcept nogil:
    """y_i (m, n_i) = x W_i^T: neighbours that are packed to the same format share the packed x."""
    cdef int64_t started = begin_kernel()
    cdef matrix_view a = f32_view(x, k, k)
    cdef int first = 0, last, format, status = 0
    while first < count:
        format = forward_format(b[first].b, m, b[first].n, k)
        last = first + 1
        while last < count and forward_format(b[last].b, m, b[last].n, k) == format:
            last += 1
        if format == GEMV:
            status |= grouped_gemv(b + first, last - first, x, m, k, False)
        else:
            status |= grouped_gemm(NT, simd.gemm.format[format], &a, b + first, last - first, m, k, False)
        first = last
    if started:
        end_kernel(LINEAR_FORWARD, started, forward_shape(b.b, m, columns_of(b, count), k),
                   2 * m * columns_of(b, count) * k, 4 * m * (k + columns_of(b, count)) + weights_of(b, count))
    return status


cdef int linear_backward_input(float* dx, const float* dy, const matrix_view* w, Py_ssize_t m, Py_ssize_t n,
                               Py_ssize_t k, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef matrix_view a = f32_view(dy, n, n)
    cdef int status = gemm(NN, dx, &a, w, m, k, n, accumulate)
    if started:
        end_kernel(LINEAR_BACKWARD_INPUT, started, linear_shape(w, m, n, k), 2 * m * n * k,
                   4 * m * (n + k) + weight_bytes(w, n))
    return status


cdef int linear_backward_weight(float* dw, const float* dy, const float* x, Py_ssize_t m, Py_ssize_t n,
                                Py_ssize_t k, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef matrix_view a = f32_view(dy, n, n), b = f32_view(x, k, k)
    cdef int status = gemm(TN, dw, &a, &b, n, k, m, accumulate)
    if started:
        end_kernel(LINEAR_BACKWARD_WEIGHT, started, product_shape(m, n, k, b.type, format_number(&b, k, m)),
                   2 * m * n * k, 4 * (m * n + m * k + n * k))
    return status
