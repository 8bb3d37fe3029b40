"""What traces and metrics over OTLP share: the exporter that the environment asks for, the resource, and what is said.

The variables are the SDK's (OpenTelemetry specification, environment variables and protocol/exporter):
OTEL_EXPORTER_OTLP_PROTOCOL (grpc, http/protobuf), _ENDPOINT, _HEADERS, _TIMEOUT, _COMPRESSION, _CERTIFICATE ... and
the same for one signal.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from entrenar.errors import ConfigError
from entrenar.observe.extras import needed

PROTOCOLS = {"grpc": "grpc", "http/protobuf": "http"}
LAST_MILLISECONDS = 3000  # for the values of the end: a receiver that does not answer holds nobody up for longer
EXPORTERS = {"traces": ("trace_exporter", "OTLPSpanExporter"), "metrics": ("metric_exporter", "OTLPMetricExporter")}
# What the SDK's sentences about one signal hold: one of both says which it is about.
WORDS = {"traces": ("span", "trace"), "metrics": ("metric",)}
AFTER = "Shutdown in progress"  # how its complaints begin where a run ends while it tries again: no cause


def exporter(signal: str, option: str, **options: Any) -> Any:
    """The OTLP exporter of `signal` (traces, metrics) that the environment asks for.

    ConfigError for a protocol that there is not, a value that the exporter refuses, or a missing library.
    """
    which = os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip()
    if which and "otlp" not in which.split(","):
        raise ConfigError(
            f"OTEL_{signal.upper()}_EXPORTER is {which!r}, and {option} exports over OTLP; unset one of both."
        )
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        asked = os.environ.get(variable, "").strip()
        if asked and asked not in PROTOCOLS:
            raise ConfigError(f"{variable} is {asked!r}, expected one of {', '.join(PROTOCOLS)}.")
        if asked:
            break
    module, name = EXPORTERS[signal]
    found = needed(f"opentelemetry.exporter.otlp.proto.{PROTOCOLS[asked or 'grpc']}.{module}", option)
    try:
        return getattr(found, name)(**options)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(
            f"{option}: the exporter refuses what the OTEL_EXPORTER_OTLP_* variables say ({error}); mend or unset them."
        ) from error


def resource(attributes: Mapping[str, str]) -> Any:
    """The resource of a run: `attributes`, and what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say."""
    resources = needed("opentelemetry.sdk.resources", "observe")
    found = resources.Resource.create({"service.name": "entrenar", **attributes})
    if named := os.environ.get("OTEL_SERVICE_NAME"):
        found = found.merge(resources.Resource({"service.name": named}))
    return found


class OneSentence(logging.Handler):
    """Says the first complaint about a signal; the rest, one an export, is left out."""

    def __init__(self, signal: str, option: str, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._others = tuple(word for other, words in WORDS.items() if other != signal for word in words)
        self._option, self._say, self._said = option, say, False

    def emit(self, record: logging.LogRecord) -> None:
        """Say the record, where it is the first that is not about another signal."""
        sentence = " ".join(record.getMessage().split()).rstrip(".")
        if not sentence.startswith(AFTER) and not any(word in sentence.lower() for word in self._others):
            self.complain(sentence)

    def complain(self, sentence: str) -> None:
        """Say it, where it is the first."""
        if not self._said:
            self._said = True
            self._say(f"{self._option}: {sentence}; the run goes on.")


def _lift_filters() -> list[tuple[logging.Logger, Any]]:
    """Take off the SDK's filters of repeated records, which hold back one signal's reason where another's was alike."""
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("opentelemetry")]
    found = [
        (logger, each) for logger in loggers for each in logger.filters if type(each).__name__ == "DuplicateFilter"
    ]
    for logger, each in found:
        logger.removeFilter(each)
    return found


@contextmanager
def one_sentence(signal: str, option: str, say: Callable[[str], None]) -> Iterator[OneSentence]:
    """Inside the block, the SDK's first complaint about `signal` goes to `say`, and nothing to standard error."""
    log, handler = logging.getLogger("opentelemetry"), OneSentence(signal, option, say)
    propagates, log.propagate = log.propagate, False
    log.addHandler(handler)
    held_back = _lift_filters()
    try:
        yield handler
    finally:
        for logger, each in held_back:
            logger.addFilter(each)
        log.removeHandler(handler)
        if not any(isinstance(other, logging.NullHandler) for other in log.handlers):
            log.addHandler(logging.NullHandler())  # its threads may end later: not on standard error
        log.propagate = propagates
