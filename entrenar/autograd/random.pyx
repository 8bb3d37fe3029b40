"""The random state of dropout: a seed, a step, and a count of the random operations of the step.

Every draw is Philox4x32-10 (Salmon et al., SC 2011) at (seed, step, operation, element), so a mask can be drawn again
instead of stored, and a resumed run continues with the masks it would have had. The state belongs to the process.
"""
from libc.stdint cimport uint32_t, uint64_t

from entrenar._kernels.dropout cimport philox as philox_kernel

from entrenar.errors import ConfigError

cdef uint64_t seed = 0
cdef uint64_t step = 0
cdef uint64_t operation = 0


cdef uint64_t random_key() noexcept:
    """The key of every draw: the seed."""
    return seed


cdef uint64_t next_stream() noexcept:
    """The stream of the next random operation: step in the upper 32 bits, its number in the lower 32."""
    global operation
    operation += 1
    return (step << 32) | ((operation - 1) & 0xffffffff)


cdef uint64_t _checked(object value, str name, int bits) except? 0:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or value.bit_length() > bits:
        raise ConfigError(f"The random {name} must be an integer from 0 to 2**{bits} - 1, not {value!r}.")
    return value


def manual_seed(value):
    """Start the random state from `value` (0 to 2**64 - 1) at step 0. The seed of a fresh process is 0."""
    global seed, step, operation
    seed = _checked(value, "seed", 64)
    step = 0
    operation = 0


def set_step(value):
    """Begin training step `value` (0 to 2**32 - 1): its operations draw the same masks whatever ran before."""
    global step, operation
    step = _checked(value, "step", 32)
    operation = 0


def next_step():
    """Begin the next training step."""
    set_step(step + 1)


def get_state():
    """The whole random state as plain integers, ready for JSON."""
    return {"seed": seed, "step": step, "operation": operation}


def set_state(state):
    """Return to what `get_state()` gave. ConfigError where a key is missing or out of range."""
    global seed, step, operation
    if not isinstance(state, dict) or set(state) != {"seed", "step", "operation"}:
        raise ConfigError(f"A random state has the keys seed, step and operation; found {state!r}.")
    new_seed = _checked(state["seed"], "seed", 64)
    new_step = _checked(state["step"], "step", 32)
    operation = _checked(state["operation"], "operation", 64)
    seed = new_seed
    step = new_step


def philox(counter, key):
    """The four 32-bit words of Philox4x32-10 for a counter of four words and a key of two."""
    cdef uint32_t[4] words
    cdef uint32_t[4] c
    cdef uint32_t[2] k
    for name, given, count in (("counter", counter, 4), ("key", key, 2)):
        if not isinstance(given, (tuple, list)) or len(given) != count:
            raise ConfigError(f"philox: the {name} must be {count} words of 32 bits, not {given!r:.80}.")
    c[0], c[1], c[2], c[3] = [_checked(word, "counter", 32) for word in counter]
    k[0], k[1] = [_checked(word, "key", 32) for word in key]
    philox_kernel(words, c, k)
    return words[0], words[1], words[2], words[3]
