"""Receivers of OTLP in this process, built on opentelemetry-proto: gRPC and HTTP; some of them fail on purpose."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

VALUE = {"bool_value": bool, "int_value": int, "double_value": float, "string_value": str}


@dataclass
class Received:
    """What a receiver got: requests as they came, the metadata or headers of each, and its own address."""

    endpoint: str = ""
    protocol: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)

    def take(self, request: ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        self.requests.append(request)
        self.arrived.set()

    @property
    def spans(self) -> list[Any]:
        return spans_of(self.requests)

    @property
    def resource(self) -> dict[str, Any]:
        return attributes(self.requests[0].resource_spans[0].resource)

    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol, "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint}


def spans_of(requests: list[ExportTraceServiceRequest]) -> list[Any]:
    return [
        span
        for request in requests
        for of in request.resource_spans
        for scope in of.scope_spans
        for span in scope.spans
    ]


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a span, an event or a resource, each of the type that it was sent as."""
    found: dict[str, Any] = {}
    for pair in holder.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        if kind == "array_value":
            value = [getattr(item, item.WhichOneof("value")) for item in value.values]
        else:
            assert type(value) is VALUE[kind]
        found[pair.key] = value
    return found


@contextmanager
def grpc_receiver(port: int = 0) -> Iterator[Received]:
    """Answers gRPC at a port of 127.0.0.1."""
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

    received = Received(protocol="grpc")

    class Servicer(service.TraceServiceServicer):  # type: ignore[misc]
        def Export(self, request: Any, context: Any) -> Any:
            received.take(request, {pair.key: pair.value for pair in context.invocation_metadata()})
            return ExportTraceServiceResponse()

    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool)
    service.add_TraceServiceServicer_to_server(Servicer(), server)
    received.endpoint = f"http://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield received
    finally:
        server.stop(0).wait()
        pool.shutdown()


@contextmanager
def http_receiver(status: int = 200, answer: bytes | None = None) -> Iterator[Received]:
    """Answers POST /v1/traces at a port of 127.0.0.1, a connection each; with an empty success unless told."""
    received = Received(protocol="http/protobuf")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            received.take(request, {key.lower(): value for key, value in self.headers.items()})
            said = ExportTraceServiceResponse().SerializeToString() if answer is None else answer
            self.send_response(status if self.path == "/v1/traces" else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    received.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def raw_receiver(answer: bytes | None) -> Iterator[str]:
    """Takes connections and bytes; answers each with `answer` and hangs up, or with None never. Its address."""
    over = threading.Event()
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)

        def serve() -> None:
            while not over.is_set():
                try:
                    connection = listening.accept()[0]
                except TimeoutError:
                    continue
                held.append(connection)
                if answer is not None:
                    connection.settimeout(1)
                    connection.recv(1 << 16)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            thread.join()
            for connection in held:
                connection.close()


def read_lines(text: str) -> list[ExportTraceServiceRequest]:
    """OTLP JSON lines, read by protobuf's own mapping, ids turned from hexadecimal to what that mapping has."""
    import base64

    from google.protobuf.json_format import ParseDict

    def refuse(name: str) -> None:
        raise ValueError(name)

    def mapped(value: Any) -> Any:
        if isinstance(value, list):
            return [mapped(item) for item in value]
        if not isinstance(value, dict):
            return value
        ids = ("traceId", "spanId", "parentSpanId")
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode() if key in ids else mapped(item)
            for key, item in value.items()
        }

    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    return [ParseDict(mapped(line), ExportTraceServiceRequest()) for line in lines]
