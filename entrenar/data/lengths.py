"""What becomes of a sample that is longer than a row: cut, left out, split into several, or an error."""

from __future__ import annotations

from entrenar.data.formats import Example
from entrenar.data.masking import Sample
from entrenar.errors import FormatError


def fitted(sample: Sample, length: int, too_long: str, example: Example) -> tuple[str, list[Sample]]:
    """The samples of at most `length` tokens that become of one, or why there are none.

    `truncate` keeps the beginning, `drop` nothing, `split` makes pieces, of which those that train nothing are left
    out; `error` is a FormatError that names the example's place. `auto` splits the text of a whole file and truncates
    everything else.
    """
    if len(sample) <= length:
        return "", [sample]
    if too_long == "error":
        raise FormatError(
            f"{example.where or 'An example'}: has {len(sample)} tokens, expected at most {length} (data.too_long is "
            "error); give a longer training.sequence_length, or set data.too_long to truncate, drop or split."
        )
    if too_long == "drop":
        return f"longer than a row of {length} tokens (data.too_long is drop)", []
    if too_long == "split" or (too_long == "auto" and example.whole_file):
        return "nothing that is trained is left of its pieces", _pieces(sample, length)
    cut = sample.part(0, length)
    if not cut.trained.any():
        return f"the prompt alone fills a row of {length} tokens, so that no answer would be trained", []
    return "", [cut]


def _pieces(sample: Sample, length: int) -> list[Sample]:
    """Pieces that overlap by one token, so that each trained token has one before it and is trained once."""
    pieces = []
    for start in range(0, len(sample) - 1, length - 1):
        piece = sample.part(start, min(start + length, len(sample)))
        if piece.trained.any():
            pieces.append(piece)
    return pieces
