# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/activation.h" nogil:
    ctypedef void (*activation_forward)(float* y, const float* x, Py_ssize_t n) noexcept nogil
    ctypedef void (*activation_backward)(float* dx, const float* dy, const float* saved, Py_ssize_t n,
                                         int accumulate) noexcept nogil
    ctypedef void (*parameter_forward)(float* y, const float* x, float parameter, Py_ssize_t n) noexcept nogil
    ctypedef void (*parameter_backward)(float* dx, const float* dy, const float* saved, float parameter, Py_ssize_t n,
                                        int accumulate) noexcept nogil
    ctypedef void (*gated_forward)(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil
    ctypedef void (*gated_backward)(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
                                    Py_ssize_t n, int accumulate_gate, int accumulate_up) noexcept nogil
    ctypedef struct activation_ops:
        activation_forward relu
        activation_forward gelu
        activation_forward gelu_tanh
        activation_forward silu
        activation_forward sigmoid
        activation_forward tanh
        activation_forward exp
        activation_forward log
        activation_forward sqrt
        activation_backward relu_backward
        activation_backward gelu_backward
        activation_backward gelu_tanh_backward
        activation_backward silu_backward
        activation_backward log_backward
        activation_backward sigmoid_backward
        activation_backward tanh_backward
        activation_backward exp_backward
        activation_backward sqrt_backward
        parameter_forward pow
        parameter_forward softcap
        parameter_backward pow_backward
        parameter_backward softcap_backward
        gated_forward swiglu
        gated_forward geglu
        gated_backward swiglu_backward
        gated_backward geglu_backward
