"""The verb `pull`: a model from a hub into the cache, or the default model."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from entrenar.config import ArgumentParser, print_out, text_argument
from entrenar.io.pull import pull

DESCRIPTION = """Fetch a model and print where it is, which --model of the other verbs takes.

    entrenar pull hf:HuggingFaceTB/SmolLM2-360M-Instruct
    entrenar pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
    entrenar pull --to models/smol hf:HuggingFaceTB/SmolLM2-360M-Instruct

NAME is hf:org/name for a directory of safetensors, hf:org/name:file for one file, hf:org/name:TYPE for the GGUF file of
a type; without it the default model is fetched (SmolLM2-135M-Instruct). Needs huggingface_hub: pip install
'entrenar[hub]'; its own variables say the mirror (HF_ENDPOINT), the cache (HF_HOME) and the token (HF_TOKEN).
"""


def main(arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None) -> Path:
    """Fetch and print the path; HubError, with what to do, where that fails, SystemExit for a wrong flag."""
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", metavar="NAME", nargs="?", type=text_argument, help="hf:org/name[:file]")
    parser.add_argument(
        "--to", metavar="DIR", type=text_argument, help="put the files into this folder (default: the hub's cache)"
    )
    parser.add_argument(
        "--revision", metavar="NAME", type=text_argument, help="branch, tag or commit (default: the main branch)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")
    parsed = parser.parse_args(arguments)
    if parsed.name is None and (parsed.to or parsed.revision):
        parser.error("--to and --revision are of a model on a hub; give its name too (hf:org/name).")
    path = pull(parsed.name, revision=parsed.revision, to=parsed.to)
    print_out(json.dumps({"model": parsed.name, "path": str(path)}) if parsed.json else path)
    return path
