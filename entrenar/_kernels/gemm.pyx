"""Matrix multiplication: one blocked driver for the three layouts and every source of the weights.

    forward    Y  (m, n) = X  (m, k) W (n, k)^T
    input      dX (m, k) = dY (m, n) W (n, k)
    weight     dW (n, k) = dY (m, n)^T X (m, k)

A is packed once per block of rows and slice of the contraction, and shared; columns of C are independent jobs, each of
which packs (and decodes) its panels of B into memory of its own thread. Panels are fp32, or block-scaled int16 or int8
(simd/gemm.h): the precision chooses the format, any source packs to any of them. The contraction is cut into blocks that
depend on its length only, so every element of C is the same sum in the same order for any number of threads.
"""
from cython.parallel cimport prange, threadid
from libc.string cimport memset

from entrenar._kernels.cpu cimport matmul_format, simd
from entrenar._kernels.partition cimport SCRATCH_PACKED_A, SCRATCH_PACKED_B, scratch, threads_for
from entrenar._kernels.simd.gemm cimport (
    GEMM_BLOCK, GEMM_FP32, GEMM_INT8, GEMM_INT16, gemm_format, gemm_ones, gemm_packer,
)
from entrenar._kernels.simd.gemv cimport GEMV_ROWS, gemv_args, gemv_words
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar._kernels.simd.weights.types cimport WEIGHT_F32

cdef enum:
    DEPTH = 384          # of one block of the contraction: an A panel stays in L1, the B panels of a job in L2
    ROWS = 1024          # of C for which A is packed at once
    SLICE = 8192         # of a longer contraction, about: what of A is packed at once
    ROWS_IN_CACHE = 96   # of A that are swept over a job's B panels before the next ones
    GROUP = 6            # B panels of a job
    GRAIN = 1 << 17      # multiply-adds worth a thread
    SKINNY_MC = 48     # of a job of a narrow product, and its columns
    SKINNY_NC = 192
    SKINNY_KC = 128
    VECTOR = 16          # floats of the widest vector: rows that are read as vectors are padded to it
    GEMV_N = 16  # weight rows of a job of the few-row path

cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef matrix_view f32_view(const float* data, Py_ssize_t row_stride, Py_ssize_t columns) noexcept nogil:
    cdef matrix_view s
    memset(&s, 0, sizeof(s))
    s.type = WEIGHT_F32
    s.data = data
    s.row_stride = row_stride
    s.columns = columns
    return s


cdef inline Py_ssize_t gemv_jobs(Py_ssize_t n) noexcept nogil:
    return (n + GEMV_N - 1) // GEMV_N


cdef inline bint has_integer_gemv(const matrix_view* w) noexcept nogil:
    return simd.weight_types[w.type].kernels.gemv_integer != NULL


cdef void gemv_job(const gemm_operand_b* bs, const float* x, const float* words, Py_ssize_t m, Py_ssize_t k,
                   Py_ssize_t job, bint accumulate) noexcept nogil:
    """A block of rows of one of the weights; in integers where x is there in `words` and the weight type has such."""
    cdef Py_ssize_t n = bs[0].n
    cdef gemv_args g
    cdef int i = 0
    while job >= gemv_jobs(n):
        job -= gemv_jobs(n)
        i += 1
        n = bs[i].n
    g.y = bs[i].c
    g.ldy = n
    g.w = bs[i].b
    g.k = k
    g.m = <int> m
    g.first = job * GEMV_N
    g.count = least(GEMV_N, n - g.first)
    g.ldx = k
    g.accumulate = accumulate
    if words != NULL and has_integer_gemv(g.w):
        g.x = words
        simd.gemv.multiply_integer(&g)
    else:
        g.x = x
        simd.gemv.multiply(&g)


cdef int grouped_gemv(const gemm_operand_b* bs, int count, const float* x, Py_ssize_t m, Py_ssize_t k,
                      bint accumulate) noexcept nogil:
    """Y_i (m, n_i) (+)= X (m, k) W_i (n_i, k)^T for few rows: each weight is read and dequantized once."""
    cdef Py_ssize_t jobs = 0, columns = 0, job
    cdef float* words = NULL
    cdef bint integers = False
    cdef int i, threads
    for i in range(count):
        jobs += gemv_jobs(bs[i].n)
        columns += bs[i].n
        integers = integers or has_integer_gemv(bs[i].b)
    if integers and matmul_format != GEMM_FP32:
        words = <float*> scratch(SCRATCH_PACKED_A, <size_t> (m * gemv_words(k)) * sizeof(float))
        if words == NULL:
            return -1
        for i in range(m):
            simd.gemv.quantize(words + i * gemv_words(k), x + i * k, k)
    threads = threads_for(m * columns * k, GRAIN // 8)
    if threads == 1:  # without OpenMP, whose team costs as much as a small product
        for job in range(jobs):
            gemv_job(bs, x, words, m, k, job, accumulate)
        return 0
    for job in prange(jobs, schedule="static", num_threads=threads):
        gemv_job(bs, x, words, m, k, job, accumulate)
    return 0


cdef int gemv(float* y, const float* x, const matrix_view* w, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
                  bint accumulate) noexcept nogil:
    cdef gemm_operand_b right
    right.c = y
    right.b = w
    right.n = n
    return grouped_gemv(&right, 1, x, m, k, accumulate)


cdef inline Py_ssize_t panel_words(const gemm_format* f, Py_ssize_t depth) noexcept nogil:
    """32-bit words that a lane of a panel takes for `depth` steps of the contraction."""
    return (depth + f.block - 1) // f.block * f.block_words


cdef const gemm_format* choose_format(const matrix_view* b, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """The format that the precision in force asks for and the tier has; fp32 where packing would outweigh the product."""
    cdef int format = matmul_format
    if k < GEMM_BLOCK or n < GEMM_BLOCK:
        return simd.gemm.format[GEMM_FP32]
    if format == GEMM_INT8 and not simd.weight_types[b.type].int8_panels:
        format = GEMM_INT16
    while simd.gemm.format[format].mr == 0:
        format -= 1
    return simd.gemm.format[format]


cdef void pack_a_job(float* packed, const gemm_format* f, const matrix_view* a, bint transposed, Py_ssize_t row0,
                    Py_ssize_t rows, Py_ssize_t k0, Py_ssize_t end, Py_ssize_t depth, Py_ssize_t job) noexcept nogil:
    """Pack one panel of one block of the contraction's steps [k0, end): packed[block of depth][panel][step][lane]."""
    cdef Py_ssize_t panels = (rows + f.mr - 1) // f.mr, panel = job % panels, start = k0 + job // panels * depth
    cdef Py_ssize_t size = least(depth, end - start)
    cdef float* out = packed + (panel_words(f, start - k0) * panels + panel * panel_words(f, size)) * f.packmr
    cdef gemm_packer pack = f.pack_a_transposed if transposed else f.pack_a
    pack(out, f.packmr, a, row0 + panel * f.mr, <int> least(f.mr, rows - panel * f.mr), start, size)


cdef void macro_kernel(float* c, Py_ssize_t ldc, const float* packed, const gemm_format* f, const matrix_view* b,
                         bint transposed, float* own, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t k0, Py_ssize_t end,
                         Py_ssize_t depth, Py_ssize_t first, Py_ssize_t last, bint accumulate) noexcept nogil:
    """C[:, panels first .. last) (+)= A B for the rows of A and the steps [k0, end) of the contraction that are packed;
    `own` holds this thread's panels of B."""
    cdef int mr = f.mr, nr = f.nr
    cdef Py_ssize_t panels = (rows + mr - 1) // mr, per_cache = (ROWS_IN_CACHE + mr - 1) // mr
    cdef Py_ssize_t start = k0, size, panel, i0, i, words
    cdef const float* block
    cdef gemm_packer pack = f.pack_b_transposed if transposed else f.pack_b
    while start < end:
        size = least(depth, end - start)
        words = panel_words(f, size)
        block = packed + panel_words(f, start - k0) * panels * f.packmr
        for panel in range(first, last):
            pack(own + (panel - first) * nr * words, nr, b, panel * nr, <int> least(nr, n - panel * nr), start, size)
        i0 = 0
        while i0 < panels:
            for panel in range(first, last):
                for i in range(i0, least(i0 + per_cache, panels)):
                    f.micro_kernel(c + i * mr * ldc + panel * nr, ldc, block + i * f.packmr * words,
                           own + (panel - first) * nr * words, size, <int> least(mr, rows - i * mr),
                           <int> least(nr, n - panel * nr), accumulate or start > 0)
            i0 += per_cache
        start += size


cdef void gemm_job(const gemm_operand_b* bs, int count, Py_ssize_t row0, const float* packed, const gemm_format* f,
                       bint transposed, float* own, Py_ssize_t rows, Py_ssize_t k0, Py_ssize_t end, Py_ssize_t depth,
                       Py_ssize_t group, Py_ssize_t job, bint accumulate) noexcept nogil:
    """One group of panels, as equal as they go, of one of the right operands, which share the packed rows of A."""
    cdef int i = 0
    cdef Py_ssize_t n = bs[0].n, panels = (n + f.nr - 1) // f.nr
    cdef Py_ssize_t groups = (panels + group - 1) // group
    while job >= groups:
        job -= groups
        i += 1
        n = bs[i].n
        panels = (n + f.nr - 1) // f.nr
        groups = (panels + group - 1) // group
    macro_kernel(bs[i].c + row0 * n, n, packed, f, bs[i].b, transposed, own, rows, n, k0, end, depth,
                   job * panels // groups, (job + 1) * panels // groups, accumulate)


cdef int grouped_gemm(const gemm_operand_b* bs, int count, const gemm_format* f, const matrix_view* a, bint a_transposed,
                    bint b_transposed, Py_ssize_t m, Py_ssize_t k, bint accumulate) noexcept nogil:
    """C_i (m, n_i) (+)= A B_i for every right operand, A packed for all at once; the operands are as in `gemm`."""
    cdef Py_ssize_t i, row0 = 0, rows, k0, end, pack_jobs, jobs = 0, columns = 0, panels = 0
    for i in range(count):
        columns += bs[i].n
        panels += (bs[i].n + f.nr - 1) // f.nr
        if k == 0 and not accumulate:
            memset(bs[i].c, 0, m * bs[i].n * sizeof(float))
    if m == 0 or columns == 0 or k == 0:
        return 0
    cdef int threads = threads_for(m * columns * k, GRAIN)
    # equal blocks of the contraction, a multiple of 64 so that no 4-bit block is cut; whole blocks to a slice
    cdef Py_ssize_t blocks = (k + DEPTH - 1) // DEPTH, slices = (k + SLICE - 1) // SLICE
    cdef Py_ssize_t depth = ((k + blocks - 1) // blocks + 63) // 64 * 64
    cdef Py_ssize_t slice_depth = (blocks + slices - 1) // slices * depth
    cdef Py_ssize_t most_rows = least(ROWS, m), most_panels = (most_rows + f.mr - 1) // f.mr
    cdef Py_ssize_t group = least(GROUP, (panels + 8 * threads - 1) // (8 * threads))
    for i in range(count):
        jobs += ((bs[i].n + f.nr - 1) // f.nr + group - 1) // group
    # a panel's last store may touch up to a vector beyond it
    cdef size_t own_floats = <size_t> (group * f.nr * panel_words(f, depth) + 64)
    cdef size_t packed_floats = <size_t> (most_panels * f.packmr * panel_words(f, least(slice_depth, k)) + 64)
    cdef float* packed = <float*> scratch(SCRATCH_PACKED_A, packed_floats * sizeof(float))
    cdef float* owned = <float*> scratch(SCRATCH_PACKED_B, own_floats * threads * sizeof(float))
    if packed == NULL or owned == NULL:
        return -1
    while row0 < m:
        rows = least(most_rows, m - row0)
        k0 = 0
        while k0 < k:
            end = least(k, k0 + slice_depth)
            pack_jobs = (rows + f.mr - 1) // f.mr * ((end - k0 + depth - 1) // depth)
            if threads == 1:  # without OpenMP, whose team costs as much as a small product
                for i in range(pack_jobs):
                    pack_a_job(packed, f, a, a_transposed, row0, rows, k0, end, depth, i)
                for i in range(jobs):
                    gemm_job(bs, count, row0, packed, f, b_transposed, owned, rows, k0, end, depth, group, i,
                                 accumulate)
            else:
                for i in prange(pack_jobs, schedule="static", num_threads=threads):
                    pack_a_job(packed, f, a, a_transposed, row0, rows, k0, end, depth, i)
                for i in prange(jobs, schedule="dynamic", num_threads=threads):
                    gemm_job(bs, count, row0, packed, f, b_transposed, owned + own_floats * threadid(), rows,
                                 k0, end, depth, group, i, accumulate)
            k0 = end
        row0 += rows
    return 0


cdef int gemm(float* c, const matrix_view* a, bint a_transposed, const matrix_view* b, bint b_transposed,
              Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, bint accumulate) noexcept nogil:
    """C (m, n) (+)= A B. A is (m, k), or stored (k, m) where transposed; B is (k, n), or stored (n, k)."""
    cdef gemm_operand_b right
    right.c = c
    right.b = b
    right.n = n
    return grouped_gemm(&right, 1, choose_format(b, n, k), a, a_transposed, b_transposed, m, k, accumulate)


cdef int linear_forward(float* y, const float* x, const matrix_view* w,
                        Py_ssize_t m, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    cdef matrix_view a = f32_view(x, k, k)
    if 0 < m <= GEMV_ROWS:
        return gemv(y, x, w, m, n, k, False)
    return gemm(y, &a, False, w, True, m, n, k, False)


cdef int grouped_linear_forward(const gemm_operand_b* bs, int count, const float* x, Py_ssize_t m,
                              Py_ssize_t k) noexcept nogil:
    """Y_i (m, n_i) = X (m, k) W_i (n_i, k)^T: neighbours whose panels have the same format share the packed X."""
    cdef matrix_view a = f32_view(x, k, k)
    cdef const gemm_format* f
    cdef int first = 0, last, status = 0
    if 0 < m <= GEMV_ROWS:
        return grouped_gemv(bs, count, x, m, k, False)
    while first < count:
        f = choose_format(bs[first].b, bs[first].n, k)
        last = first + 1
        while last < count and choose_format(bs[last].b, bs[last].n, k) == f:
            last += 1
        status |= grouped_gemm(bs + first, last - first, f, &a, False, True, m, k, False)
        first = last
    return status


cdef int linear_backward_input(float* dx, const float* dy, const matrix_view* w,
                               Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, bint accumulate) noexcept nogil:
    cdef matrix_view a = f32_view(dy, n, n)
    return gemm(dx, &a, False, w, False, m, k, n, accumulate)


cdef int linear_backward_weight(float* dw, const float* dy, const float* x,
                                Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, bint accumulate) noexcept nogil:
    cdef matrix_view a = f32_view(dy, n, n), b = f32_view(x, k, k)
    return gemm(dw, &a, True, &b, False, n, k, m, accumulate)


# ---------------------------------------------------------------- low rank: y = x A^T B^T for A (r, k), B (n, r), r small
# Packing a wide operand would cost as much as multiplying it by a narrow one, so nothing wide is packed.
cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + VECTOR - 1) // VECTOR * VECTOR


cdef float* padded_rows(const float* x, Py_ssize_t rows, Py_ssize_t columns, bint transposed,
                        float scale) noexcept nogil:
    """scale times x (rows, columns), or its transpose, in scratch with rows padded to whole vectors; NULL if out."""
    cdef Py_ssize_t out_rows = columns if transposed else rows, out_columns = rows if transposed else columns, i
    cdef Py_ssize_t ld = padded(out_columns)
    cdef matrix_view s = f32_view(x, columns, columns)
    cdef float* out = <float*> scratch(SCRATCH_PACKED_A, <size_t> (out_rows * ld + VECTOR) * sizeof(float))
    if out == NULL:
        return NULL
    if transposed:  # a panel as wide as the matrix
        simd.gemm.format[GEMM_FP32].pack_b_transposed(out, <int> ld, &s, 0, <int> rows, 0, columns)
        if scale != 1:
            simd.elementwise.scale(out, out, scale, out_rows * ld)
        return out
    for i in range(out_rows):
        simd.elementwise.scale(out + i * ld, x + i * columns, scale, columns)
        memset(out + i * ld + columns, 0, (ld - columns) * sizeof(float))
    return out


cdef void skinny_job(float* c, Py_ssize_t ldc, const float* a, Py_ssize_t a_row, Py_ssize_t a_column, const float* b,
                     Py_ssize_t ldb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, Py_ssize_t job,
                     bint accumulate) noexcept nogil:
    cdef Py_ssize_t blocks = (n + SKINNY_NC - 1) // SKINNY_NC
    cdef Py_ssize_t i0 = job // blocks * SKINNY_MC, j0 = job % blocks * SKINNY_NC, p
    # a column of A has an element in every cache line: as many lines as L1 holds are used by all of the job's rows
    cdef Py_ssize_t depth = SKINNY_KC if a_row == 1 else max(1, k)
    cdef Py_ssize_t pieces = max(1, (k + depth - 1) // depth)  # an empty contraction writes zeros
    for p in range(pieces):
        simd.gemm.skinny(c + i0 * ldc + j0, ldc, a + i0 * a_row + p * depth * a_column, a_row, a_column,
                          b + p * depth * ldb + j0, ldb, least(SKINNY_MC, m - i0), least(SKINNY_NC, n - j0),
                          least(depth, k - p * depth), gemm_ones if accumulate or p > 0 else NULL)


cdef void skinny_gemm(float* c, Py_ssize_t ldc, const float* a, Py_ssize_t a_row, Py_ssize_t a_column, const float* b,
                 Py_ssize_t ldb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, bint accumulate) noexcept nogil:
    """C (m, n) (+)= A (m, k) B (k, n), unpacked; element (i, p) of A is at a + i a_row + p a_column, rows of b padded."""
    cdef Py_ssize_t jobs = (m + SKINNY_MC - 1) // SKINNY_MC * ((n + SKINNY_NC - 1) // SKINNY_NC), job
    cdef int threads = threads_for(m * n * k, GRAIN)
    if threads == 1:
        for job in range(jobs):
            skinny_job(c, ldc, a, a_row, a_column, b, ldb, m, n, k, job, accumulate)
        return
    for job in prange(jobs, schedule="static", num_threads=threads):
        skinny_job(c, ldc, a, a_row, a_column, b, ldb, m, n, k, job, accumulate)


cdef int skinny_forward(float* y, float* h, const float* x, const float* a, const float* b, float scale,
                          Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, Py_ssize_t r) noexcept nogil:
    """h (m, r) = scale x A^T;  y (m, n) += h B^T"""
    cdef matrix_view down = f32_view(a, k, k), up = f32_view(b, r, r)
    cdef float* right
    cdef Py_ssize_t i
    if 0 < m <= GEMV_ROWS:
        gemv(h, x, &down, m, r, k, False)
        for i in range(m * r):
            h[i] *= scale
        return gemv(y, h, &up, m, n, r, True)
    right = padded_rows(a, r, k, True, scale)
    if right == NULL:
        return -1
    skinny_gemm(h, r, x, k, 1, right, padded(r), m, r, k, False)
    right = padded_rows(b, n, r, True, 1)
    if right == NULL:
        return -1
    skinny_gemm(y, n, h, r, 1, right, padded(n), m, n, r, True)
    return 0


cdef int skinny_backward(float* g, float* db, const float* dy, const float* h, const float* b, float scale,
                           Py_ssize_t m, Py_ssize_t n, Py_ssize_t r, bint accumulate) noexcept nogil:
    """g (m, r) = scale dy B;  dB (n, r) (+)= dy^T h, unless NULL"""
    cdef float* right = padded_rows(b, n, r, False, scale)
    if right == NULL:
        return -1
    skinny_gemm(g, r, dy, n, 1, right, padded(r), m, r, n, False)
    if db != NULL:
        right = padded_rows(h, m, r, False, 1)
        if right == NULL:
            return -1
        skinny_gemm(db, r, dy, 1, n, right, padded(r), n, r, m, accumulate)
    return 0


cdef int skinny_backward_a(float* da, const float* g, const float* x, Py_ssize_t m, Py_ssize_t k, Py_ssize_t r,
                                bint accumulate) noexcept nogil:
    """dA (r, k) (+)= g^T x"""
    if k % VECTOR:
        return linear_backward_weight(da, g, x, m, r, k, accumulate)
    skinny_gemm(da, k, g, 1, r, x, k, r, k, m, accumulate)
    return 0


cdef int skinny_backward_input(float* dx, const float* g, const float* a, Py_ssize_t m, Py_ssize_t k, Py_ssize_t r,
                                 bint accumulate) noexcept nogil:
    """dx (m, k) (+)= g A"""
    cdef float* right = padded_rows(a, r, k, False, 1)
    if right == NULL:
        return -1
    skinny_gemm(dx, k, g, r, 1, right, padded(k), m, k, r, accumulate)
    return 0
