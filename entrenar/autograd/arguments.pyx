"""Checks of arguments that are no tensors: the value in C, or an EntrenarError that names the argument."""
import weakref
from operator import index as as_index

import numpy as np

from entrenar.errors import ConfigError, MemoryBudgetError, ShapeError


cdef double checked_number(object value, str op, str name) except? -1:
    """A finite or infinite number of Python or NumPy as a double."""
    if type(value) is float:
        return value
    try:
        if isinstance(value, (bool, str, bytes)) or (hasattr(value, "ndim") and value.ndim):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise ConfigError(f"{op}: {name} must be a number, not {value!r:.80}.") from None


cdef double checked_cap(object value, str op, str name) except? -1:
    """A bound of c tanh(x / c): positive, neither infinite nor subnormal as a float32."""
    cdef double cap = checked_number(value, op, name)
    if not 1.2e-38 < cap < 3.4e38:
        raise ConfigError(f"{op}: {name} must be a positive finite number, found {value!r:.80}.")
    return cap


cdef long long checked_integer(object value, str op, str name) except? -1:
    """An integer of Python or NumPy that fits 64 bits."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return as_index(value)
    except (TypeError, OverflowError):
        raise ConfigError(f"{op}: {name} must be an integer of at most 64 bits, not {value!r:.80}.") from None


cdef bint checked_flag(object value, str op, str name) except -1:
    """True or False of Python or NumPy, or the integers that stand for them."""
    if not isinstance(value, (bool, np.bool_, int)):
        raise ConfigError(f"{op}: {name} must be True or False, not {value!r:.80}.")
    return bool(value)


cdef object checked_array(object values, str op, str name):
    """The values as an array of their own; ShapeError where they have no rectangular shape."""
    try:
        return np.array(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ShapeError(f"{op}: {name} must be a rectangular array: {error}.") from None


cdef object array_of_numbers(object data, object dtype):
    """Numbers, nested lists or an array as a C-contiguous array of this type, which may be `data` itself."""
    try:
        array = np.asarray(data)
        if array.dtype == object:
            raise ValueError("its elements are no numbers")
        if array.dtype.kind == "c":
            raise TypeError("complex numbers have no float32 form")
        with np.errstate(over="ignore"):
            array = array.astype(dtype, order="C", copy=False)
    except (ValueError, TypeError, OverflowError) as error:
        raise ShapeError(f"A tensor needs a rectangular array of numbers: {error}.") from None
    except MemoryError as error:
        raise MemoryBudgetError(f"A tensor could not be allocated: {error}.") from None
    return np.ascontiguousarray(array).reshape(array.shape)


cdef list unresized(object array):
    """Weak references to an array and to those that it is a view of: NumPy resizes no array that has one."""
    found = []
    while isinstance(array, np.ndarray):
        found.append(weakref.ref(array))
        array = array.base
    return found
