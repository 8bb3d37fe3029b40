"""`entrenar serve` by the official client: answers as the model alone gives them, wrong requests, many at once."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from entrenar.adapters.peft import load_adapter
from entrenar.autograd import no_grad
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.serve.engine import _together
from tests.train.builders import run_entrenar

from .conftest import Server

openai = pytest.importorskip("openai")
QUESTIONS = ["What is 1 plus 2?", "What", "What is 7 plus 5? That is", "all.", "is", "plus 3", "What is all?"]


def client(server: Server, key: str = "unused") -> Any:
    return openai.OpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=60)


def loaded(model: Path, adapter: Path | None = None) -> tuple[LLaMAModel, Tokenizer]:
    found = LLaMAModel.from_pretrained(model)
    if adapter is not None:
        load_adapter(found, adapter)
    return found, Tokenizer.from_directory(model)


def alone(model: LLaMAModel, tokenizer: Tokenizer, text: str, new: int = 12) -> str:
    return tokenizer.decode(model.generate(tokenizer.encode(text, add_bos=True), max_new_tokens=new))


def ask(server: Server, body: object, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def metrics(server: Server) -> dict[str, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return dict(line.split() for line in text.splitlines() if not line.startswith("#"))


@pytest.mark.unit
def test_requests_that_come_together_are_answered_as_each_alone(server: Server, model: Path, adapter: Path) -> None:
    asked = [(name, text) for text in QUESTIONS for name in ("tiny", "tuned")]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(
            pool.map(
                lambda one: client(server).completions.create(
                    model=one[0], prompt=one[1], max_tokens=12, temperature=0
                ),
                asked,
            )
        )
    for name, place in (("tiny", None), ("tuned", adapter)):
        alike = loaded(model, place)
        expected = {text: alone(*alike, text) for text in QUESTIONS}
        got = {text: answer.choices[0].text for (who, text), answer in zip(asked, found, strict=True) if who == name}
        assert got == expected
    assert found[0].usage.completion_tokens == 12 and found[0].choices[0].finish_reason == "length"


@pytest.mark.unit
def test_the_models_are_the_base_and_its_adapters(server: Server) -> None:
    assert [one.id for one in client(server).models.list().data] == ["tiny", "tuned"]
    assert client(server).models.retrieve("tuned").owned_by == "entrenar"
    with pytest.raises(openai.NotFoundError, match="not served"):
        client(server).models.retrieve("another")


@pytest.mark.unit
def test_chat_answers_by_the_template_whole_and_as_a_stream(server: Server, model: Path) -> None:
    messages = [{"role": "user", "content": "What is 1 plus 2?"}]
    options: dict[str, Any] = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 10}
    whole = client(server).chat.completions.create(**options)
    found, tokenizer = loaded(model)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert whole.choices[0].message.content == tokenizer.decode(found.generate(prompt, max_new_tokens=10))
    assert whole.usage.prompt_tokens == len(prompt)
    chunks = list(
        client(server).chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 4  # parts, as they come
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage.completion_tokens == 10


@pytest.mark.unit
def test_a_conversation_goes_on_without_its_beginning_being_computed_again(
    serve: Callable[..., Server], model: Path, adapter: Path
) -> None:
    server = serve("--model", model, "--adapter", adapter, "--slots", "2")
    found, tokenizer = loaded(model)

    def cached(text: str, **more: object) -> tuple[int, str]:
        answer = ask(server, {"model": "tiny", "prompt": text, "max_tokens": 8, "temperature": 0, **more})[1]
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["text"]

    first = "What is 1 plus 2?"
    begun, answer = cached(first)
    assert begun == 0
    longer = first + answer + " And 3 plus 4?"
    begun, second = cached(longer)
    length = len(tokenizer.encode(longer, add_bos=True))
    assert len(tokenizer.encode(first)) <= begun < length - 4
    assert second == alone(found, tokenizer, longer, 8)
    assert cached(longer, cache_prompt=False) == (0, second)
    assert cached(longer)[0] == length - 1
    both = ask(server, {"model": "tiny", "prompt": [longer, longer], "max_tokens": 1})[1]["usage"]
    assert both["prompt_tokens_details"]["cached_tokens"] == 2 * (length - 1)
    assert float(metrics(server)["entrenar_serve_cached_tokens_total"]) == begun + 3 * (length - 1)
    assert cached(longer, model="tuned")[0] == 0  # whose keys and values are others
    assert cached(longer, echo=True, logprobs=1)[0] == 0  # every token of it is scored
    status, refused = ask(server, {"model": "tiny", "prompt": first, "cache_prompt": 1})
    assert status == 400 and "cache_prompt is 1, expected true or false" in refused["error"]["message"]


@pytest.mark.unit
def test_short_prompts_run_together() -> None:
    def waiting(left: int, model: str = "a", scored: bool = False) -> Any:
        return SimpleNamespace(left=left, job=SimpleNamespace(model=model), scored=scored)

    first, longer, shorter, other, scored = waiting(4), waiting(7), waiting(3), waiting(4, "b"), waiting(4, scored=True)
    assert _together([first, shorter, longer, other, scored]) == [first, longer]
    assert _together([scored, first]) == [scored]
    assert _together([first] * 300) == [first] * 128  # 512 tokens
    assert _together([waiting(600), first])[0].left == 600 and len(_together([waiting(600), waiting(600)])) == 1


@pytest.mark.unit
def test_sampling_follows_its_seed(server: Server) -> None:
    def sampled(seed: Any) -> str:
        answer = client(server).completions.create(model="tiny", prompt="What", max_tokens=20, temperature=1, seed=seed)
        return answer.choices[0].text

    assert sampled(1) == sampled(1) != sampled(2)
    assert len({sampled(openai.NOT_GIVEN) for _ in range(4)}) > 1


@pytest.mark.unit
def test_an_answer_ends_before_a_stop_string(server: Server, model: Path) -> None:
    text = alone(*loaded(model), "What", 30)
    stop = text[8:11]
    for stream in (False, True):
        answer = client(server).completions.create(
            model="tiny", prompt="What", max_tokens=30, temperature=0, stop=["never", stop], stream=stream
        )
        parts = list(answer) if stream else [answer]
        assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


@pytest.mark.unit
def test_an_answer_goes_on_after_an_end_token_where_that_is_asked(server: Server) -> None:
    for seed in range(50):
        wanted = {"model": "tiny", "prompt": "What", "max_tokens": 60, "temperature": 1, "seed": seed}
        if ask(server, wanted)[1]["choices"][0]["finish_reason"] == "stop":
            break
    answer = ask(server, wanted | {"ignore_eos": True})[1]
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 60)
    assert ask(server, wanted | {"ignore_eos": 1})[0] == 400


@pytest.mark.unit
def test_prompts_are_scored_as_the_model_scores_them(server: Server, model: Path) -> None:
    found, tokenizer = loaded(model)
    prompts = [tokenizer.encode(text, add_bos=True) for text in QUESTIONS[:3]]
    answer = client(server).completions.create(
        model="tiny", prompt=prompts, max_tokens=1, logprobs=2, echo=True, temperature=0
    )
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        with no_grad():
            logits = found.logits(found.hidden_states(np.array([prompt]))).numpy()[0].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = [logprobs[i, token] for i, token in enumerate(prompt[1:])]
        scores = choice.logprobs.token_logprobs
        assert scores[0] is None and len(scores) == len(prompt) + 1
        np.testing.assert_allclose(scores[1:-1], expected, atol=1e-4)
        np.testing.assert_allclose(scores[-1], logprobs[-1].max(), atol=1e-4)
        for i, top in enumerate(choice.logprobs.top_logprobs[1:]):
            np.testing.assert_allclose(sorted(top.values()), np.sort(logprobs[i])[-2:], atol=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "The body is no JSON"),
        (b"[" * 100000, 400, "The body is no JSON"),
        ([], 400, "expected a JSON object"),
        ({}, 400, "model is null, expected one of tiny, tuned"),
        ({"model": "tinny", "prompt": "x"}, 404, "did you mean 'tiny'"),
        ({"model": "tiny"}, 400, "prompt is null"),
        ({"model": "tiny", "prompt": []}, 400, "no token"),
        ({"model": "tiny", "prompt": [280]}, 400, "token 280, expected ids from 0 to 279"),
        ({"model": "tiny", "prompt": [1, True]}, 400, "prompt is"),
        ({"model": "tiny", "prompt": ["a"] * 129}, 400, "129 texts"),
        ({"model": "tiny", "prompt": "x", "max_tokens": 0}, 400, "max_tokens is 0"),
        ({"model": "tiny", "prompt": "x", "max_tokens": 1000}, 400, "at most 128 together"),
        ({"model": "tiny", "prompt": "x", "temperature": -1}, 400, "temperature is -1"),
        ({"model": "tiny", "prompt": "x", "temperature": "hot"}, 400, "temperature is 'hot'"),
        ({"model": "tiny", "prompt": "x", "n": 2}, 400, "n = 2 is not supported"),
        ({"model": "tiny", "prompt": "x", "max_token": 2}, 400, "did you mean 'max_tokens'"),
        ({"model": "tiny", "prompt": "x", "stop": [""]}, 400, "stop is"),
        ({"model": "tiny", "prompt": "x", "stream_options": {}}, 400, "no effect without stream"),
    ],
)
def test_a_wrong_request_is_one_sentence(server: Server, body: object, status: int, message: str) -> None:
    found, answer = ask(server, body)
    assert found == status, answer
    assert message in answer["error"]["message"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages is []"),
        ({"messages": ["hello"]}, "messages[0] is 'hello'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "images are not supported"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "tools = [{}] is not supported"),
        ({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}, "no effect without logprobs"),
        ({"messages": [{"role": "user", "content": "and " * 200}]}, "at most 128 together"),
    ],
)
def test_a_wrong_chat_request_is_one_sentence(server: Server, body: dict, message: str) -> None:
    status, answer = ask(server, {"model": "tiny"} | body, "/v1/chat/completions")
    assert status == 400 and message in answer["error"]["message"]


@pytest.mark.unit
def test_other_paths_methods_and_content_types_are_refused(server: Server) -> None:
    assert ask(server, {}, "/v1/other")[0] == 404
    assert ask(server, {}, "/v1/models")[0] == 405
    status, answer = ask(server, {"prompt": "x"}, **{"Content-Type": "text/plain"})  # what a page in a browser may send
    assert status == 415 and "application/json" in answer["error"]["message"]


@pytest.mark.unit
def test_health_and_metrics_say_what_was_done(server: Server) -> None:
    client(server).completions.create(model="tiny", prompt="What", max_tokens=5, temperature=0)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    values = metrics(server)
    assert float(values["entrenar_serve_generated_tokens_total"]) >= 5
    assert float(values["entrenar_serve_running"]) == 0


@pytest.mark.unit
def test_a_client_that_leaves_frees_its_slot(serve: Callable[..., Server], model: Path) -> None:
    server = serve("--model", model, "--slots", "1")
    stream = client(server).completions.create(model="tiny", prompt="What", max_tokens=120, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    answer = client(server).completions.create(model="tiny", prompt="What", max_tokens=3, temperature=0)
    assert answer.usage.completion_tokens == 3


@pytest.mark.unit
def test_a_request_of_more_prompts_than_the_server_takes_is_refused(serve: Callable[..., Server], model: Path) -> None:
    server = serve("--model", model, "--slots", "1", "--queue", "1")
    assert ask(server, {"prompt": ["a", "b"], "max_tokens": 1})[0] == 200  # one has the slot
    status, answer = ask(server, {"prompt": ["a", "b", "c"], "max_tokens": 1})
    assert status == 400 and "has 3 prompts, expected at most 2" in answer["error"]["message"]  # asking again is no use


@pytest.mark.unit
def test_a_key_is_asked_for(serve: Callable[..., Server], model: Path) -> None:
    server = serve("--model", model, ENTRENAR_API_KEY="secret")
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        client(server, "secrets").models.list()
    assert client(server, "secret").models.list().data[0].id == "tiny"


@pytest.mark.unit
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_the_server(serve: Callable[..., Server], model: Path, number: int, status: int) -> None:
    ended, _, errors = serve("--model", model).end(number)
    assert ended == status and "Traceback" not in errors


@pytest.mark.unit
def test_two_models_of_one_name_are_refused(model: Path, adapter: Path) -> None:
    ended = run_entrenar("serve", "--model", model, "--adapter", adapter, adapter)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "its name tuned is that of" in ended.stderr
