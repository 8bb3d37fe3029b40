"""A model from a hub, by its name, through `huggingface_hub`: cache, mirror and token by its own variables."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrenar.config import nearest, shown
from entrenar.errors import ConfigError, HubError
from entrenar.io.hub import fetch_default_model

SCHEME, GGUF = "hf:", ".gguf"
# Of a repository: weights that are read here, and what stands beside them. Nothing else is fetched.
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.jinja", "*.txt")
UNWANTED = ("*/*", "*.h5", "*.bin", "*.msgpack")  # other forms of the same weights stand in folders
NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+")
TIMEOUT = 30  # seconds
DISK = (errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.ENOSPC, errno.EROFS, errno.EDQUOT)  # not of the network
PART = re.compile(r"-00001-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Reference:
    """`hf:org/name[:file]`."""

    repository: str
    file: str | None = None

    @staticmethod
    def parse(text: str) -> Reference:
        """ConfigError for what is no such name."""
        repository, _, file = text.removeprefix(SCHEME).partition(":")
        if not NAME.fullmatch(repository) or ".." in repository or file.startswith(("/", "..")) or "/../" in file:
            raise ConfigError(f"{shown(text)} is no name of a model, expected hf:org/name or hf:org/name:file.")
        return Reference(repository, file or None)


def pull(text: str | None, *, revision: str | None = None, to: str | Path | None = None) -> Path:
    """The file or folder of a model that `text` names, fetched where the cache lacks it; None is the default model.

    `to` puts the files into that folder. Raises ConfigError for a wrong name or file and where huggingface_hub is
    missing, HubError, with what to do, where nothing can be fetched.
    """
    if text is None:
        return fetch_default_model()
    reference = Reference.parse(text)
    hub = _library()
    options: dict[str, Any] = {"revision": revision, "local_dir": to}
    try:
        files = None if hub.constants.HF_HUB_OFFLINE else _files(hub, reference, revision)
        if reference.file is not None:
            return _file(hub, reference, files, options)
        return _repository(hub, reference, files, options)
    except ConfigError:
        raise
    except Exception as error:  # whatever the library and what it uses raise, of a kind for each thing
        raise HubError(_failed(hub, reference, error)) from error


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ConfigError(
            f"pull needs huggingface_hub, which cannot be imported ({error}); install it with pip install "
            "'entrenar[hub]'."
        ) from error
    if "HF_HUB_VERBOSITY" not in os.environ:  # what it would say of an error stands in ours
        huggingface_hub.logging.set_verbosity_error()
    return huggingface_hub


def _files(hub: Any, reference: Reference, revision: str | None) -> list[str]:
    """The files of a repository, asked for once: what fetches them tries for half a minute."""
    found = hub.HfApi().model_info(reference.repository, revision=revision, timeout=TIMEOUT)
    return sorted(file.rfilename for file in found.siblings or [])


def _file(hub: Any, reference: Reference, files: Sequence[str] | None, options: dict[str, Any]) -> Path:
    """One file, with the other parts where it is the first of several, or the GGUF file of a type ("Q4_K_M")."""
    file = reference.file
    assert file is not None
    if "." not in file:
        file = _of_type(reference, file, files or ())
    if files is not None and file not in files:
        raise ConfigError(f"{reference.repository}: has no file {shown(file)}; {nearest(file, files)}")
    count = PART.search(file)
    for number in range(2, int(count[1]) + 1 if count else 0):
        part = file.replace("-00001-of-", f"-{number:05d}-of-")
        hub.hf_hub_download(reference.repository, part, **options)
    return Path(hub.hf_hub_download(reference.repository, file, **options))


def _of_type(reference: Reference, type_: str, files: Sequence[str]) -> str:
    """The GGUF file whose name has this type in it, the first of its parts."""
    every = sorted(file for file in files if file.endswith(GGUF))
    fitting = [file for file in every if re.search(rf"(^|[-._/]){re.escape(type_)}([-._/]|$)", file, re.IGNORECASE)]
    if not fitting:
        raise ConfigError(f"{reference.repository}: has no GGUF file of the type {shown(type_)}; {_listed(every)}.")
    return fitting[0]


def _repository(hub: Any, reference: Reference, files: Sequence[str] | None, options: dict[str, Any]) -> Path:
    """The folder of a model in safetensors; ConfigError, with what there is, where a file must be chosen."""
    if files is not None and not any(file.endswith(".safetensors") and "/" not in file for file in files):
        every = [file for file in files if file.endswith(GGUF)]
        what = f"say which file: hf:{reference.repository}:FILE; {_listed(every)}" if every else _listed(files)
        raise ConfigError(f"{reference.repository}: has no safetensors weights; {what}.")
    return Path(
        hub.snapshot_download(
            reference.repository, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED), **options
        )
    )


def _listed(files: Sequence[str]) -> str:
    return f"there are {', '.join(map(shown, files[:8]))}{', ...' * (len(files) > 8)}" if files else "it is empty"


def _failed(hub: Any, reference: Reference, error: Exception) -> str:
    """What happened, and what to do."""
    errors, name = hub.errors, f"hf:{reference.repository}{f':{reference.file}' if reference.file else ''}"
    said = str(error).strip().splitlines()[:1]
    reason = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return f"{name}: is gated; accept its licence on the hub's page and give a token (hf auth login, or HF_TOKEN)."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: has no such revision; leave --revision out, or give a branch, tag or commit of it."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: there is no such repository, or it is private; check the name, or give a token (hf auth login, "
            "or HF_TOKEN)."
        )
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{name}: cannot be written ({error.strerror}); make room, or set HF_HOME or --to to another folder."
    file = f" {reference.file}" if reference.file else ""
    offline = " HF_HUB_OFFLINE is set." if hub.constants.HF_HUB_OFFLINE else ""
    return (
        f"{name}: cannot be fetched ({reason}).{offline} Without a network: run `hf download {reference.repository}"
        f"{file} --local-dir FOLDER` on a machine that has one, copy the folder here and give it as --model; behind a "
        "mirror: set HF_ENDPOINT to it."
    )
