# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/optimizer.h" nogil:
    ctypedef struct sgd_options:
        float scale
        float lr
        float momentum
        float dampening
        float weight_decay
        int nesterov
        int first
    ctypedef struct adam_options:
        float scale
        float beta1
        float beta2
        float one_minus_beta1
        float one_minus_beta2
        float step_size
        float denominator_scale
        float eps
        float decay
        float l2
    ctypedef struct schedulefree_options:
        float scale
        float beta2
        float one_minus_beta2
        float denominator_scale
        float eps
        float weight_decay
        float lr
        float average
        float y_step
    ctypedef struct optimizer_ops:
        void (*sgd)(float* p, float* buffer, const float* g, Py_ssize_t n, const sgd_options* o) noexcept nogil
        void (*adam)(float* p, float* m, float* v, const float* g, Py_ssize_t n, const adam_options* o) noexcept nogil
        void (*schedulefree)(float* y, float* z, float* v, const float* g, Py_ssize_t n,
                             const schedulefree_options* o) noexcept nogil
        double (*sum_squares)(const float* x, Py_ssize_t n) noexcept nogil
        void (*clamp)(float* x, float limit, Py_ssize_t n) noexcept nogil
