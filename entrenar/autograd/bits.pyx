"""The bits of float32 tensors: checksums that say where two differ, and words by position.

Nothing here reads a tensor in the sense of `checkpoint`: what is recomputed stays the same.
"""
from libc.stdint cimport uint32_t

from entrenar._kernels.digest cimport digest as digest_kernel
from entrenar._kernels.profile cimport metering
from entrenar._kernels.simd.digest cimport digest_sums
from entrenar.autograd.tensor cimport Tensor, check_dtype

from entrenar.errors import ShapeError

cdef object MODULUS = 1 << 64


def digest(tensor):
    """Three sums modulo 2**64 over the words w[i] of a float32 tensor: w[i], (i + 1) w[i], and one of mixed squares.

    Tensors of one size that differ in one or two elements never have the same sums, others once in 2**64 cases or so.
    The same for any number of threads. ConfigError for 16 bits.
    """
    cdef Tensor t = check_dtype(tensor, "digest", "the tensor")
    cdef digest_sums sums
    cdef bint metered
    with nogil:
        metered = metering(False)  # a watcher hashes between operations: it is not the next one's work
        sums = digest_kernel(<const uint32_t*> t.data, t.size)
        metering(metered)
    return sums.plain, sums.weighted, sums.mixed


def single_difference(first, second):
    """(element, difference of its words) that two digests would have in common if one element differed, else None.

    Several elements may look like one that lies between them: `is_single` tells, once a word there is known.
    The checksums of Huang and Abraham, "Algorithm-Based Fault Tolerance for Matrix Operations", 1984, modulo 2**64.
    """
    change = _signed(first[0] - second[0])
    weighted = _signed(first[1] - second[1])
    if change == 0 or abs(change) >= 1 << 32 or weighted % change:
        return None
    element = weighted // change - 1
    return (element, change) if 0 <= element < 1 << 31 else None


def is_single(first, second, element, change, word):
    """Whether what `single_difference` found is all that differs, `word` being what the second has at the element."""
    change = _square(word + change, element) - _square(word, element)
    return 0 <= element and (first[2] - second[2] - change) % MODULUS == 0


cdef object _square(object word, object at):
    """What a word adds to the third sum (simd/digest.c)."""
    x = (word ^ (at * 0x9E3779B1)) & 0xFFFFFFFF
    x = ((x ^ x >> 15) * 0x2C1B3C6D) & 0xFFFFFFFF
    return (x ^ x >> 12) ** 2


def word(tensor, element):
    """The bits of an element, counted in memory order, as an integer; ShapeError where there is none."""
    return _address(tensor, element)[0]


def flip(tensor, element, bit):
    """Change one bit, 0 the lowest, of an element: what tests plant."""
    if not 0 <= bit < 32:
        raise ShapeError(f"flip: bit is {bit}, expected 0 to 31.")
    _address(tensor, element)[0] ^= <uint32_t> 1 << <int> bit


cdef uint32_t* _address(object tensor, Py_ssize_t element) except NULL:
    cdef Tensor t = check_dtype(tensor, "word", "the tensor")
    if not 0 <= element < t.size:
        raise ShapeError(f"word: element is {element}, expected one of {t.size}.")
    return <uint32_t*> t.data + element


cdef object _signed(object difference):
    difference %= MODULUS
    return difference - MODULUS if difference >= MODULUS // 2 else difference
