# A run of query tokens and the run of key tokens that they attend to; query i sees key j <= i + k_len - q_len, and with
# a window only the last `window` of those.
ctypedef struct Segment:
    Py_ssize_t q_start, q_len      # tokens (rows of q)
    Py_ssize_t k_start, k_len      # tokens (rows of k and v)
    Py_ssize_t first_block         # blocks of q tiles in the segments before this one (number_blocks fills it in)

ctypedef struct Heads:
    Py_ssize_t q, kv, dim          # query heads, key/value heads (q is a multiple of kv), head size

# q (tokens, heads.q, dim); k, v (k_tokens, heads.kv, dim); the segments cover every token and key.
ctypedef struct Attention:
    const float* q
    const float* k
    const float* v
    Segment* segments
    Py_ssize_t n_segments
    Py_ssize_t k_tokens
    Heads heads
    float scale
    float softcap                  # scores are bounded to softcap tanh(score / softcap); 0: they are not
    Py_ssize_t window              # of a causal problem; 0: none
    bint causal

# dq (tokens, heads.q, dim); dk, dv (k_tokens, heads.kv, dim): any may be NULL, each is overwritten or added to.
ctypedef struct AttentionGradients:
    float* dq
    float* dk
    float* dv
    bint accumulate_q
    bint accumulate_k
    bint accumulate_v

cdef int attention_forward(float* out, float* row_max, float* inverse_row_sum, const Attention* a) noexcept nogil
cdef int attention_backward(const AttentionGradients* d, const float* dout, const float* out, const float* row_max,
                            const float* inverse_row_sum, const Attention* a) noexcept nogil
