# A copy of integers of any shape (the caller may write into the array before backward) as contiguous int64; each must
# lie in [0, bound) or be `ignored` (bound: no value is ignored).
cdef object checked_indices(object values, str op, str name, Py_ssize_t bound, object ignored)
