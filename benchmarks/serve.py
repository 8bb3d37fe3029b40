"""The server: eight requests at once against one, each against llama.cpp's server over the same file and threads."""

from __future__ import annotations

import atexit
import itertools
import json
import re
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from harness import Bench, Row, Target, Times
from models import PROMPT, REAL, gguf_file
from timing import clock

PEERS = ("xllamacpp", "starlette", "uvicorn")
CASES = [(REAL, None), ("228m", "Q4_K")]  # a model, and the type of the file that is made of it
AT_ONCE = 8


def _path(model: str, file_type: str | None) -> str:
    from entrenar.io.hub import fetch_default_model

    return str(gguf_file(model, file_type) if file_type else fetch_default_model(progress=False))


class _Server:
    """Asks a server of the completions API, at `address`."""

    address: str
    asked = itertools.count()  # so that no prompt begins like one before it, which servers go on from

    def ask(self, requests: int, new: int) -> float:
        """Seconds for a token where so many requests at once are answered with `new` each."""
        with ThreadPoolExecutor(requests) as pool:
            started = clock()
            written = list(pool.map(partial(self._complete, new), itertools.islice(self.asked, requests)))
            seconds = clock() - started
        if written != [new] * requests:
            raise RuntimeError(f"{type(self).__name__} wrote {written} tokens where {new} each were asked for.")
        return seconds / sum(written)

    def _complete(self, new: int, number: int) -> int:
        prompt = [1000 + number % 20000, *range(200, 199 + PROMPT)]
        wanted = {"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self.address}/v1/completions", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return int(json.load(answer)["usage"]["completion_tokens"])


class Ours(_Server):
    """`entrenar serve`, a process of its own."""

    def __init__(self, model: str, file_type: str | None, precision: str) -> None:
        serve = ["serve", "--port", "0", "--slots", str(AT_ONCE), "--context", "512", "--precision", precision]
        command = [sys.executable, "-m", "entrenar", *serve, "--model", _path(model, file_type)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.terminate)  # however this process ends its work
        said = iter(self.process.stdout or ())
        found = next(filter(None, (re.search(r"at (http://[^ ]+)/v1", line) for line in said)), None)
        if found is None:
            raise RuntimeError(f"The server ended with status {self.process.wait()}.")
        self.address = found[1]
        threading.Thread(target=lambda: [None for _ in said], daemon=True).start()  # nobody else reads what it says


class LlamaCpp(_Server):
    """llama.cpp's server, in this process."""

    def __init__(self, model: str, file_type: str | None, threads: int, slots: int) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = _path(model, file_type)
        parameters.n_ctx, parameters.n_parallel, parameters.port = 512 * slots, slots, 0
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.verbosity = 0
        self.server = xllamacpp.Server(parameters)
        self.address = self.server.listening_address


def _row(case: str, times: Times, of: str, to: str, target: float) -> Row:
    rates = ", ".join(f"{name} {1 / times.median(name):.1f} tokens/s" for name in (of, to))
    return Row("serve", case, times.ratios(of, to), target=Target(target), detail=rates)


def run(bench: Bench) -> None:
    """Tokens a second of eight requests at once over those of one, and of each over llama.cpp's."""
    new = 16 if bench.quick else 96
    with bench.worker("models", "Preparation") as preparation:
        for model, file_type in CASES:
            if file_type:
                preparation.call("prepare", model=model)
                preparation.call("prepare_gguf", model=model, file_type=file_type)
    for model, file_type in CASES[:1] if bench.quick else CASES:
        for precision in bench.precisions(four_bits=True):
            _case(bench, model, file_type, precision, new)


def _case(bench: Bench, model: str, file_type: str | None, precision: str, new: int) -> None:
    of = {"model": model, "file_type": file_type}
    with (
        bench.worker("serve", "Ours", **of, precision=precision) as ours,
        bench.worker("serve", "LlamaCpp", **of, threads=bench.threads, slots=1) as peer,
        bench.worker("serve", "LlamaCpp", **of, threads=bench.threads, slots=AT_ONCE) as crowded_peer,
    ):
        turns = {
            "one": partial(ours.call, "ask", requests=1, new=new),
            f"{AT_ONCE} at once": partial(ours.call, "ask", requests=AT_ONCE, new=new),
            "llama.cpp": partial(peer.call, "ask", requests=1, new=new),
            f"llama.cpp, {AT_ONCE}": partial(crowded_peer.call, "ask", requests=AT_ONCE, new=new),
        }
        times = bench.interleave(turns)
    case = f"{model} {file_type or 'Q4_1'}, {precision}"
    bench.add(_row(f"{case}: {AT_ONCE} at once / one", times, f"{AT_ONCE} at once", "one", 3.0))
    bench.add(_row(f"{case}: one / llama.cpp", times, "one", "llama.cpp", 1.0))
    both = f"{AT_ONCE} at once", f"llama.cpp, {AT_ONCE}"
    bench.add(_row(f"{case}: {AT_ONCE} at once / llama.cpp's", times, *both, 1.0))
