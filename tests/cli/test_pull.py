"""`entrenar pull` through huggingface_hub itself, against a hub on this machine; and without a network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlparse

import pytest

from entrenar.errors import ConfigError
from entrenar.io.pull import Reference
from entrenar.models.checkpoint import Checkpoint
from tests.train.builders import run_entrenar

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What of the hub's interface fetching needs: a list of files, and files."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
        else:
            name, rest = "/".join(parts[:2]), parts[2:]
        files = self.repositories.get(name)
        if files is None:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest[1:2] and rest[1] not in ("main", COMMIT):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if rest[:1] == ["resolve"]:
            data = files.get("/".join(rest[2:]))
            if data is None:
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return self.send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        if rest[:1] == ["tree"]:
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
            return self.send(200, json.dumps(rows).encode())
        siblings = [{"rfilename": path} for path in files]
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        return self.send(200, json.dumps(info).encode())

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture(scope="module")
def hub(model: Path) -> Iterator[str]:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    ggufs = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]
    Hub.repositories = {
        "org/tiny": files | {"pytorch_model.bin": b"no", "onnx/model.onnx": b"no", "README.md": b"# no"},
        "org/tiny-GGUF": {name: name.encode() for name in ggufs},
        "org/empty": {".gitattributes": b""},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pulled(hub: str, home: Path, *words: str, **environment: str) -> Any:
    variables = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    return run_entrenar("pull", *words, **variables)


@pytest.mark.unit
def test_a_model_its_file_and_the_file_of_a_type(hub: str, model: Path, tmp_path: Path) -> None:
    ended = pulled(hub, tmp_path, "hf:org/tiny")
    assert ended.returncode == 0, ended.stderr
    folder = Path(ended.stdout.rstrip("\n"))
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()}
    Checkpoint.open(folder).check()
    again = pulled("http://127.0.0.1:9", tmp_path, "--json", "org/tiny", HF_HUB_OFFLINE="1")  # what the cache has
    assert json.loads(again.stdout) == {"model": "org/tiny", "path": str(folder)}
    ended = pulled(hub, tmp_path, "hf:org/tiny-GGUF:q4_k_m", "--to", str(tmp_path / "here"))
    assert ended.stdout == f"{tmp_path / 'here' / 'm-Q4_K_M.gguf'}\n"
    assert Path(ended.stdout.rstrip("\n")).read_bytes() == b"m-Q4_K_M.gguf"
    ended = pulled(hub, tmp_path, "hf:org/tiny-GGUF:F16", "--to", str(tmp_path / "here"))
    assert ended.stdout.endswith("m-F16-00001-of-00002.gguf\n")
    assert (tmp_path / "here" / "m-F16-00002-of-00002.gguf").exists()


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["hf:org/none"], "there is no such repository"),
        (["hf:org/tiny:model.safetensor"], "did you mean 'model.safetensors'?"),
        (["hf:org/tiny-GGUF"], "say which file: hf:org/tiny-GGUF:FILE; there are 'm-F16-00001-of-00002.gguf'"),
        (["hf:org/tiny-GGUF:Q5_K_M"], "has no GGUF file of the type 'Q5_K_M'"),
        (["hf:org/tiny", "--revision", "v9"], "has no such revision"),
        (["hf:org/empty"], "has no safetensors weights"),
        (["tiny"], "is no name of a model, expected hf:org/name"),
        (["hf:../../etc"], "is no name of a model"),
        (["hf:org/tiny", "--to", "/dev/null/x"], "cannot be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_sentence(hub: str, words: list[str], text: str, tmp_path: Path) -> None:
    ended = pulled(hub, tmp_path, *words)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended.stderr
    assert text in ended.stderr, ended.stderr


@pytest.mark.chaos
@pytest.mark.parametrize("offline", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "offline"])
def test_without_a_network_it_says_what_to_do(offline: dict[str, str], tmp_path: Path) -> None:
    for name in ("hf:org/tiny", "hf:org/tiny:model.safetensors"):
        ended = pulled("http://127.0.0.1:9", tmp_path, name, **offline)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended.stderr
        for text in ("cannot be fetched", "`hf download org/tiny", "--local-dir FOLDER`", "HF_ENDPOINT"):
            assert text in ended.stderr
        assert ("HF_HUB_OFFLINE is set" in ended.stderr) == bool(offline)


@pytest.mark.unit
def test_names() -> None:
    assert Reference.parse("hf:a/b:c.gguf") == Reference("a/b", "c.gguf")
    assert Reference.parse("a/b") == Reference("a/b")
    for text in ("", "hf:", "a", "a/b/c", "a/b:../c", "a/b:/c", "https://a/b"):
        with pytest.raises(ConfigError, match="is no name of a model"):
            Reference.parse(text)
