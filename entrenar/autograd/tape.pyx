"""The tape: operations record nodes, backward walks them newest first and adds gradients, checkpoint recomputes.

A tensor used twice receives the sum of its gradients, once per path. What a node saved is freed as the walk passes it.
Recording is switched per thread.
"""
import functools
from threading import get_ident

from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.string cimport memcpy

from entrenar._kernels.elementwise cimport add_to
from entrenar.autograd.tensor cimport (
    Node, Tensor, alias, as_tensor, check_float32, gradients_lock, leaf_node, new_gradient, new_like, same_shape,
    set_node_shape,
    set_unused_linear, unused_linear,
)

from entrenar.autograd import random
from entrenar.errors import GraphError, ShapeError

cdef extern from *:
    """
    static _Thread_local int recording_off = 0;
    static _Thread_local int tracing = 0;  // a checkpointed function runs: its linears are numbered
    static _Thread_local unsigned int last_linear = 0, first_linear = 0, skipped_linear = 0;
    """
    int recording_off
    bint tracing
    unsigned int last_linear, first_linear, skipped_linear

cdef unsigned long long last_sequence = 0
cdef unsigned long long last_walk = 0


cdef bint ops_watched = False
cdef tuple op_watchers = ()  # (thread, methods, watching_ops), in the order of entering; replaced as a whole
cdef tuple WATCHED = ("on_output", "on_checkpoint", "on_node", "on_node_end", "on_gradient", "on_backward_end",
                      "on_recomputed")


cdef int _tell(str method, tuple said) except -1:
    """Call a method of this thread's watchers, of those that have it."""
    thread = get_ident()
    for owner, methods, _ in op_watchers:
        if owner == thread:
            heard = (<dict> methods).get(method)
            if heard is not None:
                heard(*said)
    return 0


cdef bint _asks(str method) except -1:
    """Whether any watcher has this method."""
    for _, methods, _ in op_watchers:
        if method in methods:
            return True
    return False


cdef int tell_computed(Tensor out, str op, object weight) except -1:
    return _tell("on_output", (op, weight, out, 0 if out.node is None else out.node.sequence))


cdef int _tell_gradients(Node node, Tensor gradient) except -1:
    """The gradients that `node` has added to, but for one that it passes on as it is."""
    cdef Node parent
    cdef Py_ssize_t i
    for i in range(len(node.inputs)):
        parent = <Node> node.inputs[i]
        if takes_grad(parent) and parent.gradient is not None and parent.gradient.data != gradient.data:
            _tell("on_gradient", (type(node).__name__, node.sequence, i, parent.gradient))
    return 0


cdef bint is_recording() noexcept:
    return recording_off == 0


cdef bint wants_grad(Tensor t) noexcept:
    return recording_off == 0 and t is not None and t.needs_grad


cdef object save_for_backward(Tensor x):
    """What a node saves to have x in its backward: x, or the node that computed it where recomputing costs little."""
    if x.node is not None and x.node.recomputes:
        return x.node
    return x


cdef Tensor saved_tensor(object saved):
    """The tensor that was saved; one that is computed again is shared until its node is released."""
    cdef Node node
    if isinstance(saved, Tensor):
        return <Tensor> saved
    node = <Node> saved
    if node.output is None:
        node.output = node.recompute()
        if ops_watched:
            _tell("on_recomputed", (type(node).__name__, node.sequence, node.output))
    return node.output


cdef Tensor record(Tensor out, Node node, tuple inputs):
    """Make `node` the origin of `out`. The node holds no tensor but what the operation saved in it by name."""
    global last_sequence
    cdef Tensor tensor
    cdef Py_ssize_t i, count = len(inputs)
    cdef tuple nodes = PyTuple_New(count)
    for i in range(count):
        tensor = <Tensor> inputs[i]
        source = tensor.node if tensor is not None and tensor.needs_grad else None
        Py_INCREF(source)
        PyTuple_SET_ITEM(nodes, i, source)
    last_sequence += 1
    node.sequence = last_sequence
    node.inputs = nodes
    node.needs_grad = True
    set_node_shape(node, out)
    out.node = node
    out.needs_grad = True
    return out


cdef Tensor _copy(Tensor t):
    cdef Tensor copy = new_like(t)
    memcpy(copy.data, t.data, t.size * sizeof(float))
    return copy


cdef bint takes_grad(object node) noexcept:
    """Whether backward computes the gradient of this entry of a node's `inputs`."""
    return node is not None and (<Node> node).needs_grad


cdef Tensor grad_buffer(Node node, bint* accumulate):
    """The gradient of `node`'s output, not shared: overwrite it where *accumulate is 0, else add."""
    cdef Tensor slot = node.gradient
    accumulate[0] = slot is not None
    if slot is None:
        slot = new_gradient(node)
    elif not node.gradient_owned:
        slot = _copy(slot)
    node.gradient = slot
    node.gradient_owned = True
    return slot


cdef float* grad_pointer(Node node, bint* accumulate) except? NULL:
    """As grad_buffer, its memory, which the node holds; NULL where no gradient is wanted."""
    cdef Tensor buffer
    if not takes_grad(node):
        return NULL
    buffer = grad_buffer(node, accumulate)
    return buffer.data


cdef int add_grad(Node node, Tensor gradient) except -1:
    """Add `gradient` to that of `node`'s output. The first one of a computed tensor is shared, not copied."""
    cdef bint accumulate
    cdef Tensor slot
    if not takes_grad(node):
        return 0
    if node.gradient is None and not node.is_leaf:
        node.gradient = gradient
        node.gradient_owned = False
        return 0
    slot = grad_buffer(node, &accumulate)
    if accumulate:
        add_to(slot.data, gradient.data, slot.size)
    else:
        memcpy(slot.data, gradient.data, slot.size * sizeof(float))
    return 0


cdef int give_grad(Node node, Tensor gradient) except -1:
    """As add_grad, for a gradient that is not shared: the first one becomes the node's own."""
    if not takes_grad(node):
        return 0
    if node.gradient is None:
        node.gradient = gradient
        node.gradient_owned = True
        return 0
    return add_grad(node, gradient)


cdef list _reachable(Node root, unsigned long long since):
    """The nodes that `root`'s gradient flows to, newest first; all of them must be newer than `since`."""
    global last_walk
    cdef Node node, parent
    cdef list stack = [] if root.is_leaf else [root], found = []
    cdef bint ordered = True  # true for a chain
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
            parent = <Node> item
            if parent is not None and parent.walk != last_walk and not parent.is_leaf:
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
    for a scalar. One backward runs at a time, those of other threads wait: leaves may be shared. Raises GraphError
    where nothing was recorded or the graph was already freed, ShapeError for a missing
    or ill-shaped gradient.
    """
    if not isinstance(tensor, Tensor):
        raise GraphError(f"backward needs a Tensor, not {type(tensor).__name__}.")
    cdef Tensor root = <Tensor> tensor, seed
    if not root.needs_grad:
        raise GraphError("backward needs a tensor that was computed from one with requires_grad=True, outside "
                         "no_grad().")
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
    with gradients_lock():
        nodes = _reachable(root.node, 0)
        add_grad(root.node, seed)
        seed = None
        try:
            _walk(nodes)
        except BaseException as error:
            if ops_watched:
                _tell("on_backward_end", (error,))
            raise
        if ops_watched:
            _tell("on_backward_end", (None,))


cdef int _walk(list nodes) except -1:
    cdef Node node = None
    cdef Tensor gradient
    cdef Py_ssize_t i
    try:
        for i in range(len(nodes)):
            node = <Node> nodes[i]
            nodes[i] = None  # so that a node, and what it computed from, can be freed as soon as the walk has passed
            gradient = node.gradient
            node.gradient = None
            if gradient is not None:
                if ops_watched:
                    _tell("on_node", (type(node).__name__, node.sequence))
                node.backward(gradient)
                if ops_watched:
                    _tell("on_node_end", (type(node).__name__, node.sequence))
                    if _asks("on_gradient"):
                        _tell_gradients(node, gradient)
            node.release()
    except BaseException:  # a later backward must not add to incomplete gradients
        for item in nodes:
            if item is not None:
                (<Node> item).release()
        node.release()
        raise
    return 0


cdef Tensor _stand_in(Tensor original):
    """A leaf over the same memory, with the gradient received so far: sums keep their order and their bits."""
    cdef Tensor copy = alias(original)
    cdef Node node
    if original.needs_grad:
        copy.needs_grad = True
        node = leaf_node(copy)
        node.gradient, node.gradient_owned = original.node.gradient, original.node.gradient_owned
        original.node.gradient = None
    return copy


cdef int _take_back(Tensor original, Tensor copy) except -1:
    """Move the gradient of `original`'s stand-in back to it."""
    if not copy.needs_grad or copy.node.gradient is None:
        return 0
    if original.node.gradient is None:
        original.node.gradient, original.node.gradient_owned = copy.node.gradient, copy.node.gradient_owned
        return 0
    return add_grad(original.node, copy.node.gradient)


cdef class CheckpointNode(Node):
    """Saves a function and its inputs instead of what the function's own nodes would save."""
    cdef object recompute_fn
    cdef tuple arguments
    cdef object random_state
    cdef unsigned int skipped_linear  # the linear whose value only the output needs, from 1; 0 where there is none

    cdef int backward(self, Tensor grad) except -1:
        tensors = {id(item): item for item in self.arguments if isinstance(item, Tensor)}
        copies = {key: _stand_in(<Tensor> item) for key, item in tensors.items()}
        try:
            self.replay(grad, [copies.get(id(item), item) for item in self.arguments])
        finally:
            for key, item in tensors.items():
                _take_back(<Tensor> item, <Tensor> copies[key])
        return 0

    cdef int replay(self, Tensor grad, list arguments) except -1:
        cdef Tensor out
        cdef unsigned long long since = last_sequence
        cdef unsigned int unused = 0
        now = random.get_state()
        random.set_state(self.random_state)
        try:
            with enable_grad():
                out = traced(self.recompute_fn, arguments, self.skipped_linear, &unused)
        finally:
            random.set_state(now)
        if not same_shape(out, grad):
            raise GraphError(f"checkpoint: the function gave shape {out.shape} when run again, and {grad.shape} "
                             "before.")
        if self.skipped_linear != 0 and unused != self.skipped_linear:
            raise GraphError("checkpoint: the function made other operations when run again; it must depend on its "
                             "arguments and the random state alone.")
        if out.node is None:
            return 0
        nodes = _reachable(out.node, since)
        add_grad(out.node, grad)
        out = None
        return _walk(nodes)


cdef bint needs_output(Tensor out) noexcept:
    """Whether a linear must compute its `out`: not where checkpoint recomputes and nothing reads this value."""
    global last_linear
    if not tracing:
        return True
    last_linear += 1
    out.last_linear = last_linear
    set_unused_linear(last_linear)
    return last_linear - first_linear != skipped_linear


cdef Tensor traced(object function, object args, unsigned int skipped, unsigned int* unused):
    """function(*args) without the value of its linear number `skipped` (from 1; 0 for none).

    `unused` is the number of the newest linear whose value nothing read but additions and reshapes into the result.
    """
    global tracing, first_linear, skipped_linear
    cdef bint tracing_before = tracing
    cdef unsigned int first_before = first_linear, skipped_before = skipped_linear
    tracing, first_linear, skipped_linear = True, last_linear, skipped
    set_unused_linear(0)
    try:
        result = function(*args)
        if not isinstance(result, Tensor):
            raise GraphError(f"checkpoint: the function must return one Tensor, not {type(result).__name__}.")
        if (<Tensor> result).last_linear != 0 and (<Tensor> result).last_linear == unused_linear():
            unused[0] = (<Tensor> result).last_linear - first_linear
    finally:
        tracing, first_linear, skipped_linear = tracing_before, first_before, skipped_before
        set_unused_linear(0)  # what an outer checkpoint found may have been read inside
    return <Tensor> result


def checkpoint(function, *args):
    """`function(*args)`, a Tensor, saving only `args`: backward runs `function` again to get what it needs.

    Trades one more forward pass of the function for its activations (Chen et al., "Training Deep Nets with Sublinear
    Memory Cost", 2016). The random state is replayed, so dropout draws the same masks; gradients have the same bits
    as without. Parameters that `function` closes over receive their gradients as usual. Backward does not need the
    function's output: where that is a linear's output, or a sum with it (a residual layer), the second run leaves that
    product out. Raises GraphError where the function returns no Tensor or is another one when run again.
    """
    cdef unsigned int unused = 0
    cdef Tensor out
    cdef CheckpointNode node
    if not callable(function):
        raise GraphError(f"checkpoint: needs a function, not {type(function).__name__}.")
    if recording_off:
        result = function(*args)
        set_unused_linear(0)  # as where it is recorded
        return result
    random_state = random.get_state()
    with no_grad():
        out = alias(traced(function, args, 0, &unused))
    node = CheckpointNode.__new__(CheckpointNode)
    node.skipped_linear = unused
    node.recompute_fn, node.arguments, node.random_state = function, args, random_state
    record(out, node, tuple([item if isinstance(item, Tensor) else None for item in args]))
    if ops_watched:
        _tell("on_checkpoint", (node.sequence,))
    return out


class watching_ops:
    """Context manager: `watcher` is shown what this thread's operations compute; outside of it each costs one branch.

    on_output(op, weight, output, node) in forward, and on_checkpoint(node) where `checkpoint` recorded a function; in
    backward on_node(node kind, node) before a node's, on_node_end(node kind, node) after it, then on_gradient(node
    kind, node, input, gradient) with the gradient as it stands, and on_backward_end(error or None) at last;
    on_recomputed(node kind, node, output) where a value was left out and is computed again. `node` is a number that
    they share, 0 where nothing was recorded. Methods that a watcher does not have are left out; where there are several
    watchers, the outermost hears first. What raises in there is raised by the operation.
    """

    def __init__(self, watcher):
        self.watcher = watcher

    def __enter__(self):
        global ops_watched, op_watchers
        methods = {name: getattr(self.watcher, name) for name in WATCHED if hasattr(self.watcher, name)}
        op_watchers = (*op_watchers, (get_ident(), methods, self))
        ops_watched = True
        return self

    def __exit__(self, *exception):
        global ops_watched, op_watchers
        op_watchers = tuple([entry for entry in op_watchers if entry[2] is not self])
        ops_watched = len(op_watchers) > 0


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
