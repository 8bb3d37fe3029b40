"""From files and documentation to batches: examples, tokens with a training mark, packed rows, a resumable loader."""

from entrenar.data.encoding import DataReport, SideReport, encode_document, encode_examples
from entrenar.data.formats import Example, ExampleFile, read_examples
from entrenar.data.loader import DataLoader, evaluation_batches
from entrenar.data.masking import Sample, encode_example
from entrenar.data.mixing import Mix, MixedLoader
from entrenar.data.packing import IGNORE, Batch, collate, pack
from entrenar.data.pydocs import documentation_examples
from entrenar.data.samples import Samples
from entrenar.data.sources import ExampleFiles, Source, eval_sources, names_of, sources_of
from entrenar.data.split import Subset, digest, digests, split_files, split_held_out, split_indices
from entrenar.data.windows import text_windows

__all__ = [
    "IGNORE",
    "Batch",
    "DataLoader",
    "DataReport",
    "Example",
    "ExampleFile",
    "ExampleFiles",
    "Mix",
    "MixedLoader",
    "Sample",
    "Samples",
    "SideReport",
    "Source",
    "Subset",
    "collate",
    "digest",
    "digests",
    "documentation_examples",
    "encode_document",
    "encode_example",
    "encode_examples",
    "eval_sources",
    "evaluation_batches",
    "names_of",
    "pack",
    "read_examples",
    "sources_of",
    "split_files",
    "split_held_out",
    "split_indices",
    "text_windows",
]
