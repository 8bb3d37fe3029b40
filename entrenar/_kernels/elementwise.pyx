"""Elementwise arithmetic with broadcasting. Every output float depends on one float of each operand: no reduction."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, max, min, piece_size, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    PIECE = 8192   # floats of a job: fixed, so that cuts never depend on the number of threads
    GRAIN = 65536  # floats worth a thread
    BUFFER = 1024  # floats of a result that is added to what is there

cdef int ELEMENTWISE = register("elementwise")
cdef int SCALE = register("scale")
cdef int ADD_TO = register("add_to")
cdef int FILL = register("fill")


cdef void plan_broadcast(Broadcast* plan, int ndim, const Py_ssize_t* dims, const Py_ssize_t* strides_a,
                         const Py_ssize_t* strides_b) noexcept nogil:
    """Merge the axes of y = a op b. Strides are in floats, 0 where an operand repeats; y is C-contiguous."""
    cdef Py_ssize_t merged[PLAN_AXES]
    cdef Py_ssize_t step_a[PLAN_AXES]
    cdef Py_ssize_t step_b[PLAN_AXES]
    cdef int axes = 0, i
    for i in range(ndim):
        if dims[i] == 1:
            continue
        if axes and step_a[axes - 1] == strides_a[i] * dims[i] and step_b[axes - 1] == strides_b[i] * dims[i]:
            merged[axes - 1] *= dims[i]
        else:
            merged[axes] = dims[i]
            axes += 1
        step_a[axes - 1] = strides_a[i]
        step_b[axes - 1] = strides_b[i]
    plan.inner = merged[axes - 1] if axes else 1
    plan.step_a = axes > 0 and step_a[axes - 1] != 0
    plan.step_b = axes > 0 and step_b[axes - 1] != 0
    plan.axes = axes - 1 if axes else 0
    plan.outer = 1
    for i in range(plan.axes):
        plan.dims[i] = merged[i]
        plan.strides_a[i] = step_a[i]
        plan.strides_b[i] = step_b[i]
        plan.outer *= merged[i]


cdef void run_vectors(Binary op, float* y, const float* a, const float* b, Py_ssize_t n) noexcept nogil:
    if op == ADD:
        simd.elementwise.add(y, a, b, n)
    elif op == SUB:
        simd.elementwise.sub(y, a, b, n)
    elif op == MUL:
        simd.elementwise.mul(y, a, b, n)
    elif op == DIV:
        simd.elementwise.div(y, a, b, n)
    else:
        simd.elementwise.equal(y, a, b, n)


cdef void run_scalar_right(Binary op, float* y, const float* a, float b, Py_ssize_t n) noexcept nogil:
    if op == ADD:
        simd.elementwise.add_scalar(y, a, b, n)
    elif op == SUB:
        simd.elementwise.add_scalar(y, a, -b, n)
    elif op == MUL:
        simd.elementwise.scale(y, a, b, n)
    elif op == DIV:
        simd.elementwise.div_scalar(y, a, b, n)
    else:
        simd.elementwise.equal_scalar(y, a, b, n)


cdef void run_scalar_left(Binary op, float* y, float a, const float* b, Py_ssize_t n) noexcept nogil:
    if op == ADD:
        simd.elementwise.add_scalar(y, b, a, n)
    elif op == SUB:
        simd.elementwise.scalar_sub(y, a, b, n)
    elif op == MUL:
        simd.elementwise.scale(y, b, a, n)
    elif op == DIV:
        simd.elementwise.scalar_div(y, a, b, n)
    else:
        simd.elementwise.equal_scalar(y, b, a, n)


cdef void run(Binary op, float* y, const float* a, bint step_a, const float* b, bint step_b,
              Py_ssize_t n) noexcept nogil:
    cdef float value
    if step_a and step_b:
        run_vectors(op, y, a, b, n)
    elif step_a:
        run_scalar_right(op, y, a, b[0], n)
    elif step_b:
        run_scalar_left(op, y, a[0], b, n)
    else:
        run_vectors(op, &value, a, b, 1)
        simd.elementwise.fill(y, value, n)


cdef void run_add(Binary op, float* y, const float* a, bint step_a, const float* b, bint step_b,
                  Py_ssize_t n) noexcept nogil:
    """y += a op b"""
    cdef float buffer[BUFFER]
    cdef Py_ssize_t start = 0, count
    while start < n:
        count = min(n - start, BUFFER)
        run(op, buffer, a + step_a * start, step_a, b + step_b * start, step_b, count)
        simd.elementwise.add(y + start, y + start, buffer, count)
        start += count


cdef void job(Binary op, float* y, const float* a, const float* b, const Broadcast* plan, Py_ssize_t first,
              Py_ssize_t units, Py_ssize_t pieces, bint accumulate) noexcept nogil:
    """Units [first, first + units); unit u is piece u % pieces of the run at outer index u / pieces."""
    cdef Py_ssize_t unit, row, rest, start, count, at_a, at_b
    cdef int axis
    for unit in range(first, first + units):
        row = unit // pieces
        start = (unit - row * pieces) * PIECE
        count = min(plan.inner - start, PIECE)
        at_a = plan.step_a * start
        at_b = plan.step_b * start
        rest = row
        for axis in range(plan.axes - 1, -1, -1):
            at_a += rest % plan.dims[axis] * plan.strides_a[axis]
            at_b += rest % plan.dims[axis] * plan.strides_b[axis]
            rest = rest // plan.dims[axis]
        if accumulate:
            run_add(op, y + row * plan.inner + start, a + at_a, plan.step_a, b + at_b, plan.step_b, count)
        else:
            run(op, y + row * plan.inner + start, a + at_a, plan.step_a, b + at_b, plan.step_b, count)


# y = a op b with NumPy broadcasting; y [outer, inner] is contiguous, `plan` says where a and b are. The backward of
# every such op is such ops again on the output's gradient (and a sum over the axes that were broadcast: see reduce).
cdef void binary(Binary op, float* y, const float* a, const float* b, const Broadcast* plan,
                 bint accumulate) noexcept nogil:
    cdef Py_ssize_t pieces = ceil_div(plan.inner, PIECE)
    cdef Py_ssize_t units = plan.outer * pieces, group, i
    if units == 0:
        return
    cdef int64_t started = begin_kernel()
    group = max(1, PIECE // plan.inner)
    if units <= group:  # a parallel region costs more than a scalar operation of the tape
        job(op, y, a, b, plan, 0, units, pieces, accumulate)
    else:
        for i in prange(ceil_div(units, group), schedule="static",
                        num_threads=threads_for(plan.outer * plan.inner, GRAIN)):
            job(op, y, a, b, plan, i * group, min(group, units - i * group), pieces, accumulate)
    end_kernel(ELEMENTWISE, started, shape_of(plan.outer, plan.inner), plan.outer * plan.inner,
               12 * plan.outer * plan.inner)


cdef void scale_piece(float* y, const float* x, float factor, Py_ssize_t n, bint accumulate) noexcept nogil:
    if accumulate:
        simd.elementwise.scale_add(y, x, factor, n)
    else:
        simd.elementwise.scale(y, x, factor, n)


# y [n] = factor * x [n]; the backward is the same on the gradient
cdef void scale(float* y, const float* x, float factor, Py_ssize_t n, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        scale_piece(y + i * PIECE, x + i * PIECE, factor, piece_size(n, PIECE, i), accumulate)
    end_kernel(SCALE, started, shape_of(n), n, 8 * n)


# y [n] += x [n]
cdef void add_to(float* y, const float* x, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.elementwise.add(y + i * PIECE, y + i * PIECE, x + i * PIECE, piece_size(n, PIECE, i))
    end_kernel(ADD_TO, started, shape_of(n), n, 12 * n)


cdef void fill(float* y, float value, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.elementwise.fill(y + i * PIECE, value, piece_size(n, PIECE, i))
    end_kernel(FILL, started, shape_of(n), 0, 4 * n)
