from entrenar._kernels.simd.optimizer cimport adam_options, schedulefree_options, sgd_options

# A parameter, its gradient and its state, contiguous and of the same length; NULL where an update has no use for it.
cdef struct optimizer_run:
    float* p
    float* state  # Adam: first moment; SGD: momentum; schedule-free: z
    float* state2  # Adam and schedule-free: second moment
    const float* g
    Py_ssize_t n
    Py_ssize_t first_job

cdef Py_ssize_t number_jobs(optimizer_run* runs, Py_ssize_t count) noexcept nogil
cdef void sgd_step(const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs,
                   const sgd_options* options) noexcept nogil
cdef void adam_step(const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs,
                    const adam_options* options) noexcept nogil
cdef void schedulefree_step(const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs,
                            const schedulefree_options* options) noexcept nogil
cdef int sum_squares(double* totals, const optimizer_run* runs, Py_ssize_t count, Py_ssize_t jobs) noexcept nogil
cdef void clamp(float* x, float limit, Py_ssize_t n) noexcept nogil
