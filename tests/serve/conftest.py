"""A small model, an adapter over it, and a server of both."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from tests.train.builders import entrenar_command, write_model

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


class Server:
    """`entrenar serve` as a program of its own, at a free port."""

    def __init__(self, *words: str | Path, **environment: str) -> None:
        command = entrenar_command("serve", "--port", "0", "--precision", "highest", *words)
        variables = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables, bufsize=1
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = ""
        for line in self.process.stdout:
            if " at http" in line:
                break
        found = re.search(r"at (http://\S+/v1);", line)
        assert found is not None, line + self.process.stderr.read()
        self.url = found[1]

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send the signal; (status, output, errors)."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA whose B is not zero, so that answers are others."""
    from entrenar.adapters.peft import save_adapter

    loaded = LLaMAModel.from_pretrained(model).to_lora(LoRAConfig(rank=2, target_modules="all-linear"), seed=3)
    for name, weight in loaded.trainable_parameters():
        if "lora_B" in name:
            weight.numpy()[:] = 0.05
    place = tmp_path_factory.mktemp("adapters") / "tuned"
    save_adapter(loaded, place)
    return place


@pytest.fixture(scope="session")
def server(model: Path, adapter: Path) -> Iterator[Server]:
    running = Server("--model", model, "--adapter", adapter, "--slots", "4")
    yield running
    status, _, errors = running.end()
    assert (status, errors) == (0, "")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    running: list[Server] = []

    def start(*words: str | Path, **environment: str) -> Server:
        running.append(Server(*words, **environment))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()
