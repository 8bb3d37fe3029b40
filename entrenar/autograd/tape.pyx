"""The tape: operations record nodes, backward walks them newest first and adds gradients, checkpoint recomputes.

A tensor used twice receives the sum of its gradients, once per path. What a node saved is freed as the walk passes it.
Recording is switched per thread.
"""
import functools

from libc.string cimport memcpy

from entrenar._kernels.elementwise cimport add_to
from entrenar.autograd.tensor cimport (
    Node, Tensor, alias, as_tensor, check_float32, new_like, same_shape, set_unread_product, unread_product,
)

from entrenar.autograd import random
from entrenar.errors import GraphError, ShapeError

cdef extern from *:
    """
    static _Thread_local int recording_off = 0;
    static _Thread_local int tracing = 0;  // a checkpointed function runs: its linears are numbered
    static _Thread_local unsigned int last_product = 0, first_product = 0, unneeded_product = 0;
    """
    int recording_off
    bint tracing
    unsigned int last_product, first_product, unneeded_product

cdef unsigned long long last_sequence = 0
cdef unsigned long long last_walk = 0


cdef bint is_recording() noexcept:
    return recording_off == 0


cdef bint wants_grad(Tensor t) noexcept:
    return recording_off == 0 and t is not None and t.needs_grad


cdef tuple _without_memory(tuple inputs, tuple saved):
    """`inputs`, where a computed tensor that is not saved is replaced by its shape and origin: its memory can go."""
    cdef Tensor tensor, shell
    cdef list replaced = []
    cdef bint changed = False
    for item in inputs:
        tensor = item
        if tensor is not None and tensor.node is not None and not _holds(saved, tensor):
            shell = alias(tensor)
            shell.storage = None
            shell.data = NULL
            shell.node = tensor.node
            shell.needs_grad = True
            item = shell
            changed = True
        replaced.append(item)
    return tuple(replaced) if changed else inputs


cdef bint _holds(tuple saved, Tensor tensor):
    for item in saved:
        if item is tensor:
            return True
    return False


cdef object save_for_backward(Tensor x):
    """What a node saves to have x in its backward: x, or the node that computed it where that is cheap to do again."""
    if x.node is not None and x.node.recomputes:
        return x.node
    return x


cdef Tensor saved_tensor(object saved):
    """The tensor that `save_for_backward` stood for; one that is computed again is shared until its node is released."""
    cdef Node node
    if isinstance(saved, Tensor):
        return <Tensor> saved
    node = <Node> saved
    if node.output is None:
        node.output = node.recompute()
    return node.output


cdef Tensor record(Tensor out, Node node, tuple inputs, tuple saved):
    """Make `node` the origin of `out`. A saved `out` is replaced by an alias: the graph holds no cycle."""
    global last_sequence
    last_sequence += 1
    node.sequence = last_sequence
    node.inputs = _without_memory(inputs, saved)
    for item in saved:
        if item is out:
            saved = tuple([alias(out) if item is out else item for item in saved])
            break
    node.saved = saved
    out.node = node
    out.needs_grad = True
    return out


cdef Tensor _copy(Tensor t):
    cdef Tensor copy = new_like(t)
    memcpy(copy.data, t.data, t.size * sizeof(float))
    return copy


cdef Tensor grad_buffer(Tensor input, bint* accumulate):
    """The buffer for `input`'s gradient, which nobody else holds: overwrite it where *accumulate is 0, else add."""
    cdef Node node = input.node
    cdef Tensor slot = input.gradient if node is None else node.gradient
    accumulate[0] = slot is not None
    if slot is None:
        slot = new_like(input)
    elif not (input.gradient_owned if node is None else node.gradient_owned):
        slot = _copy(slot)
    if node is None:
        input.gradient = slot
        input.gradient_owned = True
    else:
        node.gradient = slot
        node.gradient_owned = True
    return slot


cdef float* grad_pointer(Tensor input, bint* accumulate) except? NULL:
    """As grad_buffer, its memory; NULL where `input` is None or takes no gradient."""
    if input is None or not input.needs_grad:
        return NULL
    cdef Tensor buffer = grad_buffer(input, accumulate)
    return buffer.data


cdef int add_grad(Tensor input, Tensor gradient) except -1:
    """Add `gradient` to that of `input`. The first one of a computed tensor is shared, not copied."""
    cdef Node node = input.node
    cdef bint accumulate
    cdef Tensor slot
    if not input.needs_grad:
        return 0
    if node is not None and node.gradient is None:
        node.gradient = gradient
        node.gradient_owned = False
        return 0
    slot = grad_buffer(input, &accumulate)
    if accumulate:
        add_to(slot.data, gradient.data, slot.size)
    else:
        memcpy(slot.data, gradient.data, slot.size * sizeof(float))
    return 0


cdef int give_grad(Tensor input, Tensor gradient) except -1:
    """As add_grad, for a gradient that nobody else holds: the first one becomes `input`'s own."""
    cdef Node node = input.node
    if node is not None and node.gradient is None:
        node.gradient = gradient
        node.gradient_owned = True
        return 0
    if node is None and input.gradient is None and input.needs_grad:
        input.gradient = gradient
        input.gradient_owned = True
        return 0
    return add_grad(input, gradient)


cdef list _reachable(Node root, unsigned long long since):
    """The nodes that `root`'s gradient flows to, newest first; all of them must be newer than `since`."""
    global last_walk
    cdef Node node, parent
    cdef Tensor tensor
    cdef list stack = [root], found = []
    cdef bint ordered = True  # as a chain's nodes are found
    cdef unsigned long long last = root.sequence + 1
    last_walk += 1
    root.walk = last_walk
    while stack:
        node = <Node> stack.pop()
        if node.released:
            raise GraphError("backward reached a part of the graph that an earlier backward freed; "
                             "run the forward pass again before a second backward.")
        if node.sequence <= since:
            raise GraphError("checkpoint: the function uses a tensor that was computed outside of it; "
                             "pass it as an argument, or detach() it.")
        ordered = ordered and node.sequence < last
        last = node.sequence
        found.append(node)
        for item in node.inputs:
            if item is None:
                continue
            tensor = <Tensor> item
            parent = tensor.node
            if parent is not None and parent.walk != last_walk:
                parent.walk = last_walk
                stack.append(parent)
    return found if ordered else _newest_first(found)


cdef list _newest_first(list nodes):
    cdef Node node
    cdef list keyed = []
    for item in nodes:
        node = <Node> item
        keyed.append((node.sequence, node))
    keyed.sort(reverse=True)
    return [pair[1] for pair in keyed]


def backward(tensor, gradient=None):
    """Add d`tensor`/d(leaf) to the `grad` of every leaf that requires one.

    `gradient`, of `tensor`'s shape, is the gradient of the final result with respect to `tensor`; it may be left out
    for a scalar. Raises GraphError where nothing was recorded or the graph was already freed, ShapeError for a missing
    or ill-shaped gradient.
    """
    if not isinstance(tensor, Tensor):
        raise GraphError(f"backward needs a Tensor, not {type(tensor).__name__}.")
    cdef Tensor root = <Tensor> tensor, seed
    cdef Node node
    if not root.needs_grad:
        raise GraphError("backward needs a tensor that was computed from one with requires_grad=True, outside no_grad().")
    if gradient is None:
        if root.size != 1:
            raise ShapeError(f"backward of a tensor of shape {root.shape} needs the gradient argument; "
                             "only a tensor of one element has a gradient of 1 by default.")
        seed = new_like(root)
        seed.data[0] = 1.0
    else:
        seed = check_float32(as_tensor(gradient), "backward", "gradient")
        if not same_shape(root, seed):
            raise ShapeError(f"backward: the gradient has shape {seed.shape}, expected {root.shape}.")
    if root.node is None:
        add_grad(root, seed)
        return
    nodes = _reachable(root.node, 0)
    add_grad(root, seed)
    seed = None
    _walk(nodes)


cdef int _walk(list nodes) except -1:
    cdef Node node
    cdef Tensor gradient
    cdef Py_ssize_t i
    try:
        for i in range(len(nodes)):
            node = <Node> nodes[i]
            nodes[i] = None  # so that a node, and what it computed from, can be freed as soon as the walk has passed
            gradient = node.gradient
            node.gradient = None
            if gradient is not None:
                node.backward(gradient)
            node.release()
    except BaseException:  # half a sum of gradients must never meet a later backward
        for item in nodes:
            if item is not None:
                (<Node> item).release()
        node.release()
        raise
    return 0


cdef Tensor _stand_in(Tensor original):
    """A leaf over the same memory that takes the gradient received so far along: sums keep their order, and bits."""
    cdef Tensor copy = alias(original)
    cdef Node node = original.node
    copy.needs_grad = original.needs_grad
    if not copy.needs_grad:
        return copy
    if node is None:
        copy.gradient, copy.gradient_owned = original.gradient, original.gradient_owned
        original.gradient = None
    else:
        copy.gradient, copy.gradient_owned = node.gradient, node.gradient_owned
        node.gradient = None
    return copy


cdef int _take_back(Tensor original, Tensor copy) except -1:
    """Return the gradient of `original`'s stand-in, grown meanwhile."""
    cdef Node node = original.node
    if not copy.needs_grad or copy.gradient is None:
        return 0
    if node is None and original.gradient is None:
        original.gradient, original.gradient_owned = copy.gradient, copy.gradient_owned
    elif node is not None and node.gradient is None:
        node.gradient, node.gradient_owned = copy.gradient, copy.gradient_owned
    else:
        add_grad(original, copy.gradient)
    return 0


cdef class CheckpointNode(Node):
    """Saves a function and its inputs instead of what the function's own nodes would save."""
    cdef unsigned int unneeded_product  # the linear whose value only the output needs, from 1; 0 where there is none

    cdef int backward(self, Tensor grad) except -1:
        function, args, random_state = self.saved
        tensors = {id(item): item for item in args if isinstance(item, Tensor)}
        copies = {key: _stand_in(<Tensor> item) for key, item in tensors.items()}
        try:
            self.replay(grad, function, [copies.get(id(item), item) for item in args], random_state)
        finally:
            for key, item in tensors.items():
                _take_back(<Tensor> item, <Tensor> copies[key])
        return 0

    cdef int replay(self, Tensor grad, object function, list args, object random_state) except -1:
        cdef Tensor out
        cdef unsigned long long since = last_sequence
        cdef unsigned int unread = 0
        now = random.get_state()
        random.set_state(random_state)
        try:
            with enable_grad():
                out = traced(function, args, self.unneeded_product, &unread)
        finally:
            random.set_state(now)
        if not same_shape(out, grad):
            raise GraphError(f"checkpoint: the function gave shape {out.shape} when run again, and {grad.shape} before.")
        if self.unneeded_product != 0 and unread != self.unneeded_product:
            raise GraphError("checkpoint: the function made other operations when run again; it must depend on its "
                             "arguments and the random state alone.")
        if out.node is None:
            return add_grad(out, grad)
        nodes = _reachable(out.node, since)
        add_grad(out, grad)
        out = None
        return _walk(nodes)


cdef bint leaves_out_product(Tensor out) noexcept:
    """Whether a linear need not compute its `out`: checkpoint runs a function again, and nothing reads this value."""
    global last_product
    if not tracing:
        return False
    last_product += 1
    out.product = last_product
    set_unread_product(last_product)
    return last_product - first_product == unneeded_product


cdef Tensor traced(object function, object args, unsigned int unneeded, unsigned int* unread):
    """function(*args) without the value of its linear number `unneeded` (from 1; 0 for none).

    `unread` is the number of the newest linear whose value nothing read but additions and reshapes into the result.
    """
    global tracing, first_product, unneeded_product
    cdef bint tracing_before = tracing
    cdef unsigned int first_before = first_product, unneeded_before = unneeded_product
    tracing, first_product, unneeded_product = True, last_product, unneeded
    set_unread_product(0)
    try:
        result = function(*args)
        if not isinstance(result, Tensor):
            raise GraphError(f"checkpoint: the function must return one Tensor, not {type(result).__name__}.")
        if (<Tensor> result).product != 0 and (<Tensor> result).product == unread_product():
            unread[0] = (<Tensor> result).product - first_product
    finally:
        tracing, first_product, unneeded_product = tracing_before, first_before, unneeded_before
        set_unread_product(0)  # what an outer checkpoint found may have been read inside
    return <Tensor> result


def checkpoint(function, *args):
    """`function(*args)`, a Tensor, saving only `args`: backward runs `function` again to get what it needs.

    Trades one more forward pass of the function for its activations (Chen et al., "Training Deep Nets with Sublinear
    Memory Cost", 2016). The random state is replayed, so dropout draws the same masks; gradients have the same bits
    as without. Parameters that `function` closes over receive their gradients as usual. Backward does not need the
    function's output: where that is a linear's output, or a sum with it (a residual layer), the second run leaves that
    product out. Raises GraphError where the function returns no Tensor or is another one when run again.
    """
    cdef unsigned int unread = 0
    cdef Tensor out
    cdef CheckpointNode node
    if recording_off:
        result = function(*args)
        set_unread_product(0)  # as where it is recorded
        return result
    random_state = random.get_state()
    with no_grad():
        out = alias(traced(function, args, 0, &unread))
    node = CheckpointNode.__new__(CheckpointNode)
    node.unneeded_product = unread
    return record(out, node, tuple([item if isinstance(item, Tensor) else None for item in args]),
                  (function, args, random_state))


class no_grad:
    """Context manager and decorator: operations of this thread record nothing inside."""

    def __enter__(self):
        global recording_off
        recording_off += 1
        return self

    def __exit__(self, *exception):
        global recording_off
        recording_off -= 1

    def __call__(self, function):
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with no_grad():
                return function(*args, **kwargs)
        return wrapped


class enable_grad:
    """Context manager: operations of this thread record again inside a no_grad block."""

    def __enter__(self):
        global recording_off
        self.before = recording_off
        recording_off = 0
        return self

    def __exit__(self, *exception):
        global recording_off
        recording_off = self.before


def grad_enabled():
    """Whether operations of this thread are recorded."""
    return recording_off == 0
