"""The HTTP side: routes of the OpenAI API, /metrics and /health, as an ASGI application (Starlette)."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from entrenar.serve import protocol
from entrenar.serve.answers import ChatCompletions, Completions, Envelope
from entrenar.serve.engine import Busy, Engine, TooMany
from entrenar.serve.protocol import Asked, BadRequest
from entrenar.serve.request import Job, Part

LARGEST_BODY = 16 << 20  # bytes
LISTENS = 0.5  # seconds between looks at whether the client is still there
OPEN_PATHS = ("/health",)  # asked without the key, by what watches the server
# name, type, help, and where the number stands
METRICS: tuple[tuple[str, str, str, Callable[[Engine], float]], ...] = (
    ("entrenar_serve_requests_total", "counter", "prompts that were queued", lambda e: e.counts.requests),
    ("entrenar_serve_finished_total", "counter", "answers that ended", lambda e: e.counts.finished),
    ("entrenar_serve_failed_total", "counter", "prompts without an answer", lambda e: e.counts.failed),
    ("entrenar_serve_cancelled_total", "counter", "answers nobody waited for", lambda e: e.counts.cancelled),
    ("entrenar_serve_prompt_tokens_total", "counter", "tokens of prompts", lambda e: e.counts.prompt_tokens),
    (
        "entrenar_serve_cached_tokens_total",
        "counter",
        "prompt tokens not run again",
        lambda e: e.counts.cached_tokens,
    ),
    ("entrenar_serve_generated_tokens_total", "counter", "tokens of answers", lambda e: e.counts.generated_tokens),
    ("entrenar_serve_steps_total", "counter", "forward passes that gave tokens", lambda e: e.counts.steps),
    ("entrenar_serve_compute_seconds_total", "counter", "seconds of computing", lambda e: e.counts.seconds),
    ("entrenar_serve_waiting", "gauge", "prompts in the queue", lambda e: e.waiting),
    ("entrenar_serve_running", "gauge", "prompts that are answered now", lambda e: e.running),
)


class Listener:
    """Hears the parts of an answer's choices on the engine's thread and hands them to a coroutine."""

    def __init__(self, engine: Engine, asked: Asked) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[tuple[int, Part]] = asyncio.Queue()
        self.jobs = [
            Job(asked.model, prompt, asked.settings, self._teller(index)) for index, prompt in enumerate(asked.prompts)
        ]
        engine.submit(*self.jobs)

    def _teller(self, index: int) -> Callable[[Part], None]:
        return lambda part: self._tell(index, part)

    def _tell(self, index: int, part: Part) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._parts.put_nowait, (index, part))

    async def parts(self, gone: Callable[[], Any]) -> AsyncIterator[tuple[int, Part]]:
        """(choice, part) as they come, to the end of every choice; ends early where `gone` says so."""
        left = len(self.jobs)
        try:
            while left:
                try:
                    index, part = await asyncio.wait_for(self._parts.get(), LISTENS)
                except asyncio.TimeoutError:
                    if await gone():
                        return
                    continue
                left -= part.finish is not None or part.error is not None
                yield index, part
        finally:
            for job in self.jobs:
                job.cancelled = True  # of no effect on those that ended


def application(engine: Engine, key: str | None) -> Starlette:
    """The routes over a running engine; with `key`, only for those who give it as a bearer token."""

    async def completions(request: Request) -> Response:
        return await _answer(request, engine, protocol.completion, Completions(engine.tokenizer))

    async def chat(request: Request) -> Response:
        return await _answer(request, engine, protocol.chat, ChatCompletions(engine.tokenizer))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name, started) for name in engine.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in engine.models:
            return _error(f"model {name!r:.80} is not served.", 404, "model")
        return JSONResponse(_model(name, started))

    async def metrics(request: Request) -> Response:
        lines = [
            f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {read(engine):g}\n"
            for name, kind, text, read in METRICS
        ]
        return PlainTextResponse("".join(lines), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def health(request: Request) -> Response:
        alive = engine.alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, status_code=200 if alive else 503)

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return _error(f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}.", status)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.close)

    started = int(time.time())
    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/metrics", metrics),
            Route("/health", health),
        ],
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )
    if key is not None:
        app.add_middleware(Keyed, key=key)
    return app


class Keyed:
    """ASGI middleware: 401 for whoever does not bring the key."""

    def __init__(self, app: Any, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            found = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(found, self._expected):
                response = _error("The key is missing or wrong; expected the header Authorization: Bearer KEY.", 401)
                return await response(scope, receive, send)
        await self._app(scope, receive, send)


def _model(name: str, started: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": started, "owned_by": "entrenar"}


def _error(message: str, status: int, param: str | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": None}}, status_code=status)


async def _body(request: Request) -> Any:
    """The request's JSON; BadRequest where it is too large, of another type, or none."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise BadRequest(
            "The content type is not application/json; send the header Content-Type: application/json.", status=415
        )
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > LARGEST_BODY:
            raise BadRequest(f"The body is larger than {LARGEST_BODY >> 20} MiB.", status=413)
    try:
        return json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is no JSON: {error}.") from error


async def _answer(
    request: Request, engine: Engine, read: Callable[[Any, Engine], Asked], shape: Completions
) -> Response:
    try:
        asked = await asyncio.to_thread(read, await _body(request), engine)  # templates and tokenizers take their time
        listener = Listener(engine, asked)
    except BadRequest as error:
        return _error(str(error), error.status, error.param)
    except TooMany as error:
        return _error(str(error), 400, "prompt")
    except Busy as error:
        return _error(str(error), 503 if not engine.alive else 429)
    envelope = Envelope(shape, asked)
    if asked.stream:
        events = _events(request, listener, envelope, asked)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    found: list[list[Part]] = [[] for _ in asked.prompts]
    async for index, part in listener.parts(request.is_disconnected):
        if part.error is not None:
            return _error(part.error, 503)
        found[index].append(part)
    return JSONResponse(envelope.whole([_joined(parts) for parts in found], listener.jobs))


def _joined(parts: Sequence[Part]) -> Part:
    scores = tuple(score for part in parts for score in part.scores)
    return Part("".join(part.text for part in parts), scores, parts[-1].finish if parts else None)


async def _events(request: Request, listener: Listener, envelope: Envelope, asked: Asked) -> AsyncIterator[str]:
    """Server-sent events (WHATWG HTML, 9.2): a chunk each, then [DONE]; an error ends them."""
    for chunk in envelope.first():
        yield _event(chunk)
    lengths = [0] * envelope.count
    async for index, part in listener.parts(request.is_disconnected):
        if part.error is not None:
            yield _event(json.loads(bytes(_error(part.error, 503).body)))
            return
        yield _event(envelope.chunk(index, part, lengths[index]))
        lengths[index] += len(part.text)
    if asked.include_usage:
        yield _event(envelope.last(listener.jobs))
    yield "data: [DONE]\n\n"


def _event(table: dict[str, Any]) -> str:
    return f"data: {json.dumps(table)}\n\n"
