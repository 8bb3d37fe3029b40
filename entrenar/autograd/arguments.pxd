cdef double checked_number(object value, str op, str name) except? -1
cdef double checked_cap(object value, str op, str name) except? -1
cdef long long checked_integer(object value, str op, str name) except? -1
cdef bint checked_flag(object value, str op, str name) except -1
cdef object checked_array(object values, str op, str name)
cdef list unresized(object array)
cdef object array_of_numbers(object data, object dtype)
