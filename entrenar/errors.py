"""The exceptions that entrenar raises: one class for each thing a caller may want to handle differently.

Every message is one sentence that names the file, key, line or tensor, what was found, what was expected and what
to do. The lowest floor of the package: it imports nothing.
"""

LONGEST_MESSAGE = 1000  # characters; names and values from files may have any length


def printable(text: str) -> str:
    """The text on one line, with what a terminal would not print (newline, ESC, lone surrogate) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def safe(text: str) -> str:
    """The text without the control characters by which a terminal is steered; lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(text: str) -> str:
    """The text without its middle where it quotes a value from a file that is too long for a sentence."""
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:600]} ... {text[-300:]}"


class EntrenarError(Exception):
    """Base class of every error that entrenar raises on purpose; its message is one printable line, not too long."""

    def __str__(self) -> str:
        return shortened(printable(super().__str__()))


class ShapeError(EntrenarError, ValueError):
    """Array shapes do not fit together, or an index lies outside its axis."""


class FormatError(EntrenarError, ValueError):
    """A file from outside is missing, truncated, or not what its format says."""


class ConfigError(EntrenarError, ValueError):
    """A configuration key, value or option is unknown or out of range."""


class QuantizationError(EntrenarError, ValueError):
    """A tensor cannot be quantized, dequantized or used in its quantized form."""


class NumericsError(EntrenarError, ArithmeticError):
    """A loss, gradient or weight became NaN or infinite."""


class CorruptionError(EntrenarError, ArithmeticError):
    """The same step gave other bits when it was computed again: a CPU or its memory computed wrongly.

    `step` of the run; the first result that differs: `layer`, `operation`, `direction` (forward, backward,
    recomputed, update), `shape`; `element` and the bits that each computation had there as `words`, where one element
    alone differs; `wrong`, the number (from 1) of the computation that two others contradict, None where all differ.
    """

    step = 0
    layer = operation = direction = ""
    shape: tuple[int, ...] = ()
    element: tuple[int, ...] | None = None
    words: tuple[int, ...] = ()
    wrong: int | None = None


class GraphError(EntrenarError, RuntimeError):
    """The autograd tape was used in a way that has no gradient (a freed graph, a tensor that records nothing)."""


class MemoryBudgetError(EntrenarError, MemoryError):
    """The work would need more memory than the machine has available; raised before anything is allocated."""


class HubError(EntrenarError, OSError):
    """A model or data file could not be fetched or failed its checksum."""
