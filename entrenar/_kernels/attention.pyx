"""Grouped-query attention, tiled with an online softmax (FlashAttention-2, Dao 2023, https://arxiv.org/abs/2307.08691).

    out[i] = sum_j p[i, j] v[j]        p[i] = softmax over the visible keys j of scale * q[i] . k[j]

q, out: (tokens, heads.q, dim); k, v: (key tokens, heads.kv, dim), contiguous. The query heads that share a key head are
stacked as rows of one matrix, token by token, so k and v are never repeated. Memory is linear in the number of tokens:
forward keeps two floats a row, the log-sum-exp as maximum and 1/sum, from which backward recomputes each tile of p.
With g the gradient of out and delta[i] = g[i] . out[i]:

    dv[j] = sum_i p[i, j] g[i]         ds[i, j] = scale * p[i, j] * (g[i] . v[j] - delta[i])
    dq[i] = sum_j ds[i, j] k[j]        dk[j] = sum_i ds[i, j] q[i]
"""
from cython.parallel cimport prange, threadid
from libc.float cimport FLT_MAX
from libc.stdint cimport int32_t
from libc.string cimport memset

from entrenar._kernels.cpu cimport scratch, simd, threads_for
from entrenar._kernels.search cimport part_of
from entrenar._kernels.simd.attention cimport ATTENTION_KEYS, ATTENTION_ROWS, attention_rows

cdef enum:
    SLOT = 2
    GRAIN = 1 << 15              # FLOPs / 8 for which waking a thread pays
    BACKWARD_UNITS = 32          # independent pieces of backward to aim at; never depends on the number of threads
    SPLIT_ROWS = 4 * ATTENTION_ROWS  # fewest query rows of a piece, when a head is split

# What one block of query rows needs; the pointers lie in the thread's part of the scratch.
ctypedef struct Block:
    attention_rows rows          # the query rows
    Py_ssize_t padded_rows       # up to whole vectors
    Py_ssize_t ld                # row stride of the (., dim) tiles
    Py_ssize_t first_row         # index of row 0 of the view in tokens * heads.q
    Py_ssize_t keys              # keys that the last row sees
    Py_ssize_t unmasked_keys     # keys that every row sees
    float* key                   # (KEYS, ld)
    float* value                 # (KEYS, ld)
    float* query_t               # (dim, ROWS), times scale
    float* out                   # (ROWS, ld)  forward: output; backward: gradient of the queries
    float* scores                # (KEYS, ROWS)
    float* query                 # (ROWS, ld)  from here on backward only
    float* grad                  # (ROWS, ld)
    float* grad_t                # (dim, ROWS)
    float* dp                    # (KEYS, ROWS)
    float* maximum               # (ROWS)
    float* sum                   # (ROWS)      backward: 1 / sum
    float* keep                  # (ROWS)      backward: delta
    int32_t* limit               # (ROWS)      last visible key


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t multiple) noexcept nogil:
    return (n + multiple - 1) // multiple * multiple


cdef inline float* take(float** cursor, Py_ssize_t floats) noexcept nogil:
    cdef float* taken = cursor[0]
    cursor[0] += round_up(floats, 16)
    return taken


cdef Py_ssize_t carve(Block* b, float* memory, Py_ssize_t dim, bint backward) noexcept nogil:
    """Point the tiles of b into `memory`; gives the floats used (memory may be NULL to ask)."""
    cdef float* cursor = memory
    b.ld = round_up(dim, 16)
    b.key = take(&cursor, ATTENTION_KEYS * b.ld)
    b.value = take(&cursor, ATTENTION_KEYS * b.ld)
    b.query_t = take(&cursor, dim * ATTENTION_ROWS)
    b.out = take(&cursor, ATTENTION_ROWS * b.ld)
    b.scores = take(&cursor, ATTENTION_KEYS * ATTENTION_ROWS)
    b.maximum = take(&cursor, ATTENTION_ROWS)
    b.sum = take(&cursor, ATTENTION_ROWS)
    b.keep = take(&cursor, ATTENTION_ROWS)
    b.limit = <int32_t*> take(&cursor, ATTENTION_ROWS)
    if backward:
        b.query = take(&cursor, ATTENTION_ROWS * b.ld)
        b.grad = take(&cursor, ATTENTION_ROWS * b.ld)
        b.grad_t = take(&cursor, dim * ATTENTION_ROWS)
        b.dp = take(&cursor, ATTENTION_KEYS * ATTENTION_ROWS)
    return cursor - memory


cdef Py_ssize_t set_blocks(Segment* segments, Py_ssize_t n_segments, Heads heads, bint causal,
                           Py_ssize_t* work) noexcept nogil:
    """Number the blocks of query rows of one key head; gives their count, and the FLOPs / 8 of forward in work."""
    cdef Py_ssize_t i, group = heads.q // heads.kv, blocks = 0
    cdef Segment* s
    work[0] = 0
    for i in range(n_segments):
        s = &segments[i]
        s.first_block = blocks
        blocks += (s.q_len * group + ATTENTION_ROWS - 1) // ATTENTION_ROWS
        work[0] += s.q_len * (s.k_len - (s.q_len // 2 if causal else 0)) * heads.q * heads.dim // 2
    return blocks


cdef inline Py_ssize_t find_segment(const Segment* segments, Py_ssize_t n_segments, Py_ssize_t block) noexcept nogil:
    """The segment that holds a block (segments without rows hold none)."""
    return part_of(&segments.first_block, sizeof(Segment), n_segments, block)


cdef void place(Block* b, const Segment* s, Heads heads, Py_ssize_t head, Py_ssize_t first,
                bint causal) noexcept nogil:
    """Set b to the query rows [first, first + ROWS) of one key head of a segment, and to the keys they see."""
    cdef Py_ssize_t i, group = heads.q // heads.kv, offset = s.k_len - s.q_len, total = s.q_len * group
    b.rows.first = first
    b.rows.rows = min(<Py_ssize_t> ATTENTION_ROWS, total - first)
    b.rows.group = group
    b.rows.stride = heads.q * heads.dim
    b.rows.dim = heads.dim
    b.padded_rows = round_up(b.rows.rows, simd.vector_floats)
    b.first_row = s.q_start * heads.q + head * group
    b.keys = s.k_len
    b.unmasked_keys = s.k_len
    if causal:
        b.keys = (first + b.rows.rows - 1) // group + offset + 1
        b.unmasked_keys = first // group + offset + 1
    for i in range(b.padded_rows):
        b.limit[i] = <int32_t> (min(first + i, total - 1) // group + offset if causal else s.k_len)


cdef inline Py_ssize_t row_index(const Block* b, Heads heads, Py_ssize_t i) noexcept nogil:
    """Where row i of the block stands among the tokens * heads.q rows of q."""
    cdef Py_ssize_t r = b.rows.first + i
    return b.first_row + r // b.rows.group * heads.q + r % b.rows.group


cdef inline attention_rows key_rows(Heads heads, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef attention_rows view
    view.first, view.rows, view.group = first, rows, 1
    view.stride, view.dim = heads.kv * heads.dim, heads.dim
    return view


cdef void forward_block(Block* b, float* out, float* maxima, float* inverse_sums, const float* q, const float* k,
                        const float* v, Heads heads, float scale) noexcept nogil:
    """One block of query rows against its keys; k and v point to the segment's first key of this head."""
    cdef Py_ssize_t i, tile, first, keys, row, dim = round_up(heads.dim, simd.vector_floats)
    cdef Py_ssize_t start = b.first_row * heads.dim
    cdef attention_rows view
    simd.attention.gather_transposed(b.query_t, ATTENTION_ROWS, q + start, &b.rows, scale)
    for i in range(b.padded_rows):
        b.maximum[i] = -FLT_MAX
        b.sum[i] = 0
    for tile in range((b.keys + ATTENTION_KEYS - 1) // ATTENTION_KEYS):
        first = tile * ATTENTION_KEYS
        keys = min(<Py_ssize_t> ATTENTION_KEYS, b.keys - first)
        view = key_rows(heads, first, keys)
        simd.attention.gather(b.key, b.ld, k, &view)
        simd.attention.gather(b.value, b.ld, v, &view)
        simd.gemm.strided(b.scores, ATTENTION_ROWS, b.key, b.ld, 1, b.query_t, ATTENTION_ROWS,
                              keys, b.padded_rows, heads.dim, NULL)
        simd.attention.softmax_step(b.scores, b.maximum, b.sum, b.keep, b.limit, <int32_t> first, keys, b.padded_rows,
                                    first + keys > b.unmasked_keys)
        simd.gemm.strided(b.out, b.ld, b.scores, 1, ATTENTION_ROWS, b.value, b.ld,
                              b.rows.rows, dim, keys, b.keep if first else NULL)
    if b.keys <= 0:
        memset(b.out, 0, ATTENTION_ROWS * b.ld * sizeof(float))
    for i in range(b.rows.rows):
        row = row_index(b, heads, i)
        b.keep[i] = 0 if b.sum[i] == 0 else 1 / b.sum[i]     # a row that sees no key gives zeros; NaN stays NaN
        maxima[row] = b.maximum[i]
        inverse_sums[row] = b.keep[i]
    simd.attention.scatter(out + start, b.out, b.ld, b.keep, &b.rows, 0)


cdef void forward_unit(float* memory, Py_ssize_t block, Py_ssize_t head, float* out, float* maxima,
                       float* inverse_sums, const float* q, const float* k, const float* v, const Segment* segments,
                       Py_ssize_t n_segments, Heads heads, float scale, bint causal) noexcept nogil:
    cdef Block b
    cdef const Segment* s = &segments[find_segment(segments, n_segments, block)]
    cdef Py_ssize_t start = (s.k_start * heads.kv + head) * heads.dim
    carve(&b, memory, heads.dim, False)
    place(&b, s, heads, head, (block - s.first_block) * ATTENTION_ROWS, causal)
    forward_block(&b, out, maxima, inverse_sums, q, k + start, v + start, heads, scale)


# out (tokens, heads.q, dim); maxima, inverse_sums (tokens, heads.q); see the formula above. -1 when memory is out.
cdef int attention_forward(float* out, float* maxima, float* inverse_sums, const float* q, const float* k,
                           const float* v, Segment* segments, Py_ssize_t n_segments, Heads heads, float scale,
                           bint causal) noexcept nogil:
    cdef Py_ssize_t work, unit, block, floats
    cdef Py_ssize_t units = set_blocks(segments, n_segments, heads, causal, &work) * heads.kv
    cdef int threads = threads_for(work, GRAIN)
    cdef Block sizes
    cdef float* memory
    floats = carve(&sizes, NULL, heads.dim, False)
    memory = <float*> scratch(SLOT, threads * floats * sizeof(float))
    if memory == NULL:
        return -1
    # the last blocks of a causal segment see the most keys: they go first
    for unit in prange(units, schedule="dynamic", num_threads=threads):
        block = (units - 1 - unit) // heads.kv
        forward_unit(memory + threadid() * floats, block, (units - 1 - unit) % heads.kv, out, maxima, inverse_sums,
                     q, k, v, segments, n_segments, heads, scale, causal)
    return 0


cdef void backward_block(Block* b, float* dq, float* dk, float* dv, const float* grad, const float* q,
                         const float* k, const float* v, const float* out, const float* maxima,
                         const float* inverse_sums, const float* ones, Heads heads, float scale,
                         bint accumulate_q) noexcept nogil:
    """Gradients from one block of query rows; k, v, dk, dv point to the segment's first key; NULL gradients are not
    wanted; dk and dv are added to."""
    cdef Py_ssize_t i, tile, first, keys, row, dim = round_up(heads.dim, simd.vector_floats)
    cdef Py_ssize_t start = b.first_row * heads.dim, stride = heads.kv * heads.dim
    cdef attention_rows view
    simd.attention.gather_transposed(b.query_t, ATTENTION_ROWS, q + start, &b.rows, scale)
    simd.attention.gather_transposed(b.grad_t, ATTENTION_ROWS, grad + start, &b.rows, 1)
    simd.attention.gather(b.grad, b.ld, grad + start, &b.rows)
    simd.attention.gather(b.query, b.ld, out + start, &b.rows)
    memset(b.keep, 0, ATTENTION_ROWS * sizeof(float))
    simd.attention.row_dots(b.keep, b.grad, b.query, b.ld, b.rows.rows, heads.dim)
    simd.attention.gather(b.query, b.ld, q + start, &b.rows)
    for i in range(b.padded_rows):
        row = row_index(b, heads, min(i, b.rows.rows - 1))
        b.maximum[i] = maxima[row]
        b.sum[i] = inverse_sums[row]
    for tile in range((b.keys + ATTENTION_KEYS - 1) // ATTENTION_KEYS):
        first = tile * ATTENTION_KEYS
        keys = min(<Py_ssize_t> ATTENTION_KEYS, b.keys - first)
        view = key_rows(heads, first, keys)
        simd.attention.gather(b.key, b.ld, k, &view)
        simd.attention.gather(b.value, b.ld, v, &view)
        simd.gemm.strided(b.scores, ATTENTION_ROWS, b.key, b.ld, 1, b.query_t, ATTENTION_ROWS,
                              keys, b.padded_rows, heads.dim, NULL)
        simd.gemm.strided(b.dp, ATTENTION_ROWS, b.value, b.ld, 1, b.grad_t, ATTENTION_ROWS,
                              keys, b.padded_rows, heads.dim, NULL)
        simd.attention.softmax_backward(b.scores, b.dp, b.maximum, b.sum, b.keep, scale, b.limit, <int32_t> first,
                                        keys, b.padded_rows, first + keys > b.unmasked_keys)
        if dv != NULL:
            simd.gemm.strided(dv + first * stride, stride, b.scores, ATTENTION_ROWS, 1, b.grad, b.ld,
                                  keys, heads.dim, b.rows.rows, ones)
        if dk != NULL:
            simd.gemm.strided(dk + first * stride, stride, b.dp, ATTENTION_ROWS, 1, b.query, b.ld,
                                  keys, heads.dim, b.rows.rows, ones)
        if dq != NULL:
            simd.gemm.strided(b.out, b.ld, b.dp, 1, ATTENTION_ROWS, b.key, b.ld,
                                  b.rows.rows, dim, keys, ones if first else NULL)
    if dq != NULL:
        if b.keys <= 0:
            memset(b.out, 0, ATTENTION_ROWS * b.ld * sizeof(float))
        simd.attention.scatter(dq + start, b.out, b.ld, NULL, &b.rows, accumulate_q)


cdef inline Py_ssize_t split_start(const Segment* s, Heads heads, Py_ssize_t split, Py_ssize_t splits) noexcept nogil:
    """First query row of a split: the blocks of a segment are dealt out in order, as evenly as they go."""
    cdef Py_ssize_t rows = s.q_len * (heads.q // heads.kv)
    cdef Py_ssize_t blocks = (rows + ATTENTION_ROWS - 1) // ATTENTION_ROWS
    return min(rows, split * blocks // splits * ATTENTION_ROWS)


cdef Py_ssize_t split_keys(const Segment* s, Heads heads, Py_ssize_t split, Py_ssize_t splits,
                           bint causal) noexcept nogil:
    """How many keys the rows of a split see."""
    cdef Py_ssize_t first = split_start(s, heads, split, splits), end = split_start(s, heads, split + 1, splits)
    if first == end:
        return 0
    return (end - 1) // (heads.q // heads.kv) + s.k_len - s.q_len + 1 if causal else s.k_len


cdef void clear(float* x, const Segment* s, Heads heads, Py_ssize_t head, Py_ssize_t keys) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(keys):
        memset(x + ((s.k_start + j) * heads.kv + head) * heads.dim, 0, heads.dim * sizeof(float))


cdef void backward_unit(float* memory, const Segment* s, Py_ssize_t head, Py_ssize_t split, Py_ssize_t splits,
                        float* dq, float* dk, float* dv, const float* grad, const float* q, const float* k,
                        const float* v, const float* out, const float* maxima, const float* inverse_sums,
                        const float* ones, Heads heads, float scale, bint causal, bint accumulate_q,
                        bint accumulate_k, bint accumulate_v) noexcept nogil:
    """One split of the query rows of one key head of one segment: its rows of dq, and its share of dk and dv."""
    cdef Block b
    cdef Py_ssize_t block, start = (s.k_start * heads.kv + head) * heads.dim
    cdef Py_ssize_t first = split_start(s, heads, split, splits), end = split_start(s, heads, split + 1, splits)
    cdef Py_ssize_t keys = s.k_len if split == 0 else split_keys(s, heads, split, splits, causal)
    if dk != NULL and not accumulate_k:
        clear(dk, s, heads, head, keys)
    if dv != NULL and not accumulate_v:
        clear(dv, s, heads, head, keys)
    carve(&b, memory, heads.dim, True)
    for block in range((end - first + ATTENTION_ROWS - 1) // ATTENTION_ROWS):
        place(&b, s, heads, head, first + block * ATTENTION_ROWS, causal)
        backward_block(&b, dq, dk + start if dk != NULL else NULL, dv + start if dv != NULL else NULL, grad, q,
                       k + start, v + start, out, maxima, inverse_sums, ones, heads, scale, accumulate_q)


cdef void add_splits(float* x, const float* shares, const Segment* segments, Py_ssize_t n_segments, Heads heads,
                     Py_ssize_t size, Py_ssize_t splits, bint causal, int threads) noexcept nogil:
    """x += the shares of splits 1, 2, ... in that order; a share is (key tokens, heads.kv, dim), valid where it saw."""
    cdef Py_ssize_t j, i, split, row, width = heads.kv * heads.dim
    cdef const Segment* s
    for i in range(n_segments):
        s = &segments[i]
        for j in prange(s.k_len, schedule="static", num_threads=threads):
            row = (s.k_start + j) * width
            for split in range(1, splits):
                if j < split_keys(s, heads, split, splits, causal):
                    simd.elementwise.add(x + row, x + row, shares + (split - 1) * size + row, width)


# dq (tokens, heads.q, dim); dk, dv (key tokens, heads.kv, dim): any may be NULL, each is overwritten or added to.
# The segments cover every token and key. -1 when memory is out.
cdef int attention_backward(float* dq, float* dk, float* dv, const float* grad, const float* q, const float* k,
                            const float* v, const float* out, const float* maxima, const float* inverse_sums,
                            Segment* segments, Py_ssize_t n_segments, Py_ssize_t k_tokens, Heads heads, float scale,
                            bint causal, bint accumulate_q, bint accumulate_k, bint accumulate_v) noexcept nogil:
    cdef Py_ssize_t work, unit, split, head, i, floats, units, size = k_tokens * heads.kv * heads.dim
    cdef Py_ssize_t blocks = set_blocks(segments, n_segments, heads, causal, &work)
    cdef int threads = threads_for(5 * work // 2, GRAIN)
    cdef Py_ssize_t pieces = max(<Py_ssize_t> 1, n_segments * heads.kv)
    cdef Py_ssize_t longest = blocks * ATTENTION_ROWS // max(<Py_ssize_t> 1, n_segments)
    # few heads and segments: split the query rows too, each split with its own share of dk and dv
    cdef Py_ssize_t splits = max(<Py_ssize_t> 1, min((BACKWARD_UNITS + pieces - 1) // pieces, longest // SPLIT_ROWS))
    cdef Py_ssize_t shares = (splits - 1) * size
    cdef Block sizes
    cdef float* memory
    cdef float* ones
    cdef float* dk_shares = NULL
    cdef float* dv_shares = NULL
    floats = carve(&sizes, NULL, heads.dim, True)
    memory = <float*> scratch(SLOT, (ATTENTION_ROWS + threads * floats + 2 * shares) * sizeof(float))
    if memory == NULL:
        return -1
    ones = memory
    memory = memory + ATTENTION_ROWS
    for i in range(ATTENTION_ROWS):
        ones[i] = 1
    if dk != NULL:
        dk_shares = memory + threads * floats
    if dv != NULL:
        dv_shares = memory + threads * floats + shares
    units = n_segments * heads.kv * splits
    for unit in prange(units, schedule="dynamic", num_threads=threads):
        split = splits - 1 - unit // (n_segments * heads.kv)     # the last split sees the most keys: it goes first
        i = unit // heads.kv % n_segments
        head = unit % heads.kv
        if split == 0:
            backward_unit(memory + threadid() * floats, &segments[i], head, split, splits, dq, dk, dv, grad, q, k, v,
                          out, maxima, inverse_sums, ones, heads, scale, causal, accumulate_q, accumulate_k,
                          accumulate_v)
        else:
            backward_unit(memory + threadid() * floats, &segments[i], head, split, splits, dq,
                          dk_shares + (split - 1) * size if dk != NULL else NULL,
                          dv_shares + (split - 1) * size if dv != NULL else NULL, grad, q, k, v, out, maxima,
                          inverse_sums, ones, heads, scale, causal, accumulate_q, False, False)
    if splits > 1 and dk != NULL:
        add_splits(dk, dk_shares, segments, n_segments, heads, size, splits, causal, threads)
    if splits > 1 and dv != NULL:
        add_splits(dv, dv_shares, segments, n_segments, heads, size, splits, causal, threads)
    return 0
