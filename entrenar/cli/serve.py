"""The verb `serve`: a model and its adapters answer over HTTP as the OpenAI API does."""

from __future__ import annotations

import ipaddress
import os
import socket
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar.cli.flags import Parser, add_adapters
from entrenar.config import add_arguments, check_dataclass, from_arguments, option
from entrenar.errors import ConfigError
from entrenar.observe.extras import needed
from entrenar.train import report
from entrenar.train.options import SourceOptions

if TYPE_CHECKING:
    from entrenar.models.checkpoint import Checkpoint
    from entrenar.serve.engine import Engine
    from entrenar.train.loading import Source

DESCRIPTION = """Answer over HTTP as the OpenAI API does.

    entrenar serve --model base.gguf --adapter outputs/qlora/adapter
    entrenar serve --model DIRECTORY --adapter first second --port 8000 --slots 4

Paths: /v1/chat/completions, /v1/completions, /v1/models, /metrics, /health. Each adapter is a model by the name of its
folder (an adapter named "adapter" by that of the folder above), and the base one by its own. Requests that come
together run through the model together. Beyond 127.0.0.1 a key is asked for; it stands in ENTRENAR_API_KEY.
"""
KEY_VARIABLE = "ENTRENAR_API_KEY"
MOST_CONTEXT = 4096  # tokens by default: what is asked for is allocated as it is used


@dataclass
class Serving:
    """Where and how much at once."""

    host: str = option("127.0.0.1", help="address to listen at; another than a loopback one asks for a key")
    port: int = option(8080, help="port; 0 takes a free one", minimum=0, maximum=65535)
    slots: int = option(8, help="requests that are answered at once", minimum=1, maximum=256)
    queue: int = option(64, help="requests that wait for a slot; more are told to come again", minimum=1)
    context: int | None = option(
        None, help="tokens of a prompt and its answer; unset is the model's, at most 4096", unit="tokens", minimum=2
    )
    timeout: float = option(
        600.0, help="seconds after which an answer ends as it is, and a request that still waits is refused", above=0
    )

    def __post_init__(self) -> None:
        check_dataclass(self, "serve")


def main(arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None) -> None:
    """Serve until a signal; EntrenarError for a wrong input, SystemExit for a wrong flag."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add_arguments(parser, SourceOptions)
    add_adapters(parser, "each served as a model")
    add_arguments(parser, Serving)
    parsed = parser.parse_args(arguments)
    from entrenar.train.loading import Source

    source, serving = from_arguments(Source, parsed), from_arguments(Serving, parsed)
    uvicorn = needed("uvicorn", "entrenar serve", "serve")
    needed("starlette", "entrenar serve", "serve")
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None and not _is_loopback(serving.host):
        raise ConfigError(
            f"--host {serving.host} is reached by other machines; set {KEY_VARIABLE} to a key that clients give, or "
            "listen at 127.0.0.1."
        )
    checkpoint = source.open()
    names = _names(checkpoint, source, parsed.adapter)
    listening = _socket(serving.host, serving.port)
    console = report.Output()
    try:
        engine = _engine(checkpoint, source, names, serving)
        report.remarks(console, checkpoint.remarks)
        host, port = listening.getsockname()[:2]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        console.print(f"Serving {', '.join(names)} at {place}; Ctrl-C ends.", markup=False, highlight=False)
        from entrenar.serve.app import application

        config = uvicorn.Config(application(engine, key), log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # the usual end; the engine is closed by then
        console.print("Stopped.")
    finally:
        listening.close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _socket(host: str, port: int) -> socket.socket:
    """A socket that listens; ConfigError where the address is taken or is none of this machine."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"{host} port {port} cannot be listened at ({error.strerror or error}); choose another with --port "
            "(0 takes a free one) or --host."
        ) from error


def _names(checkpoint: Checkpoint, source: Source, adapters: Sequence[str]) -> dict[str, str | None]:
    """The adapter of each model's name, the base's first; ConfigError where two have the same name."""
    from entrenar.train.loading import check_fits

    names: dict[str, str | None] = {Path(source.model or checkpoint.path).stem: None}
    for place in adapters:
        check_fits(checkpoint, place)
        path = Path(place).resolve()
        name = path.stem if path.is_file() else path.parent.name if path.name == "adapter" else path.name
        if name in names:
            taken = names[name] or "the base"
            raise ConfigError(f"{place}: its name {name} is that of {taken} too; rename the folder or file.")
        names[name] = place
    return names


def _engine(checkpoint: Checkpoint, source: Source, names: dict[str, str | None], serving: Serving) -> Engine:
    """The engine with every model loaded, one base for all."""
    from entrenar.models.caches import longest_alike
    from entrenar.serve.engine import Engine
    from entrenar.train.loading import Base
    from entrenar.train.stopping import end_tokens

    tokenizer, config = checkpoint.tokenizer(), checkpoint.config
    with source.computing():
        base = Base(checkpoint, source.storage(checkpoint))
        models = {name: base.model(place) for name, place in names.items()}
    first = next(iter(models.values()))
    first.generation.check()
    context = min(longest_alike(config), MOST_CONTEXT) if serving.context is None else serving.context
    return Engine(
        models,
        tokenizer,
        end_tokens(first, tokenizer),
        source.computing(),
        slots=serving.slots,
        context=context,
        queue=serving.queue,
        seconds=serving.timeout,
    )
