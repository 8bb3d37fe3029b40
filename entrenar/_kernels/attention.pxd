# A run of query tokens and the run of key tokens that they attend to; query i sees key j <= i + k_len - q_len.
ctypedef struct Segment:
    Py_ssize_t q_start, q_len      # tokens (rows of q)
    Py_ssize_t k_start, k_len      # tokens (rows of k and v)
    Py_ssize_t first_piece         # pieces of query rows in the segments before this one (set_pieces fills it in)

ctypedef struct Heads:
    Py_ssize_t q, kv, dim          # query heads, key/value heads (q is a multiple of kv), head size

cdef int attention_forward(float* out, float* maxima, float* inverse_sums, const float* q, const float* k,
                           const float* v, Segment* segments, Py_ssize_t n_segments, Heads heads, float scale,
                           bint causal) noexcept nogil
cdef int attention_backward(float* dq, float* dk, float* dv, const float* grad, const float* q, const float* k,
                            const float* v, const float* out, const float* maxima, const float* inverse_sums,
                            Segment* segments, Py_ssize_t n_segments, Py_ssize_t k_tokens, Heads heads, float scale,
                            bint causal, bint accumulate_q, bint accumulate_k, bint accumulate_v) noexcept nogil
