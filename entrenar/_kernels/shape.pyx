"""Moving floats: one strided copy serves transpose, slice and concatenate, and their backward passes."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, max, min, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    AXES = 8
    PIECE = 8192   # floats of a job
    TILE = 64      # rows and columns of a transposed tile
    GRAIN = 65536  # floats worth a thread

cdef int COPY = register("copy")

cdef struct Walk:  # the axes of a copy, outermost of y first; none of size 1, those with proportional strides merged
    int axes
    Py_ssize_t dims[AXES]
    Py_ssize_t y[AXES]
    Py_ssize_t x[AXES]


cdef inline Py_ssize_t magnitude(Py_ssize_t n) noexcept nogil:
    return -n if n < 0 else n


cdef void plan_walk(Walk* walk, int ndim, const Py_ssize_t* dims, const Py_ssize_t* strides_y,
                    const Py_ssize_t* strides_x) noexcept nogil:
    cdef int order[AXES]
    cdef int count = 0, i, j, axis
    for i in range(ndim):  # insertion sort: y is walked in memory order
        if dims[i] == 1:
            continue
        j = count
        while j > 0 and magnitude(strides_y[order[j - 1]]) < magnitude(strides_y[i]):
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
        count += 1
    walk.axes = 0
    for i in range(count):
        axis = order[i]
        j = walk.axes - 1
        if j >= 0 and walk.y[j] == strides_y[axis] * dims[axis] and walk.x[j] == strides_x[axis] * dims[axis]:
            walk.dims[j] *= dims[axis]
        else:
            j += 1
            walk.axes += 1
            walk.dims[j] = dims[axis]
        walk.y[j] = strides_y[axis]
        walk.x[j] = strides_x[axis]
    if walk.axes == 0:
        walk.axes = 1
        walk.dims[0] = walk.y[0] = walk.x[0] = 1


cdef void copy_run(float* y, Py_ssize_t step_y, const float* x, Py_ssize_t step_x, Py_ssize_t n,
                   bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    if step_y == 1 and step_x == 1:
        if accumulate:
            simd.elementwise.add(y, y, x, n)
        else:
            memcpy(y, x, n * sizeof(float))
    elif accumulate:
        for i in range(n):
            y[i * step_y] += x[i * step_x]
    else:
        for i in range(n):
            y[i * step_y] = x[i * step_x]


cdef inline void offsets(const Walk* walk, int axes, Py_ssize_t index, Py_ssize_t* at_y,
                         Py_ssize_t* at_x) noexcept nogil:
    """Where the first `axes` axes are at flat index `index`."""
    cdef int axis
    at_y[0] = 0
    at_x[0] = 0
    for axis in range(axes - 1, -1, -1):
        at_y[0] += index % walk.dims[axis] * walk.y[axis]
        at_x[0] += index % walk.dims[axis] * walk.x[axis]
        index = index // walk.dims[axis]


cdef void runs_job(float* y, const float* x, const Walk* walk, Py_ssize_t first, Py_ssize_t units, Py_ssize_t pieces,
                   bint accumulate) noexcept nogil:
    cdef int last = walk.axes - 1
    cdef Py_ssize_t unit, start, at_y, at_x
    for unit in range(first, first + units):
        offsets(walk, last, unit // pieces, &at_y, &at_x)
        start = unit % pieces * PIECE
        copy_run(y + at_y + start * walk.y[last], walk.y[last], x + at_x + start * walk.x[last], walk.x[last],
                 min(walk.dims[last] - start, PIECE), accumulate)


cdef void copy_runs(float* y, const float* x, const Walk* walk, Py_ssize_t size, bint accumulate) noexcept nogil:
    cdef Py_ssize_t inner = walk.dims[walk.axes - 1], pieces = ceil_div(inner, PIECE)
    cdef Py_ssize_t units = size // inner * pieces, group = max(1, PIECE // inner), i
    for i in prange(ceil_div(units, group), schedule="static", num_threads=threads_for(size, GRAIN)):
        runs_job(y, x, walk, i * group, min(group, units - i * group), pieces, accumulate)


cdef void tile_job(float* y, const float* x, const Walk* walk, Py_ssize_t job, bint accumulate) noexcept nogil:
    cdef int c = walk.axes - 1, r = c - 1
    cdef Py_ssize_t down = ceil_div(walk.dims[r], TILE), across = ceil_div(walk.dims[c], TILE)
    cdef Py_ssize_t row = job // across % down * TILE, column = job % across * TILE, at_y, at_x
    offsets(walk, r, job // across // down, &at_y, &at_x)
    simd.shape.transpose(y + at_y + row * walk.y[r] + column, walk.y[r], x + at_x + row + column * walk.x[c], walk.x[c],
                         min(walk.dims[r] - row, TILE), min(walk.dims[c] - column, TILE),
                         accumulate)


cdef void copy_tiles(float* y, const float* x, Walk* walk, Py_ssize_t size, int axis, bint accumulate) noexcept nogil:
    """Transposes along the last axis (y contiguous) and `axis` (x contiguous), which moves next to it."""
    cdef int last = walk.axes - 1
    cdef Py_ssize_t dim = walk.dims[axis], step_y = walk.y[axis], step_x = walk.x[axis], jobs, i
    for axis in range(axis, last - 1):
        walk.dims[axis] = walk.dims[axis + 1]
        walk.y[axis] = walk.y[axis + 1]
        walk.x[axis] = walk.x[axis + 1]
    walk.dims[last - 1] = dim
    walk.y[last - 1] = step_y
    walk.x[last - 1] = step_x
    jobs = ceil_div(dim, TILE) * ceil_div(walk.dims[last], TILE) * (size // (dim * walk.dims[last]))
    for i in prange(jobs, schedule="static", num_threads=threads_for(size, GRAIN)):
        tile_job(y, x, walk, i, accumulate)


cdef int transposed_axis(const Walk* walk) noexcept nogil:
    """The axis along which x is contiguous where y is so along the last one only; -1 where there is none."""
    cdef int axis
    if walk.y[walk.axes - 1] == 1 and walk.x[walk.axes - 1] != 1:
        for axis in range(walk.axes - 1):
            if walk.x[axis] == 1:
                return axis
    return -1


# y[i, j, ...] = x[i, j, ...] (or +=) over `dims`, each side with its own strides in floats (any sign; y's distinct).
# The backward is the same copy with the sides exchanged.
cdef void strided_copy(float* y, const Py_ssize_t* strides_y, const float* x, const Py_ssize_t* strides_x, int ndim,
                       const Py_ssize_t* dims, bint accumulate) noexcept nogil:
    cdef Walk walk
    cdef Py_ssize_t size = 1
    cdef int axis
    for axis in range(ndim):
        size *= dims[axis]
    if size == 0:
        return
    cdef int64_t started = begin_kernel()
    plan_walk(&walk, ndim, dims, strides_y, strides_x)
    axis = transposed_axis(&walk)
    if axis >= 0:
        copy_tiles(y, x, &walk, size, axis, accumulate)
    else:
        copy_runs(y, x, &walk, size, accumulate)
    end_kernel(COPY, started, shape_of(size), size * accumulate, (8 + 4 * accumulate) * size)
