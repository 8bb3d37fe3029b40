"""entrenar: fine-tune LLaMA-family models on ordinary CPUs."""

import importlib.machinery
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entrenar._kernels.cpu import get_num_threads, set_num_threads
    from entrenar.autograd.precision import get_matmul_precision, matmul_precision, set_matmul_precision

__all__ = [
    "get_matmul_precision",
    "get_num_threads",
    "matmul_precision",
    "set_matmul_precision",
    "set_num_threads",
]


def _is_compiled(package: Path) -> bool:
    return any((package / "_kernels" / f"cpu{suffix}").is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES)


def _version(package: Path) -> str | None:
    """The version of the distribution that a package folder is of: its metadata beside it, or a checkout's."""
    for metadata in package.parent.glob("entrenar-*.dist-info"):
        return metadata.name.removesuffix(".dist-info").split("-", 1)[1]
    project = package.parent / "pyproject.toml"
    lines = project.read_text(encoding="utf-8").splitlines() if project.is_file() else []
    return next((line.split('"')[1] for line in lines if line.startswith("version = ")), None)


def _compiled_package(here: Path) -> Path:
    """This package's folder, or the installed one's where these are sources that nobody compiled (a checkout that is
    the working directory hides what is installed). ImportError, saying what to do, where there is none of the version.
    """
    if _is_compiled(here):
        return here
    places = dict.fromkeys(Path(entry or ".").resolve() / "entrenar" for entry in sys.path)
    installed = [package for package in places if package != here and _is_compiled(package)]
    for package in installed:
        if _version(package) == _version(here):
            return package
    other = f"the installed package is version {_version(installed[0])}" if installed else "none is installed"
    raise ImportError(
        f"{here} holds the sources of entrenar {_version(here)}, not compiled, and {other}; install them with "
        "`pip install .`, compile them in place with `make build`, or start Python in another folder."
    )


__path__ = [str(_compiled_package(Path(__file__).resolve().parent))]


def __getattr__(name: str) -> Any:
    """The public names, loaded when asked for: a program can catch what goes wrong while the engine starts."""
    if name == "__version__":
        return _version(Path(__path__[0]))
    if name not in __all__:
        raise AttributeError(f"module 'entrenar' has no attribute {name!r}")
    from entrenar._kernels import cpu
    from entrenar.autograd import precision

    return getattr(cpu if name.endswith("threads") else precision, name)
