# A product of low rank beside a linear layer, y += scale x A^T B^T with A (r, k) and B (n, r), for m rows of x.
cdef struct skinny_factors:
    const float* a
    const float* b
    float scale
    Py_ssize_t m, n, k, r

# All return 0, or -1 where scratch memory is out; they use the scratch slots of packed A and packed B.
cdef int skinny_forward(float* y, float* h, const float* x, const skinny_factors* f) noexcept nogil
cdef int skinny_backward(float* g, float* db, const float* dy, const float* h, const skinny_factors* f,
                         bint accumulate) noexcept nogil
cdef int skinny_backward_a(float* da, const float* g, const float* x, const skinny_factors* f,
                           bint accumulate) noexcept nogil
cdef int skinny_backward_input(float* dx, const float* g, const skinny_factors* f, bint accumulate) noexcept nogil
