"""From files and documentation to batches: examples, tokens with a training mark, packed rows, a resumable loader."""

from entrenar.data.formats import Example, read_examples
from entrenar.data.loader import DataLoader, evaluation_batches
from entrenar.data.masking import Sample, encode_example, text_windows
from entrenar.data.packing import IGNORE, Batch, collate, pack
from entrenar.data.pydocs import documentation_examples, split_held_out

__all__ = [
    "IGNORE",
    "Batch",
    "DataLoader",
    "Example",
    "Sample",
    "collate",
    "documentation_examples",
    "encode_example",
    "evaluation_batches",
    "pack",
    "read_examples",
    "split_held_out",
    "text_windows",
]
