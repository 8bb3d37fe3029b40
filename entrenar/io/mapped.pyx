"""Mapped files under watch: where one is cut off while it is in use, the process ends with a sentence (sigbus.c)."""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

cdef extern from "sigbus.h":
    int sigbus_watch(const void* start, size_t size, const char* name)
    void sigbus_forget(int number)


def watch(mapping, bytes name):
    """Take the memory of an mmap under watch as that of the file `name`; returns a number for `forget`.

    The first call installs a handler of SIGBUS, which passes signals of other addresses on.
    """
    cdef Py_buffer buffer
    PyObject_GetBuffer(mapping, &buffer, PyBUF_SIMPLE)
    try:
        return sigbus_watch(buffer.buf, buffer.len, name)
    finally:
        PyBuffer_Release(&buffer)


def forget(int number):
    """End the watch of this number, before its memory is given back."""
    sigbus_forget(number)
