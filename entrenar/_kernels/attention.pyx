"""Grouped-query attention, tiled with an online softmax (FlashAttention-2, Dao 2023, https://arxiv.org/abs/2307.08691).

The query heads that share a key head are stacked as rows of one matrix, token by token, so k and v are never repeated.
A q tile is ATTENTION_ROWS of these rows, a kv tile ATTENTION_KEYS keys and their values; a score tile is transposed,
(keys, rows). Q_TILES neighbouring q tiles, a block, meet a kv tile once it is copied. Memory is linear in the number of
tokens: forward saves two floats a row, the log-sum-exp as its parts row_max and 1 / row_sum, from which backward
recomputes each tile of p.
"""
from cython.parallel cimport prange, threadid
from libc.float cimport FLT_MAX
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport (
    SCRATCH_ATTENTION, bisect, ceil_div, max, min, round_up, scratch, threads_for,
)
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, kernel_shape, shape_of
from entrenar._kernels.simd.attention cimport ATTENTION_KEYS, ATTENTION_ROWS, attention_rows, attention_tile
from entrenar._kernels.simd.skinny cimport skinny_args, skinny_ones

cdef enum:
    GRAIN = 1 << 15              # FLOPs / 8 worth a thread
    Q_TILES = 4                  # most q tiles of a block
    FORWARD_UNITS = 32           # independent blocks of forward to aim at: where there are fewer, they are smaller
    BACKWARD_UNITS = 32          # independent units of backward to aim at; never depends on the number of threads
    SPLIT_ROWS = 4 * ATTENTION_ROWS  # fewest query rows of a unit of backward, when a head is split
    FEW_ROWS = 12                # query rows that meet a kv tile but once: a copy of it does not pay
    ALIASED = 1024               # floats at whose multiples rows of keys evict one another from L1

cdef int ATTENTION_FORWARD = register("attention_forward")
cdef int ATTENTION_BACKWARD = register("attention_backward")

# The tiles lie in the thread's part of the scratch; rows of (., ld) are padded to whole vectors.
ctypedef struct KVTile:
    Py_ssize_t ld, key_ld, value_ld
    float* key_copy              # (KEYS, ld)
    float* value_copy            # (KEYS, ld)
    const float* key             # (KEYS, key_ld): the copy, or where they lie
    const float* value           # (KEYS, value_ld)
    float* scores                # (KEYS, ROWS)  becomes p

ctypedef struct KVGradients:     # of a kv tile, from all q tiles of a block
    float* dp                    # (KEYS, ROWS)  becomes ds
    float* dk                    # (KEYS, ld)
    float* dv                    # (KEYS, ld)

ctypedef struct QTile:
    attention_rows rows          # where the query rows lie
    Py_ssize_t padded_rows       # up to whole vectors
    Py_ssize_t first_row         # index of row 0 of the view in tokens * heads.q
    Py_ssize_t first_key         # first key that row 0 sees
    Py_ssize_t keys              # end of the keys that the last row sees
    Py_ssize_t unmasked_first    # the keys [unmasked_first, unmasked_keys) are seen by every row
    Py_ssize_t unmasked_keys
    float* query_t               # (dim, ROWS), times scale
    float* row_max               # (ROWS)
    int32_t* start               # (ROWS)  first visible key
    int32_t* limit               # (ROWS)  last visible key

ctypedef struct ForwardTile:
    QTile q
    float* out                   # (ROWS, ld)
    float* row_sum               # (ROWS)
    float* correction            # (ROWS)  what earlier sums and outputs are multiplied with

ctypedef struct BackwardTile:
    QTile q
    float* query                 # (ROWS, ld)
    float* dout                  # (ROWS, ld)
    float* dout_t                # (dim, ROWS)
    float* dq                    # (ROWS, ld)
    float* inverse_row_sum       # (ROWS)
    float* delta                 # (ROWS)


# ---------------------------------------------------------------------- tiles: where they lie and what they cover
cdef inline float* take(float** cursor, Py_ssize_t floats) noexcept nogil:
    cdef float* taken = cursor[0]
    cursor[0] += round_up(floats, 16)
    return taken


cdef void place_kv(KVTile* kv, float** cursor, Py_ssize_t dim) noexcept nogil:
    kv.ld = round_up(dim, 16)
    kv.key_copy = take(cursor, ATTENTION_KEYS * kv.ld)
    kv.value_copy = take(cursor, ATTENTION_KEYS * kv.ld)
    kv.key, kv.key_ld, kv.value, kv.value_ld = kv.key_copy, kv.ld, kv.value_copy, kv.ld
    kv.scores = take(cursor, ATTENTION_KEYS * ATTENTION_ROWS)


cdef void place_q(QTile* q, float** cursor, Py_ssize_t dim) noexcept nogil:
    q.query_t = take(cursor, dim * ATTENTION_ROWS)
    q.row_max = take(cursor, ATTENTION_ROWS)
    q.start = <int32_t*> take(cursor, ATTENTION_ROWS)
    q.limit = <int32_t*> take(cursor, ATTENTION_ROWS)


cdef Py_ssize_t place_forward(KVTile* kv, ForwardTile* tiles, int count, float* memory,
                              Py_ssize_t dim) noexcept nogil:
    """Point the tiles of a block into `memory`; returns the floats used (memory may be NULL to count them)."""
    cdef float* cursor = memory
    cdef int i
    place_kv(kv, &cursor, dim)
    for i in range(count):
        place_q(&tiles[i].q, &cursor, dim)
        tiles[i].out = take(&cursor, ATTENTION_ROWS * kv.ld)
        tiles[i].row_sum = take(&cursor, ATTENTION_ROWS)
        tiles[i].correction = take(&cursor, ATTENTION_ROWS)
    return cursor - memory


cdef Py_ssize_t place_backward(KVTile* kv, KVGradients* d, BackwardTile* tiles, int count, float* memory,
                               Py_ssize_t dim) noexcept nogil:
    """The same for backward."""
    cdef float* cursor = memory
    cdef int i
    place_kv(kv, &cursor, dim)
    d.dp = take(&cursor, ATTENTION_KEYS * ATTENTION_ROWS)
    d.dk = take(&cursor, ATTENTION_KEYS * kv.ld)
    d.dv = take(&cursor, ATTENTION_KEYS * kv.ld)
    for i in range(count):
        place_q(&tiles[i].q, &cursor, dim)
        tiles[i].query = take(&cursor, ATTENTION_ROWS * kv.ld)
        tiles[i].dout = take(&cursor, ATTENTION_ROWS * kv.ld)
        tiles[i].dout_t = take(&cursor, dim * ATTENTION_ROWS)
        tiles[i].dq = take(&cursor, ATTENTION_ROWS * kv.ld)
        tiles[i].inverse_row_sum = take(&cursor, ATTENTION_ROWS)
        tiles[i].delta = take(&cursor, ATTENTION_ROWS)
    return cursor - memory


cdef inline Py_ssize_t group_of(const Attention* a) noexcept nogil:
    """Query heads that share a key head."""
    return a.heads.q // a.heads.kv


cdef inline Py_ssize_t keys_of_a_query(const Attention* a, const Segment* s) noexcept nogil:
    """About the keys that a query sees on average."""
    cdef Py_ssize_t keys = s.k_len - (s.q_len // 2 if a.causal else 0)
    return min(keys, a.window) if a.window else keys


cdef inline Py_ssize_t first_seen(const Attention* a, Py_ssize_t last) noexcept nogil:
    """The first key that a query sees whose last one is `last`."""
    return max(0, last - a.window + 1) if a.window else 0


cdef Py_ssize_t number_blocks(const Attention* a, int q_tiles, Py_ssize_t* work) noexcept nogil:
    """Number the blocks of `q_tiles` of one key head; gives their count, and the FLOPs / 8 of forward in work."""
    cdef Py_ssize_t i, blocks = 0
    cdef Segment* s
    work[0] = 0
    for i in range(a.n_segments):
        s = &a.segments[i]
        s.first_block = blocks
        blocks += ceil_div(s.q_len * group_of(a), q_tiles * ATTENTION_ROWS)
        work[0] += s.q_len * keys_of_a_query(a, s) * a.heads.q * a.heads.dim // 2
    return blocks


cdef void cover(QTile* t, const Attention* a, const Segment* s, Py_ssize_t head, Py_ssize_t first) noexcept nogil:
    """Set t to the query rows [first, first + ROWS) of one key head of a segment, and to the keys they see."""
    cdef Py_ssize_t i, group = group_of(a), offset = s.k_len - s.q_len, total = s.q_len * group
    t.rows.first = first
    t.rows.rows = min(ATTENTION_ROWS, total - first)
    t.rows.group = group
    t.rows.stride = a.heads.q * a.heads.dim
    t.rows.dim = a.heads.dim
    t.padded_rows = round_up(t.rows.rows, simd.vector_floats)
    t.first_row = s.q_start * a.heads.q + head * group
    t.keys = s.k_len
    t.unmasked_keys = s.k_len
    if a.causal:
        t.keys = (first + t.rows.rows - 1) // group + offset + 1
        t.unmasked_keys = first // group + offset + 1
    for i in range(t.padded_rows):
        t.limit[i] = <int32_t> (min(first + i, total - 1) // group + offset if a.causal else s.k_len)
        t.start[i] = <int32_t> first_seen(a, t.limit[i])
    t.first_key = first_seen(a, t.unmasked_keys - 1)
    t.unmasked_first = first_seen(a, t.keys - 1)


cdef inline Py_ssize_t row_index(const QTile* t, const Attention* a, Py_ssize_t i) noexcept nogil:
    """Where row i of the tile stands among the tokens * heads.q rows of q."""
    cdef Py_ssize_t r = t.rows.first + i
    return t.first_row + r // t.rows.group * a.heads.q + r % t.rows.group


cdef inline attention_rows key_rows(const Attention* a, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef attention_rows view
    view.first, view.rows, view.group = first, rows, 1
    view.stride, view.dim = a.heads.kv * a.heads.dim, a.heads.dim
    return view


cdef void bring_kv(KVTile* kv, const Attention* a, Py_ssize_t start, Py_ssize_t first, Py_ssize_t keys,
                   bint copied) noexcept nogil:
    """The keys and values [first, first + keys) of one head, whose first ones are at `start` of k and v."""
    cdef attention_rows view = key_rows(a, first, keys)
    if copied or view.stride % ALIASED == 0:
        simd.attention.gather(kv.key_copy, kv.ld, a.k + start, &view)
    else:
        kv.key, kv.key_ld = a.k + start + first * view.stride, view.stride
        simd.attention.prefetch(kv.key, &view)
    if copied:
        simd.attention.gather(kv.value_copy, kv.ld, a.v + start, &view)
    else:
        kv.value, kv.value_ld = a.v + start + first * view.stride, view.stride
        simd.attention.prefetch(kv.value, &view)


cdef inline attention_tile score_tile(KVTile* kv, QTile* q, Py_ssize_t first, Py_ssize_t keys,
                                      float softcap) noexcept nogil:
    cdef attention_tile t
    t.scores, t.start, t.limit, t.keys, t.rows = kv.scores, q.start, q.limit, keys, q.padded_rows
    t.first_key = <int32_t> first
    t.masked = first + keys > q.unmasked_keys or first < q.unmasked_first
    t.softcap = softcap
    return t


cdef inline bint sees(const QTile* q, Py_ssize_t first, Py_ssize_t keys) noexcept nogil:
    """Whether some row of a q tile sees some of the keys [first, first + keys)."""
    return first < q.keys and first + keys > q.first_key


cdef inline void scores_of(float* scores, const float* key, const float* query_t, Py_ssize_t ld, Py_ssize_t keys,
                           Py_ssize_t rows, Py_ssize_t dim) noexcept nogil:
    """scores (keys, ROWS) = key (keys, ld) query_t (dim, ROWS)"""
    cdef skinny_args s = skinny_args(c=scores, ldc=ATTENTION_ROWS, a=key, rs_a=ld, cs_a=1, b=query_t,
                                     ldb=ATTENTION_ROWS, m=keys, n=rows, k=dim, beta=NULL)
    simd.skinny.multiply(&s)


cdef inline void rows_from_keys(float* out, const float* p, const float* value, Py_ssize_t ld, Py_ssize_t value_ld,
                                Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t keys,
                                const float* beta) noexcept nogil:
    """out (ROWS, ld) = diag(beta) out + p^T value, p (keys, ROWS), value (keys, value_ld)"""
    cdef skinny_args s = skinny_args(c=out, ldc=ld, a=p, rs_a=1, cs_a=ATTENTION_ROWS, b=value, ldb=value_ld,
                                     m=rows, n=columns, k=keys, beta=beta)
    simd.skinny.multiply(&s)


cdef inline void keys_from_rows(float* out, const float* p, const float* x, Py_ssize_t ld, Py_ssize_t keys,
                                Py_ssize_t columns, Py_ssize_t rows, const float* beta) noexcept nogil:
    """out (KEYS, ld) = diag(beta) out + p x, p (keys, ROWS), x (rows, ld)"""
    cdef skinny_args s = skinny_args(c=out, ldc=ld, a=p, rs_a=ATTENTION_ROWS, cs_a=1, b=x, ldb=ld,
                                     m=keys, n=columns, k=rows, beta=beta)
    simd.skinny.multiply(&s)


# ---------------------------------------------------------------------- forward
cdef void forward_begin(ForwardTile* t, const Attention* a) noexcept nogil:
    cdef Py_ssize_t i
    simd.attention.gather_transposed(t.q.query_t, ATTENTION_ROWS, a.q + t.q.first_row * a.heads.dim, &t.q.rows, a.scale)
    for i in range(t.q.padded_rows):
        t.q.row_max[i] = -FLT_MAX
        t.row_sum[i] = 0


cdef void forward_tile(ForwardTile* t, KVTile* kv, const Attention* a, Py_ssize_t first,
                       Py_ssize_t keys) noexcept nogil:
    """A q tile against the kv tile of the keys [first, first + keys)."""
    cdef Py_ssize_t dim = a.heads.dim
    cdef attention_tile s = score_tile(kv, &t.q, first, keys, a.softcap)
    # lanes behind so few rows that the product leaves them out hold anything: no row depends on them
    cdef Py_ssize_t rows = t.q.rows.rows if t.q.rows.rows <= 4 else t.q.padded_rows
    scores_of(kv.scores, kv.key, t.q.query_t, kv.key_ld, keys, rows, dim)
    simd.attention.softmax_step(&s, t.q.row_max, t.row_sum, t.correction)
    rows_from_keys(t.out, kv.scores, kv.value, kv.ld, kv.value_ld, t.q.rows.rows, round_up(dim, simd.vector_floats),
                   keys, t.correction if first > t.q.first_key else NULL)


cdef void forward_end(ForwardTile* t, Py_ssize_t ld, float* out, float* row_max, float* inverse_row_sum,
                      const Attention* a) noexcept nogil:
    """Write a tile's outputs, divided by their sums, and what backward needs."""
    cdef Py_ssize_t i, row
    if t.q.keys <= 0:
        memset(t.out, 0, ATTENTION_ROWS * ld * sizeof(float))
    for i in range(t.q.rows.rows):
        row = row_index(&t.q, a, i)
        t.correction[i] = 0 if t.row_sum[i] == 0 else 1 / t.row_sum[i]  # a row that sees no key gives 0; NaN stays
        row_max[row] = t.q.row_max[i]
        inverse_row_sum[row] = t.correction[i]
    simd.attention.scatter(out + t.q.first_row * a.heads.dim, t.out, ld, t.correction, &t.q.rows, 0)


cdef void forward_block(float* memory, int q_tiles, Py_ssize_t block, Py_ssize_t head, float* out, float* row_max,
                        float* inverse_row_sum, const Attention* a) noexcept nogil:
    """One block of q tiles of one key head against the keys they see."""
    cdef KVTile kv
    cdef ForwardTile tiles[Q_TILES]
    cdef const Segment* s = &a.segments[bisect(&a.segments.first_block, sizeof(Segment), a.n_segments, block)]
    cdef Py_ssize_t start = (s.k_start * a.heads.kv + head) * a.heads.dim, rows = s.q_len * group_of(a)
    cdef Py_ssize_t row = (block - s.first_block) * q_tiles * ATTENTION_ROWS, first, keys, most_keys
    cdef int count = 0, i
    cdef bint copied = rows > FEW_ROWS or a.heads.dim % simd.vector_floats != 0
    place_forward(&kv, tiles, q_tiles, memory, a.heads.dim)
    while count < q_tiles and row < rows:
        cover(&tiles[count].q, a, s, head, row)
        forward_begin(&tiles[count], a)
        row += ATTENTION_ROWS
        count += 1
    first, most_keys = tiles[0].q.first_key, tiles[count - 1].q.keys
    while first < most_keys:
        keys = min(ATTENTION_KEYS, most_keys - first)
        bring_kv(&kv, a, start, first, keys, copied)
        for i in range(count):
            if sees(&tiles[i].q, first, keys):
                forward_tile(&tiles[i], &kv, a, first, min(keys, tiles[i].q.keys - first))
        first += keys
    for i in range(count):
        forward_end(&tiles[i], kv.ld, out, row_max, inverse_row_sum, a)


# ---------------------------------------------------------------------- backward
# The units of backward: a key head of a segment, whose query rows are split where there are few of them. A split adds
# to dk and dv of its own, which are summed in order.
ctypedef struct Unit:
    const Segment* segment
    Py_ssize_t head
    Py_ssize_t split
    Py_ssize_t splits


cdef inline Py_ssize_t split_start(const Attention* a, const Segment* s, Py_ssize_t split,
                                   Py_ssize_t splits) noexcept nogil:
    """First query row of a split: the q tiles of a segment are assigned in order, in shares that differ by one."""
    cdef Py_ssize_t rows = s.q_len * group_of(a)
    return min(rows, split * ceil_div(rows, ATTENTION_ROWS) // splits * ATTENTION_ROWS)


cdef Py_ssize_t split_keys(const Attention* a, const Segment* s, Py_ssize_t split, Py_ssize_t splits) noexcept nogil:
    """End of the keys that the rows of a split see."""
    cdef Py_ssize_t first = split_start(a, s, split, splits), end = split_start(a, s, split + 1, splits)
    if first == end:
        return 0
    return (end - 1) // group_of(a) + s.k_len - s.q_len + 1 if a.causal else s.k_len


cdef Py_ssize_t split_first(const Attention* a, const Segment* s, Py_ssize_t split, Py_ssize_t splits) noexcept nogil:
    """The first key that the rows of a split see."""
    return first_seen(a, split_start(a, s, split, splits) // group_of(a) + s.k_len - s.q_len)


cdef void backward_begin(BackwardTile* t, Py_ssize_t ld, const float* dout, const float* out, const float* row_max,
                         const float* inverse_row_sum, const Attention* a) noexcept nogil:
    """Copy what a q tile needs, and delta = rowsum(dout * out)."""
    cdef Py_ssize_t i, row, start = t.q.first_row * a.heads.dim
    simd.attention.gather_transposed(t.q.query_t, ATTENTION_ROWS, a.q + start, &t.q.rows, a.scale)
    simd.attention.gather_transposed(t.dout_t, ATTENTION_ROWS, dout + start, &t.q.rows, 1)
    simd.attention.gather(t.dout, ld, dout + start, &t.q.rows)
    simd.attention.gather(t.query, ld, out + start, &t.q.rows)
    memset(t.delta, 0, ATTENTION_ROWS * sizeof(float))
    simd.attention.row_dots(t.delta, t.dout, t.query, ld, t.q.rows.rows, a.heads.dim)
    simd.attention.gather(t.query, ld, a.q + start, &t.q.rows)
    for i in range(t.q.padded_rows):
        row = row_index(&t.q, a, min(i, t.q.rows.rows - 1))
        t.q.row_max[i] = row_max[row]
        t.inverse_row_sum[i] = inverse_row_sum[row]


cdef void backward_scores(BackwardTile* t, KVTile* kv, KVGradients* d, const Attention* a, Py_ssize_t first,
                          Py_ssize_t keys) noexcept nogil:
    """p and ds of a q tile and the kv tile of the keys [first, first + keys)."""
    cdef attention_tile s = score_tile(kv, &t.q, first, keys, a.softcap)
    scores_of(kv.scores, kv.key, t.q.query_t, kv.ld, keys, t.q.padded_rows, a.heads.dim)
    scores_of(d.dp, kv.value, t.dout_t, kv.ld, keys, t.q.padded_rows, a.heads.dim)
    simd.attention.softmax_backward(&s, d.dp, t.q.row_max, t.inverse_row_sum, t.delta, a.scale)


cdef void backward_dkv(KVGradients* d, const AttentionGradients* wanted, BackwardTile* t, KVTile* kv, Py_ssize_t dim,
                       Py_ssize_t keys, bint accumulate) noexcept nogil:
    """dv (+)= p dout, dk (+)= ds q: the q tile's share of the gradients of the kv tile."""
    cdef Py_ssize_t columns = round_up(dim, simd.vector_floats)
    cdef const float* beta = skinny_ones if accumulate else NULL
    if wanted.dv != NULL:
        keys_from_rows(d.dv, kv.scores, t.dout, kv.ld, keys, columns, t.q.rows.rows, beta)
    if wanted.dk != NULL:
        keys_from_rows(d.dk, d.dp, t.query, kv.ld, keys, columns, t.q.rows.rows, beta)


cdef void backward_dq(BackwardTile* t, KVTile* kv, KVGradients* d, Py_ssize_t dim, Py_ssize_t keys,
                      bint accumulate) noexcept nogil:
    """dq (+)= ds^T k"""
    rows_from_keys(t.dq, d.dp, kv.key, kv.ld, kv.ld, t.q.rows.rows, round_up(dim, simd.vector_floats), keys,
                   skinny_ones if accumulate else NULL)


cdef void backward_block(BackwardTile* tiles, int count, KVTile* kv, KVGradients* d, const AttentionGradients* wanted,
                         const Attention* a, Py_ssize_t start) noexcept nogil:
    """A block of q tiles against the keys they see: their dq, and their share of dk and dv."""
    cdef Py_ssize_t first = tiles[0].q.first_key, keys, seen, most_keys = tiles[count - 1].q.keys
    cdef attention_rows view
    cdef bint accumulate
    cdef int i
    while first < most_keys:
        keys = min(ATTENTION_KEYS, most_keys - first)
        bring_kv(kv, a, start, first, keys, True)
        accumulate = False
        for i in range(count - 1, -1, -1):  # the last q tile that sees any of the kv tile's keys reaches to their end
            if sees(&tiles[i].q, first, keys):
                seen = min(keys, tiles[i].q.keys - first)
                backward_scores(&tiles[i], kv, d, a, first, seen)
                backward_dkv(d, wanted, &tiles[i], kv, a.heads.dim, seen, accumulate)
                accumulate = True
                if wanted.dq != NULL:
                    backward_dq(&tiles[i], kv, d, a.heads.dim, seen, first > tiles[i].q.first_key)
        view = key_rows(a, first, keys)
        if wanted.dk != NULL:
            simd.attention.scatter(wanted.dk + start, d.dk, kv.ld, NULL, &view, 1)
        if wanted.dv != NULL:
            simd.attention.scatter(wanted.dv + start, d.dv, kv.ld, NULL, &view, 1)
        first += keys
    for i in range(count):
        if wanted.dq != NULL:
            if tiles[i].q.keys <= 0:
                memset(tiles[i].dq, 0, ATTENTION_ROWS * kv.ld * sizeof(float))
            simd.attention.scatter(wanted.dq + tiles[i].q.first_row * a.heads.dim, tiles[i].dq, kv.ld, NULL,
                                   &tiles[i].q.rows, wanted.accumulate_q)


cdef void clear(float* x, const Attention* a, const Segment* s, Py_ssize_t head, Py_ssize_t first,
                Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(first, end):
        memset(x + ((s.k_start + j) * a.heads.kv + head) * a.heads.dim, 0, a.heads.dim * sizeof(float))


cdef void backward_unit(float* memory, int q_tiles, const AttentionGradients* d, Unit unit, const float* dout,
                        const float* out, const float* row_max, const float* inverse_row_sum,
                        const Attention* a) noexcept nogil:
    """One split of the query rows of one key head of one segment: its rows of dq, and its share of dk and dv."""
    cdef KVTile kv
    cdef KVGradients gradients
    cdef BackwardTile tiles[Q_TILES]
    cdef const Segment* s = unit.segment
    cdef Py_ssize_t row = split_start(a, s, unit.split, unit.splits)
    cdef Py_ssize_t end = split_start(a, s, unit.split + 1, unit.splits)
    cdef Py_ssize_t first = 0 if unit.split == 0 else split_first(a, s, unit.split, unit.splits)
    cdef Py_ssize_t keys = s.k_len if unit.split == 0 else split_keys(a, s, unit.split, unit.splits)
    cdef int count
    if d.dk != NULL and not d.accumulate_k:
        clear(d.dk, a, s, unit.head, first, keys)
    if d.dv != NULL and not d.accumulate_v:
        clear(d.dv, a, s, unit.head, first, keys)
    place_backward(&kv, &gradients, tiles, q_tiles, memory, a.heads.dim)
    while row < end:
        count = 0
        while count < q_tiles and row < end:
            cover(&tiles[count].q, a, s, unit.head, row)
            backward_begin(&tiles[count], kv.ld, dout, out, row_max, inverse_row_sum, a)
            row += ATTENTION_ROWS
            count += 1
        backward_block(tiles, count, &kv, &gradients, d, a, (s.k_start * a.heads.kv + unit.head) * a.heads.dim)


cdef void add_splits(float* x, const float* shares, const Attention* a, Py_ssize_t splits, int threads) noexcept nogil:
    """x += the shares of splits 1, 2, ... in that order; a share is (k_tokens, heads.kv, dim), valid where it saw."""
    cdef Py_ssize_t j, i, split, row, width = a.heads.kv * a.heads.dim
    cdef const Segment* s
    for i in range(a.n_segments):
        s = &a.segments[i]
        for j in prange(s.k_len, schedule="static", num_threads=threads):
            row = (s.k_start + j) * width
            for split in range(1, splits):
                if split_first(a, s, split, splits) <= j < split_keys(a, s, split, splits):
                    simd.elementwise.add(x + row, x + row, shares + (split - 1) * a.k_tokens * width + row, width)


cdef inline Unit unit_of(const Attention* a, Py_ssize_t number, Py_ssize_t splits) noexcept nogil:
    """Unit `number`; the last split sees the most keys: it goes first."""
    cdef Unit unit
    unit.split = splits - 1 - number // (a.n_segments * a.heads.kv)
    unit.splits = splits
    unit.segment = &a.segments[number // a.heads.kv % a.n_segments]
    unit.head = number % a.heads.kv
    return unit


cdef inline AttentionGradients share_of(const AttentionGradients* d, float* dk_shares, float* dv_shares,
                                        Py_ssize_t split, Py_ssize_t size) noexcept nogil:
    """Where a split writes: the first one to dk and dv, each of the others to a share of its own."""
    cdef AttentionGradients share = d[0]
    if split > 0:
        share.dk = dk_shares + (split - 1) * size if d.dk != NULL else NULL
        share.dv = dv_shares + (split - 1) * size if d.dv != NULL else NULL
        share.accumulate_k = share.accumulate_v = False
    return share


cdef int64_t pairs(const Attention* a) noexcept nogil:
    """Query heads times keys that are visible to them, counted exactly."""
    cdef int64_t found = 0, first, growing
    cdef Py_ssize_t i
    cdef const Segment* s
    for i in range(a.n_segments):
        s = &a.segments[i]
        first = s.k_len - s.q_len + 1  # keys that query 0 of a causal segment sees
        if not a.causal:
            found += s.q_len * s.k_len
            continue
        growing = max(0, min(s.q_len, a.window - first + 1)) if a.window else s.q_len  # queries below the window
        found += growing * (2 * first + growing - 1) // 2 + (s.q_len - growing) * a.window
    return found * a.heads.q


cdef int64_t operand_bytes(const Attention* a) noexcept nogil:
    """Of q and out, of k and v."""
    cdef int64_t tokens = 0
    cdef Py_ssize_t i
    for i in range(a.n_segments):
        tokens += a.segments[i].q_len
    return 8 * a.heads.dim * (tokens * a.heads.q + a.k_tokens * a.heads.kv)


cdef int forward(float* out, float* row_max, float* inverse_row_sum, const Attention* a) noexcept nogil:
    cdef Py_ssize_t work, unit, floats
    cdef Py_ssize_t units = number_blocks(a, 1, &work) * a.heads.kv
    cdef int threads = threads_for(work, GRAIN)
    cdef int q_tiles = <int> max(1, min(Q_TILES, units // FORWARD_UNITS))
    cdef KVTile kv
    cdef ForwardTile sizes[Q_TILES]
    cdef float* memory
    units = number_blocks(a, q_tiles, &work) * a.heads.kv  # counted before, numbered now
    floats = place_forward(&kv, sizes, q_tiles, NULL, a.heads.dim)
    memory = <float*> scratch(SCRATCH_ATTENTION, threads * floats * sizeof(float))
    if memory == NULL:
        return -1
    # the last rows of a causal segment see the most keys: they go first
    for unit in prange(units - 1, -1, -1, schedule="dynamic", num_threads=threads):
        forward_block(memory + threadid() * floats, q_tiles, unit // a.heads.kv, unit % a.heads.kv, out, row_max,
                      inverse_row_sum, a)
    return 0


cdef int backward(const AttentionGradients* d, const float* dout, const float* out, const float* row_max,
                  const float* inverse_row_sum, const Attention* a) noexcept nogil:
    cdef Py_ssize_t work, number, floats, size = a.k_tokens * a.heads.kv * a.heads.dim
    cdef Py_ssize_t tiles = number_blocks(a, 1, &work), heads = max(1, a.n_segments * a.heads.kv)
    cdef int threads = threads_for(5 * work // 2, GRAIN)
    cdef Py_ssize_t longest = tiles * ATTENTION_ROWS // max(1, a.n_segments)
    # few heads and segments: split the query rows too, each split with its own share of dk and dv
    cdef Py_ssize_t splits = max(1, min(ceil_div(BACKWARD_UNITS, heads), longest // SPLIT_ROWS))
    cdef int q_tiles = <int> max(1, min(Q_TILES, tiles))
    cdef KVTile kv
    cdef KVGradients gradients
    cdef BackwardTile sizes[Q_TILES]
    cdef AttentionGradients share
    cdef Unit unit
    cdef float* memory
    cdef float* dk_shares
    cdef float* dv_shares
    floats = place_backward(&kv, &gradients, sizes, q_tiles, NULL, a.heads.dim)
    memory = <float*> scratch(SCRATCH_ATTENTION, (threads * floats + 2 * (splits - 1) * size) * sizeof(float))
    if memory == NULL:
        return -1
    dk_shares = memory + threads * floats
    dv_shares = dk_shares + (splits - 1) * size
    for number in prange(a.n_segments * a.heads.kv * splits, schedule="dynamic", num_threads=threads):
        unit = unit_of(a, number, splits)
        share = share_of(d, dk_shares, dv_shares, unit.split, size)
        backward_unit(memory + threadid() * floats, q_tiles, &share, unit, dout, out, row_max, inverse_row_sum, a)
    if splits > 1 and d.dk != NULL:
        add_splits(d.dk, dk_shares, a, splits, threads)
    if splits > 1 and d.dv != NULL:
        add_splits(d.dv, dv_shares, a, splits, threads)
    return 0


# ---------------------------------------------------------------------- the pair
cdef inline kernel_shape attended(const Attention* a) noexcept nogil:
    return shape_of(a.k_tokens, a.heads.q, a.heads.dim)


# q, out, dq, dout (tokens, heads.q, dim); k, v, dk, dv (k_tokens, heads.kv, dim), contiguous; row_max, inverse_row_sum
# (tokens, heads.q). For each query head, j over the keys that query i sees:
#     out[i] = sum_j p[i, j] v[j]                    p[i, j] = e^(s[i, j] - lse[i]),  s[i, j] = scale q[i] . k[j]
#     lse[i] = row_max[i] + ln row_sum[i]            row_max[i] = max_j s[i, j]
# With softcap c: s[i, j] = c tanh(scale q[i] . k[j] / c), and ds has the factor 1 - (s / c)^2 beside those below.
#     dv[j] (+)= sum_i p[i, j] dout[i]               ds[i, j] = scale p[i, j] (dout[i] . v[j] - delta[i])
#     dq[i] (+)= sum_j ds[i, j] k[j]                 delta[i] = dout[i] . out[i]
#     dk[j] (+)= sum_i ds[i, j] q[i]
# -1 where scratch memory is out.
cdef int attention_forward(float* out, float* row_max, float* inverse_row_sum, const Attention* a) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef int status = forward(out, row_max, inverse_row_sum, a)
    if started:
        end_kernel(ATTENTION_FORWARD, started, attended(a), 4 * pairs(a) * a.heads.dim, operand_bytes(a))
    return status


cdef int attention_backward(const AttentionGradients* d, const float* dout, const float* out, const float* row_max,
                            const float* inverse_row_sum, const Attention* a) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef int status = backward(d, dout, out, row_max, inverse_row_sum, a)
    if started:
        end_kernel(ATTENTION_BACKWARD, started, attended(a), 10 * pairs(a) * a.heads.dim, 2 * operand_bytes(a))
    return status
