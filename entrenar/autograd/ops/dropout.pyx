"""dropout, whose mask is drawn again in backward instead of stored."""
from libc.stdint cimport uint64_t

from entrenar._kernels.dropout cimport dropout_forward
from entrenar.autograd.random cimport next_stream, random_key
from entrenar.autograd.tape cimport computed, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.arguments cimport checked_flag, checked_number
from entrenar.autograd.tensor cimport Node, Tensor, as_tensor, check_float32, new_like

from entrenar.errors import ConfigError


cdef class DropoutNode(Node):
    cdef float p
    cdef uint64_t key, stream

    cdef int backward(self, Tensor grad) except -1:
        cdef bint accumulate
        if not takes_grad(self.inputs[0]):
            return 0
        cdef Tensor dx = grad_buffer(self.inputs[0], &accumulate)
        with nogil:
            dropout_forward(dx.data, grad.data, grad.size, self.p, self.key, self.stream, accumulate)
        return 0


def dropout(x, p=0.5, training=True):
    """x with each element zeroed with probability `p` and the others divided by 1 - p; x itself where not `training`.

    The mask is Philox4x32-10 at (seed, step, operation, element): see `entrenar.autograd.random`. Raises ConfigError
    for a p outside [0, 1]. Srivastava et al., "Dropout", JMLR 2014.
    """
    cdef Tensor a = check_float32(as_tensor(x), "dropout", "x"), out
    cdef DropoutNode node
    cdef uint64_t key, stream
    cdef double probability = checked_number(p, "dropout", "p")
    cdef float rate = <float> probability
    if not 0 <= probability <= 1:
        raise ConfigError(f"dropout: p must lie between 0 and 1, not {p!r}.")
    if not checked_flag(training, "dropout", "training") or probability == 0:
        return a
    key = random_key()
    stream = next_stream()
    out = new_like(a)
    with nogil:
        dropout_forward(out.data, a.data, a.size, rate, key, stream, False)
    if wants_grad(a):
        node = DropoutNode.__new__(DropoutNode)
        node.p = rate
        node.key = key
        node.stream = stream
        record(out, node, (a,))
    return computed(out, "dropout", None)
