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

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport (
    SCRATCH_ATTENTION, bisect, ceil_div, max, min, round_up, scratch, threads_for,
)
from entrenar._kernels.simd.attention cimport ATTENTION_KEYS, ATTENTION_ROWS, attention_rows
from entrenar._kernels.simd.gemm cimport gemm_ones

cdef enum:
    GRAIN = 1 << 15              # FLOPs / 8 for which waking a thread pays
    BACKWARD_UNITS = 32          # independent pieces of backward to aim at; never depends on the number of threads
    SPLIT_ROWS = 4 * ATTENTION_ROWS  # fewest query rows of a piece, when a head is split
    TOGETHER = 4                 # blocks of query rows that meet a tile of keys and values once it is copied
    FORWARD_UNITS = 32           # where there are fewer pieces of forward, fewer blocks go together

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
    float* dk                    # (KEYS, ld)    what the blocks that go together add
    float* dv                    # (KEYS, ld)
    float* maximum               # (ROWS)
    float* sum                   # (ROWS)      backward: 1 / sum
    float* keep                  # (ROWS)      backward: delta
    int32_t* limit               # (ROWS)      last visible key


cdef inline float* take(float** cursor, Py_ssize_t floats) noexcept nogil:
    cdef float* taken = cursor[0]
    cursor[0] += round_up(floats, 16)
    return taken


cdef Py_ssize_t carve(Block* blocks, int count, float* memory, Py_ssize_t dim, bint backward) noexcept nogil:
    """Point the tiles of `count` blocks into `memory`; gives the floats used (memory may be NULL to ask)."""
    cdef float* cursor = memory
    cdef Block* b
    cdef int i
    for i in range(count):
        b = &blocks[i]
        b.ld = round_up(dim, 16)
        if i == 0:
            b.key = take(&cursor, ATTENTION_KEYS * b.ld)
            b.value = take(&cursor, ATTENTION_KEYS * b.ld)
            b.scores = take(&cursor, ATTENTION_KEYS * ATTENTION_ROWS)
            if backward:
                b.dp = take(&cursor, ATTENTION_KEYS * ATTENTION_ROWS)
                b.dk = take(&cursor, ATTENTION_KEYS * b.ld)
                b.dv = take(&cursor, ATTENTION_KEYS * b.ld)
        else:  # blocks take turns at a tile of keys
            b.key, b.value, b.scores = blocks.key, blocks.value, blocks.scores
            if backward:
                b.dp, b.dk, b.dv = blocks.dp, blocks.dk, blocks.dv
        b.query_t = take(&cursor, dim * ATTENTION_ROWS)
        b.out = take(&cursor, ATTENTION_ROWS * b.ld)
        b.maximum = take(&cursor, ATTENTION_ROWS)
        b.sum = take(&cursor, ATTENTION_ROWS)
        b.keep = take(&cursor, ATTENTION_ROWS)
        b.limit = <int32_t*> take(&cursor, ATTENTION_ROWS)
        if backward:
            b.query = take(&cursor, ATTENTION_ROWS * b.ld)
            b.grad = take(&cursor, ATTENTION_ROWS * b.ld)
            b.grad_t = take(&cursor, dim * ATTENTION_ROWS)
    return cursor - memory


cdef Py_ssize_t set_pieces(Segment* segments, Py_ssize_t n_segments, Heads heads, bint causal, int together,
                           Py_ssize_t* work) noexcept nogil:
    """Number the pieces of one key head, `together` blocks of query rows each; gives their count, and the FLOPs / 8 of
    forward in work."""
    cdef Py_ssize_t i, group = heads.q // heads.kv, pieces = 0
    cdef Segment* s
    work[0] = 0
    for i in range(n_segments):
        s = &segments[i]
        s.first_piece = pieces
        pieces += ceil_div(s.q_len * group, together * ATTENTION_ROWS)
        work[0] += s.q_len * (s.k_len - (s.q_len // 2 if causal else 0)) * heads.q * heads.dim // 2
    return pieces


cdef inline Py_ssize_t find_segment(const Segment* segments, Py_ssize_t n_segments, Py_ssize_t piece) noexcept nogil:
    """The segment that holds a piece (segments without rows hold none)."""
    return bisect(&segments.first_piece, sizeof(Segment), n_segments, piece)


cdef void place(Block* b, const Segment* s, Heads heads, Py_ssize_t head, Py_ssize_t first,
                bint causal) noexcept nogil:
    """Set b to the query rows [first, first + ROWS) of one key head of a segment, and to the keys they see."""
    cdef Py_ssize_t i, group = heads.q // heads.kv, offset = s.k_len - s.q_len, total = s.q_len * group
    b.rows.first = first
    b.rows.rows = min(ATTENTION_ROWS, total - first)
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


cdef int place_all(Block* blocks, int count, const Segment* s, Heads heads, Py_ssize_t head, Py_ssize_t first,
                   Py_ssize_t end, bint causal) noexcept nogil:
    """Set up to `count` blocks to the query rows [first, end) of one key head; gives how many it took."""
    cdef int i = 0
    while i < count and first < end:
        place(&blocks[i], s, heads, head, first, causal)
        first += ATTENTION_ROWS
        i += 1
    return i


cdef void copy_tile(Block* b, const float* k, const float* v, Heads heads, Py_ssize_t first,
                    Py_ssize_t keys) noexcept nogil:
    """The keys and values [first, first + keys) of one head, from where they lie far apart."""
    cdef attention_rows view = key_rows(heads, first, keys)
    simd.attention.gather(b.key, b.ld, k, &view)
    simd.attention.gather(b.value, b.ld, v, &view)


cdef void forward_tile(Block* b, Heads heads, Py_ssize_t first, Py_ssize_t keys) noexcept nogil:
    """One block of query rows against the copied keys [first, first + keys)."""
    simd.gemm.skinny(b.scores, ATTENTION_ROWS, b.key, b.ld, 1, b.query_t, ATTENTION_ROWS,
                      keys, b.padded_rows, heads.dim, NULL)
    simd.attention.softmax_step(b.scores, b.maximum, b.sum, b.keep, b.limit, <int32_t> first, keys, b.padded_rows,
                                first + keys > b.unmasked_keys)
    simd.gemm.skinny(b.out, b.ld, b.scores, 1, ATTENTION_ROWS, b.value, b.ld,
                      b.rows.rows, round_up(heads.dim, simd.vector_floats), keys, b.keep if first else NULL)


cdef void forward_end(Block* b, float* out, float* maxima, float* inverse_sums, Heads heads) noexcept nogil:
    """Write a block's outputs, divided by their sums, and what backward needs."""
    cdef Py_ssize_t i, row
    if b.keys <= 0:
        memset(b.out, 0, ATTENTION_ROWS * b.ld * sizeof(float))
    for i in range(b.rows.rows):
        row = row_index(b, heads, i)
        b.keep[i] = 0 if b.sum[i] == 0 else 1 / b.sum[i]     # a row that sees no key gives zeros; NaN stays NaN
        maxima[row] = b.maximum[i]
        inverse_sums[row] = b.keep[i]
    simd.attention.scatter(out + b.first_row * heads.dim, b.out, b.ld, b.keep, &b.rows, 0)


cdef void forward_blocks(Block* blocks, int count, float* out, float* maxima, float* inverse_sums, const float* q,
                         const float* k, const float* v, Heads heads, float scale) noexcept nogil:
    """Neighbouring blocks of query rows against their keys; k and v point to the segment's first key of this head."""
    cdef Py_ssize_t i, j, first = 0, keys, most_keys = blocks[count - 1].keys
    cdef Block* b
    for j in range(count):
        b = &blocks[j]
        simd.attention.gather_transposed(b.query_t, ATTENTION_ROWS, q + b.first_row * heads.dim, &b.rows, scale)
        for i in range(b.padded_rows):
            b.maximum[i] = -FLT_MAX
            b.sum[i] = 0
    while first < most_keys:
        keys = min(ATTENTION_KEYS, most_keys - first)
        copy_tile(blocks, k, v, heads, first, keys)
        for j in range(count):
            if first < blocks[j].keys:
                forward_tile(&blocks[j], heads, first, min(keys, blocks[j].keys - first))
        first += keys
    for j in range(count):
        forward_end(&blocks[j], out, maxima, inverse_sums, heads)


cdef void forward_unit(float* memory, int together, Py_ssize_t piece, Py_ssize_t head, float* out, float* maxima,
                       float* inverse_sums, const float* q, const float* k, const float* v, const Segment* segments,
                       Py_ssize_t n_segments, Heads heads, float scale, bint causal) noexcept nogil:
    cdef Block blocks[TOGETHER]
    cdef const Segment* s = &segments[find_segment(segments, n_segments, piece)]
    cdef Py_ssize_t start = (s.k_start * heads.kv + head) * heads.dim
    cdef Py_ssize_t first = (piece - s.first_piece) * together * ATTENTION_ROWS
    cdef int count
    carve(blocks, together, memory, heads.dim, False)
    count = place_all(blocks, together, s, heads, head, first, s.q_len * (heads.q // heads.kv), causal)
    forward_blocks(blocks, count, out, maxima, inverse_sums, q, k + start, v + start, heads, scale)


# out (tokens, heads.q, dim); maxima, inverse_sums (tokens, heads.q); see the formula above. -1 when memory is out.
cdef int attention_forward(float* out, float* maxima, float* inverse_sums, const float* q, const float* k,
                           const float* v, Segment* segments, Py_ssize_t n_segments, Heads heads, float scale,
                           bint causal) noexcept nogil:
    cdef Py_ssize_t work, unit, piece, floats
    cdef Py_ssize_t units = set_pieces(segments, n_segments, heads, causal, 1, &work) * heads.kv
    cdef int threads = threads_for(work, GRAIN)
    cdef int together = <int> max(1, min(TOGETHER, units // FORWARD_UNITS))
    cdef Block sizes[TOGETHER]
    cdef float* memory
    units = set_pieces(segments, n_segments, heads, causal, together, &work) * heads.kv  # counted before, numbered now
    floats = carve(sizes, together, NULL, heads.dim, False)
    memory = <float*> scratch(SCRATCH_ATTENTION, threads * floats * sizeof(float))
    if memory == NULL:
        return -1
    if threads == 1:  # waking OpenMP costs more than the attention of one token
        for unit in range(units):
            forward_unit(memory, together, unit // heads.kv, unit % heads.kv, out, maxima, inverse_sums, q, k, v,
                         segments, n_segments, heads, scale, causal)
        return 0
    # the last rows of a causal segment see the most keys: they go first
    for unit in prange(units, schedule="dynamic", num_threads=threads):
        piece = (units - 1 - unit) // heads.kv
        forward_unit(memory + threadid() * floats, together, piece, (units - 1 - unit) % heads.kv, out, maxima,
                     inverse_sums, q, k, v, segments, n_segments, heads, scale, causal)
    return 0


# What backward reads and writes; in a unit k, v, dk, dv point to the segment's first key of a head. NULL gradients are
# not wanted.
ctypedef struct BackwardData:
    float* dq
    float* dk
    float* dv
    const float* grad
    const float* q
    const float* k
    const float* v
    const float* out
    const float* maxima
    const float* inverse_sums
    Heads heads
    float scale


cdef void backward_start(Block* b, const BackwardData* g) noexcept nogil:
    """Copy what a block of query rows needs, and its delta."""
    cdef Py_ssize_t i, row, start = b.first_row * g.heads.dim
    simd.attention.gather_transposed(b.query_t, ATTENTION_ROWS, g.q + start, &b.rows, g.scale)
    simd.attention.gather_transposed(b.grad_t, ATTENTION_ROWS, g.grad + start, &b.rows, 1)
    simd.attention.gather(b.grad, b.ld, g.grad + start, &b.rows)
    simd.attention.gather(b.query, b.ld, g.out + start, &b.rows)
    memset(b.keep, 0, ATTENTION_ROWS * sizeof(float))
    simd.attention.row_dots(b.keep, b.grad, b.query, b.ld, b.rows.rows, g.heads.dim)
    simd.attention.gather(b.query, b.ld, g.q + start, &b.rows)
    for i in range(b.padded_rows):
        row = row_index(b, g.heads, min(i, b.rows.rows - 1))
        b.maximum[i] = g.maxima[row]
        b.sum[i] = g.inverse_sums[row]


cdef void backward_tile(Block* b, const BackwardData* g, Py_ssize_t first, Py_ssize_t keys, bint fresh) noexcept nogil:
    """One block of query rows against the copied keys [first, first + keys): adds to dq, and to dk and dv of the tile,
    which are overwritten where `fresh`."""
    cdef Py_ssize_t dim = g.heads.dim, whole = round_up(dim, simd.vector_floats)
    simd.gemm.skinny(b.scores, ATTENTION_ROWS, b.key, b.ld, 1, b.query_t, ATTENTION_ROWS,
                      keys, b.padded_rows, dim, NULL)
    simd.gemm.skinny(b.dp, ATTENTION_ROWS, b.value, b.ld, 1, b.grad_t, ATTENTION_ROWS,
                      keys, b.padded_rows, dim, NULL)
    simd.attention.softmax_backward(b.scores, b.dp, b.maximum, b.sum, b.keep, g.scale, b.limit, <int32_t> first,
                                    keys, b.padded_rows, first + keys > b.unmasked_keys)
    if g.dv != NULL:
        simd.gemm.skinny(b.dv, b.ld, b.scores, ATTENTION_ROWS, 1, b.grad, b.ld,
                          keys, whole, b.rows.rows, gemm_ones if not fresh else NULL)
    if g.dk != NULL:
        simd.gemm.skinny(b.dk, b.ld, b.dp, ATTENTION_ROWS, 1, b.query, b.ld,
                          keys, whole, b.rows.rows, gemm_ones if not fresh else NULL)
    if g.dq != NULL:
        simd.gemm.skinny(b.out, b.ld, b.dp, 1, ATTENTION_ROWS, b.key, b.ld,
                          b.rows.rows, whole, keys, gemm_ones if first else NULL)


cdef void backward_blocks(Block* blocks, int count, const BackwardData* g, bint accumulate_q) noexcept nogil:
    """BackwardData from neighbouring blocks of query rows; dk and dv are added to."""
    cdef Py_ssize_t j, first = 0, keys, most_keys = blocks[count - 1].keys
    cdef attention_rows view
    cdef Block* b
    cdef bint fresh
    for j in range(count):
        backward_start(&blocks[j], g)
    while first < most_keys:
        keys = min(ATTENTION_KEYS, most_keys - first)
        copy_tile(blocks, g.k, g.v, g.heads, first, keys)
        fresh = True
        for j in range(count - 1, -1, -1):  # the last block sees all keys of the tile
            if first < blocks[j].keys:
                backward_tile(&blocks[j], g, first, min(keys, blocks[j].keys - first), fresh)
                fresh = False
        view = key_rows(g.heads, first, keys)
        if g.dk != NULL:
            simd.attention.scatter(g.dk, blocks.dk, blocks.ld, NULL, &view, 1)
        if g.dv != NULL:
            simd.attention.scatter(g.dv, blocks.dv, blocks.ld, NULL, &view, 1)
        first += keys
    for j in range(count):
        b = &blocks[j]
        if g.dq != NULL:
            if b.keys <= 0:
                memset(b.out, 0, ATTENTION_ROWS * b.ld * sizeof(float))
            simd.attention.scatter(g.dq + b.first_row * g.heads.dim, b.out, b.ld, NULL, &b.rows, accumulate_q)


cdef inline Py_ssize_t split_start(const Segment* s, Heads heads, Py_ssize_t split, Py_ssize_t splits) noexcept nogil:
    """First query row of a split: the blocks of a segment are dealt out in order, as evenly as they go."""
    cdef Py_ssize_t rows = s.q_len * (heads.q // heads.kv)
    cdef Py_ssize_t blocks = ceil_div(rows, ATTENTION_ROWS)
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


cdef void backward_unit(float* memory, int together, BackwardData g, const Segment* s, Py_ssize_t head,
                        Py_ssize_t split, Py_ssize_t splits, bint causal, bint accumulate_q, bint accumulate_k,
                        bint accumulate_v) noexcept nogil:
    """One split of the query rows of one key head of one segment: its rows of dq, and its share of dk and dv."""
    cdef Block blocks[TOGETHER]
    cdef Py_ssize_t start = (s.k_start * g.heads.kv + head) * g.heads.dim
    cdef Py_ssize_t first = split_start(s, g.heads, split, splits), end = split_start(s, g.heads, split + 1, splits)
    cdef Py_ssize_t keys = s.k_len if split == 0 else split_keys(s, g.heads, split, splits, causal)
    if g.dk != NULL:
        if not accumulate_k:
            clear(g.dk, s, g.heads, head, keys)
        g.dk += start
    if g.dv != NULL:
        if not accumulate_v:
            clear(g.dv, s, g.heads, head, keys)
        g.dv += start
    g.k += start
    g.v += start
    carve(blocks, together, memory, g.heads.dim, True)
    while first < end:
        backward_blocks(blocks, place_all(blocks, together, s, g.heads, head, first, end, causal), &g, accumulate_q)
        first += together * ATTENTION_ROWS


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
    cdef Py_ssize_t blocks = set_pieces(segments, n_segments, heads, causal, 1, &work)
    cdef int threads = threads_for(5 * work // 2, GRAIN)
    cdef Py_ssize_t pieces = max(1, n_segments * heads.kv)
    cdef Py_ssize_t longest = blocks * ATTENTION_ROWS // max(1, n_segments)
    # few heads and segments: split the query rows too, each split with its own share of dk and dv
    cdef Py_ssize_t splits = max(1, min(ceil_div(BACKWARD_UNITS, pieces), longest // SPLIT_ROWS))
    cdef Py_ssize_t shares = (splits - 1) * size
    cdef int together = <int> max(1, min(TOGETHER, blocks))
    cdef Block sizes[TOGETHER]
    cdef BackwardData whole, share
    cdef float* memory
    cdef float* dk_shares = NULL
    cdef float* dv_shares = NULL
    floats = carve(sizes, together, NULL, heads.dim, True)
    memory = <float*> scratch(SCRATCH_ATTENTION, (threads * floats + 2 * shares) * sizeof(float))
    if memory == NULL:
        return -1
    if dk != NULL:
        dk_shares = memory + threads * floats
    if dv != NULL:
        dv_shares = memory + threads * floats + shares
    whole.dq, whole.dk, whole.dv, whole.grad, whole.q, whole.k, whole.v = dq, dk, dv, grad, q, k, v
    whole.out, whole.maxima, whole.inverse_sums = out, maxima, inverse_sums
    whole.heads, whole.scale = heads, scale
    units = n_segments * heads.kv * splits
    for unit in prange(units, schedule="dynamic", num_threads=threads):
        split = splits - 1 - unit // (n_segments * heads.kv)     # the last split sees the most keys: it goes first
        i = unit // heads.kv % n_segments
        head = unit % heads.kv
        share = whole
        if split > 0:
            share.dk = dk_shares + (split - 1) * size if dk != NULL else NULL
            share.dv = dv_shares + (split - 1) * size if dv != NULL else NULL
        backward_unit(memory + threadid() * floats, together, share, &segments[i], head, split, splits, causal,
                      accumulate_q, accumulate_k and split == 0, accumulate_v and split == 0)
    if splits > 1 and dk != NULL:
        add_splits(dk, dk_shares, segments, n_segments, heads, size, splits, causal, threads)
    if splits > 1 and dv != NULL:
        add_splits(dv, dv_shares, segments, n_segments, heads, size, splits, causal, threads)
    return 0
