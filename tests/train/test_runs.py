"""The folder of a run: one run at a time, nothing lost to the next, and what a crash or a signal leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from entrenar._kernels import cpu
from entrenar.autograd.precision import auto_precision, get_matmul_precision
from entrenar.data import read_examples, split_held_out
from entrenar.errors import ConfigError, EntrenarError, FormatError, NumericsError
from entrenar.io.safetensors import save_safetensors
from entrenar.llama import LLaMAModel
from entrenar.lora import load_adapter
from entrenar.train import Trainer, evaluate, finetune, interrupt, report, run
from entrenar.train.config import LRSchedule, Observe, Training
from entrenar.train.step import StepReport
from tests.conftest import heed_interrupts
from tests.train.builders import (
    ROOT,
    SMALL,
    config_for,
    metrics,
    quiet,
    run_example,
    seal,
    write_examples,
    write_model,
)

SETTINGS = ("--steps", "4", "--batch-size", "2", "--sequence-length", "64", "--held-out-fraction", "0.2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "examples.jsonl")


# ---------------------------------------------------------------------- the output folder
@pytest.mark.unit
@pytest.mark.parametrize("blocked", ["adapter", "model", "metrics.csv", "summary.json"])
def test_what_is_in_the_way_is_found_before_training(blocked: str, model: Path, data: Path, tmp_path: Path) -> None:
    if "." in blocked:
        (tmp_path / blocked).mkdir()
    else:
        (tmp_path / blocked).write_text("mine")
    with pytest.raises(ConfigError, match=rf"checkpointing\.directory: .*{blocked} is in the way; choose another"):
        quiet(model, config_for(data, tmp_path))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "whose"),
    [
        ({"trace_file": "run/metrics.csv"}, "which the run writes itself"),
        ({"trace_chrome": "link/profile.json"}, "which the run writes itself"),
        ({"trace_chrome": "run/.entrenar.lock"}, "which the run writes itself"),
        ({"profile_out": "run/../run/profile/steps-1.pb.gz"}, "in the folder profile of the run, whose files it"),
        ({"metrics_file": "run/adapter/a.prom"}, "in the folder adapter of the run, whose files it writes itself"),
        ({"trace_file": "a.jsonl", "trace_chrome": "./a.jsonl"}, "the file that observe.trace_file names"),
        ({"trace_file": "a.txt", "profile_out": "a.txt"}, "the file that observe.trace_file names"),
        ({"trace_file": "run/../examples.jsonl"}, "the file that data.path names"),
    ],
)
def test_a_file_that_two_would_write_is_refused_before_training(
    options: dict[str, str], whose: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "run").mkdir()
    shutil.copy(data, tmp_path / "examples.jsonl")
    wanted = replace(config_for(Path("examples.jsonl"), Path("run")), observe=Observe(**options))
    option, name = list(options.items())[-1]
    with pytest.raises(ConfigError, match=rf"^observe\.{option} is {re.escape(name)}, {whose}.*; name another file\.$"):
        quiet("nowhere", wanted)
    assert (tmp_path / "examples.jsonl").read_bytes() == data.read_bytes() and not list((tmp_path / "run").iterdir())


@pytest.mark.unit
def test_an_output_that_no_run_can_mean_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"directory is ~/runs, whose ~ only a shell replaces, .*\./~/runs\."):
        quiet("nowhere", config_for(data, Path("~/runs")))
    os.mkfifo(tmp_path / ".entrenar.lock")
    with pytest.raises(ConfigError, match=r"\.entrenar\.lock is no regular file; remove it"):
        quiet("nowhere", config_for(data, tmp_path))


@pytest.mark.unit
def test_a_link_to_a_folder_that_is_not_there_yet_is_followed(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    quiet(model, config_for(data, tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "metrics.csv").is_file()


@pytest.mark.unit
def test_other_learning_rates_before_a_resume_are_said(model: Path, data: Path, tmp_path: Path) -> None:
    for name, said in (("cosine", True), ("step", False)):
        for steps, resume in ((4, False), (6, True), (6, True)):
            config = config_for(data, tmp_path / name, replace(SMALL, steps=steps))
            config.lr_schedule = LRSchedule(name=name)
            config.checkpointing = replace(config.checkpointing, resume=resume, minutes=10)
            quiet(model, config)
            remarks = json.loads((tmp_path / name / "summary.json").read_text())["remarks"]
            assert any("The learning rates of cosine follow" in remark for remark in remarks) == (said and resume)


@pytest.mark.unit
def test_a_curve_that_ends_at_nothing_is_not_advised_for_more_steps(model: Path, data: Path, tmp_path: Path) -> None:
    for steps, resume in ((4, False), (6, True)):
        config = config_for(data, tmp_path / "run", replace(SMALL, steps=steps))
        config.checkpointing = replace(config.checkpointing, resume=resume, minutes=10)
        shown = quiet(model, config)[1]
    assert (
        "The curve of before ends at a rate of 0 after step 4: training.steps = 4 keeps it; training.continue_" in shown
    )
    assert "keeps the curve of before" not in shown


@pytest.mark.unit
def test_a_resumed_run_keeps_the_old_curve_where_it_is_asked_to(model: Path, data: Path, tmp_path: Path) -> None:
    for steps, schedule_steps, resume in ((4, None, False), (6, 4, True)):
        config = config_for(data, tmp_path / "run", replace(SMALL, steps=steps))
        config.lr_schedule = LRSchedule(name="linear", min_lr=1e-3, schedule_steps=schedule_steps)
        config.checkpointing = replace(config.checkpointing, resume=resume, minutes=10)
        result, shown = quiet(model, config)
        assert "follow from the number of steps" not in shown
    rates = [report.learning_rate for report in result.reports]
    assert rates == pytest.approx([1e-2, 7.75e-3, 5.5e-3, 3.25e-3, 1e-3, 1e-3])
    config.lr_schedule = replace(config.lr_schedule, schedule_steps=None)
    config.training = replace(config.training, steps=8)
    shown = quiet(model, config)[1]
    assert "and the rate goes from 0.001 to 0.00325 here. lr_schedule.schedule_steps = 4 keeps the curve" in shown


@pytest.mark.unit
def test_other_held_out_examples_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run")
    config.checkpointing = replace(config.checkpointing, minutes=10)
    quiet(model, config)
    held_out = split_held_out(read_examples(data), config.data.held_out_fraction)[1]
    assert len(held_out) > 1
    number = int(held_out[0].where.rpartition(" ")[2])
    lines = data.read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[: number - 1] + lines[number:]))
    again = config_for(tmp_path / "fewer.jsonl", tmp_path / "run")
    again.checkpointing = replace(config.checkpointing, resume=True)
    with pytest.raises(ConfigError, match="step-4: was written with other held-out examples; resume with the same"):
        quiet(model, again)


@pytest.mark.unit
def test_a_second_run_replaces_the_first_only_where_it_is_asked_to(model: Path, data: Path, tmp_path: Path) -> None:
    first, _ = quiet(model, config_for(data, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        ConfigError, match=r"holds an earlier run \(adapter/adapter_config\.json\); continue it with --re"
    ):
        quiet(tmp_path / "no model is read", config_for(data, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    config = config_for(data, tmp_path, replace(SMALL, steps=2))
    config.checkpointing = replace(config.checkpointing, overwrite=True)
    quiet(model, config)
    assert (first.output / "adapter_model.safetensors").read_bytes() != before[
        first.output / "adapter_model.safetensors"
    ]
    assert len(metrics(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter",
        "checkpoint",
        "config.toml",
        "metrics.csv",
        "metrics.jsonl",
        "summary.json",
    ]
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-2"]
    config.checkpointing = replace(config.checkpointing, resume=True)
    with pytest.raises(ConfigError, match=r"overwrite is set together with resume"):
        quiet(model, config)


@pytest.mark.unit
@pytest.mark.parametrize("left", ["metrics.csv", "summary.json", "model/config.json", "checkpoint/state.json"])
def test_whatever_an_earlier_run_left_counts(left: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("")
    with pytest.raises(ConfigError, match=rf"holds an earlier run \({re.escape(left)}\)"):
        quiet(tmp_path / "no model is read", config_for(data, tmp_path))


@pytest.mark.unit
def test_the_checkpoint_of_another_run_is_not_continued(model: Path, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quiet(model, config_for(data, tmp_path / name))
    shutil.rmtree(tmp_path / "a" / "checkpoint")
    (tmp_path / "b" / "checkpoint").rename(tmp_path / "a" / "checkpoint")
    config = config_for(data, tmp_path / "a", replace(SMALL, steps=6))
    config.checkpointing = replace(config.checkpointing, resume=True)
    with pytest.raises(
        FormatError, match=r"checkpoint: was left by run \w+, and summary\.json is that of run \w+; put"
    ):
        quiet(model, config)


@pytest.mark.chaos
def test_one_run_at_a_time_has_a_folder(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".entrenar.lock"
    lock.write_text("99999999\n")  # of a process that was killed: the system let go of it
    with run.prepared(config):
        assert lock.read_text() == f"{os.getpid()}\n"
        with pytest.raises(ConfigError, match=rf"run is in use by another run \(process {os.getpid()}\); wait for its"):
            quiet(model, config)
        again = replace(config, checkpointing=replace(config.checkpointing, resume=True))  # it has no checkpoint yet
        with pytest.raises(ConfigError, match=r"run is in use by another run"):
            quiet(model, again)
        refused = run_example("llama2_finetune_lora.py", "--model", model, "--data", data, "--output", tmp_path / "run")
        assert refused.returncode == 1 and f"in use by another run (process {os.getpid()})" in refused.stderr
    assert not list((tmp_path / "run").iterdir())
    with run.prepared(config):
        pass


# ---------------------------------------------------------------------- crashes and interrupts
@pytest.mark.chaos
def test_a_run_that_diverges_stops_and_keeps_its_last_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path, replace(SMALL, learning_rate=1e38, steps=9))
    config.lr_schedule = LRSchedule(name="warmup_cosine", warmup_steps=4)
    config.checkpointing = replace(config.checkpointing, every=1)
    with pytest.raises(NumericsError, match=r"loss of step 2 is \w+: the output of model\.layers\.0\.self_attn is not"):
        quiet(model, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint",
        "config.toml",
        "metrics.csv",
        "metrics.jsonl",
        "summary.json",
    ]
    assert [row["step"] for row in metrics(tmp_path)] == ["1"]


@pytest.mark.chaos
@pytest.mark.parametrize(
    "when", [("--checkpoint-every", "2"), ("--checkpoint-minutes", "1e-6")], ids=["by steps", "by time"]
)
def test_a_killed_run_resumes_to_the_files_of_one_that_was_not(
    when: tuple[str, str], model: Path, data: Path, tmp_path: Path
) -> None:
    files = ("--model", model, "--data", data)
    settings = (*SETTINGS[2:], "--dropout", "0.2", *when, "--steps", "12")
    whole = run_example("llama2_finetune_qlora.py", *files, *settings, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = start(*files, *settings, "--output", tmp_path / "run")
    assert killed.stdout is not None
    for printed in killed.stdout:
        if printed.startswith("step 3/"):  # there is a checkpoint
            break
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "run" / "adapter").exists(), "the run was over before it was killed"
    resumed = run_example("llama2_finetune_qlora.py", *files, *settings, "--output", tmp_path / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step" in resumed.stdout
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ours, theirs = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    assert [row | {"seconds": ""} for row in ours] == [row | {"seconds": ""} for row in theirs]
    for pattern in (
        r"held-out loss before: .*",
        r"loss │.*",
        r"Before: .*",
        r"After: .*",
    ):  # of the untrained model too
        assert re.findall(pattern, resumed.stdout) == re.findall(pattern, whole.stdout)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """The QLoRA example in the background, on one thread."""
    command = [sys.executable, str(ROOT / "examples" / "llama2_finetune_qlora.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heed_interrupts,
    )


def stopped(process: subprocess.Popen[str], line: str, *signals: int) -> str:
    """What a process says on standard error that is sent `signals` after it has printed `line`."""
    assert process.stdout is not None
    for printed in process.stdout:
        if printed.startswith(line):
            break
    for number in signals:
        process.send_signal(number)
    _, errors = process.communicate()
    assert errors.count("\n") == 1, errors
    return errors


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_writes_where_it_stands_and_resumes_to_the_same_bits(
    number: int, model: Path, data: Path, tmp_path: Path
) -> None:
    settings = (*SETTINGS[2:], "--steps", "60", "--dropout", "0.2", "--schedule", "constant", "--learning-rate", "1e-3")
    files = ("--model", model, "--data", data)
    process = start(*files, *settings, "--output", tmp_path / "run")
    errors = stopped(process, "step 3/", number)
    assert process.returncode == 128 + number
    found = re.fullmatch(
        r"interrupted: stopped after step (\d+) of 60; (.*)/step-\1 is written, and the same command with --resume "
        r"continues from there\.\n",
        errors,
    )
    assert found and found[2] == str(tmp_path / "run" / "checkpoint"), errors
    written = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert written == ["checkpoint", "config.toml", "metrics.csv", "metrics.jsonl", "summary.json"]
    assert len(metrics(tmp_path / "run")) == int(found[1])
    for output, resume in (("run", ("--resume",)), ("whole", ())):
        done = run_example("llama2_finetune_qlora.py", *files, *settings, "--output", tmp_path / output, *resume)
        assert (done.returncode, done.stderr) == (0, "")
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.chaos
def test_a_second_interrupt_ends_at_once_and_says_what_is_there(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(data, tmp_path)
    config.checkpointing = replace(config.checkpointing, every=2)

    def twice(trainer: Trainer) -> StepReport:
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(trainer)

    one_step = Trainer._train_step
    monkeypatch.setattr(Trainer, "_train_step", twice)
    monkeypatch.setattr(signal, "getsignal", lambda number: {2: signal.default_int_handler}.get(number, signal.SIG_DFL))
    with pytest.raises(interrupt.Interrupted, match=r"stopped after step 3 of 4; .*/step-2 is written, and") as ended:
        quiet(model, config)
    assert ended.value.status == 143
    assert signal.SIG_DFL is signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.chaos
def test_a_terminal_that_closes_may_say_so_twice(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(trainer: Trainer) -> StepReport:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGHUP)  # of the kernel
            os.kill(os.getpid(), signal.SIGHUP)  # of the shell
        return one_step(trainer)

    one_step = Trainer._train_step
    monkeypatch.setattr(Trainer, "_train_step", gone)
    monkeypatch.setattr(signal, "getsignal", lambda number: {2: signal.default_int_handler}.get(number, signal.SIG_DFL))
    with pytest.raises(interrupt.Interrupted, match=r"stopped after step 3 of 4; .*/step-3 is written, and") as ended:
        quiet(model, config_for(data, tmp_path))
    assert ended.value.status == 129


@pytest.mark.chaos
def test_a_program_that_ignores_a_closed_terminal_goes_on(model: Path, data: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with interrupt.heeded():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("call", "message"),
    [(1, r"stopped after step 0 of 4; nothing was written"), (2, r"adapter is written; the evaluation after training")],
)
def test_an_interrupt_around_training_says_what_is_written(
    call: int, message: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupted(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("entrenar.train.objective.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt, match=message):
        quiet(model, config_for(data, tmp_path / "run"))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists() == (call == 2)
    assert (tmp_path / "run").exists() == (call == 2)


@pytest.mark.chaos
def test_a_full_disk_at_the_last_checkpoint_costs_no_result(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("entrenar.train.checkpoint.save_safetensors", full)
    with pytest.raises(
        FormatError, match=r"adapter is written, and no checkpoint of the last step: .*step-4: cannot be"
    ):
        quiet(model, config_for(data, tmp_path))
    load_adapter(LLaMAModel.from_pretrained(model), tmp_path / "adapter")
    assert len(metrics(tmp_path)) == 4


@pytest.mark.chaos
def test_a_full_disk_during_training_says_what_stands(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, arrays: object) -> None:
        if "step-4" in str(path):
            raise OSError(28, "No space left on device")
        save_safetensors(path, arrays)  # type: ignore[arg-type]

    monkeypatch.setattr("entrenar.train.checkpoint.save_safetensors", full)
    config = config_for(data, tmp_path, replace(SMALL, steps=6))
    config.checkpointing = replace(config.checkpointing, every=2)
    message = (
        r"step-4: cannot be written \(No space.*\); .* place: stopped after step 4 of 6; .*/step-2 is written, and"
    )
    with pytest.raises(FormatError, match=message):
        quiet(model, config)


class _Full(io.StringIO):
    """A file on a disk that is full after `lines` lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.left = lines

    def write(self, text: str) -> int:
        self.left -= text.count("\n")
        if self.left < 0:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.mark.chaos
def test_a_standard_output_without_room_is_named_and_loses_no_step(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="standard output"):
        finetune(model, config_for(data, tmp_path / "none"), console=report.Output(file=_Full(0)))
    written = _Full(10_000)

    def fill(trainer: Trainer) -> StepReport:
        written.left = 0 if trainer.step == 2 else written.left
        return one_step(trainer)

    one_step = Trainer._train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", fill)
        message = (
            r"standard output cannot be written \(No space left on device\): stopped after step 3 of 4; .*/step-3 is"
        )
        with pytest.raises(EntrenarError, match=message):
            finetune(model, config_for(data, tmp_path / "run"), console=report.Output(file=written))


@pytest.mark.chaos
def test_a_closed_standard_output_is_one_sentence_and_loses_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    process = start("--model", model, "--data", data, *SETTINGS[2:], "--steps", "100000", "--output", tmp_path / "run")
    assert process.stdout is not None and process.stderr is not None
    for printed in process.stdout:
        if printed.startswith("step 3/"):
            break
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 1
    assert re.fullmatch(
        r"error: standard output was closed: stopped after step \d+ of 100000; .* --resume .*\n", errors
    )
    assert [path.name[:5] for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["step-"]
    command = f"exec {sys.executable} {ROOT}/examples/llama2_finetune_qlora.py --model {model} --data {data} --output "
    command += f"{tmp_path}/closed {' '.join(SETTINGS)} >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(7, "   7 s"), (3599, "3599 s"), (7200, "2.0 h"), (10 * 86400, "10 days"), (8.8e14, "over 100 years")],
)
def test_the_time_left_is_shown_sensibly(seconds: float, shown: str) -> None:
    assert report.duration(seconds) == shown


@pytest.mark.unit
def test_the_display_bears_more_steps_than_anyone_trains() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    with report.steps(console, 2**63 - 1, 0) as display:
        for step in (1, 2, 3):
            display(StepReport(step, 2.0, 1e-3, 1.0, 512, 100, 0.5))
            display.progress.refresh()
    assert "loss 2.0000" in out.getvalue()


@pytest.mark.unit
def test_a_resumed_run_keeps_its_date(model: Path, data: Path, tmp_path: Path) -> None:
    dated = tmp_path / "model"
    shutil.copytree(model, dated)
    template = json.loads((dated / "tokenizer_config.json").read_text())["chat_template"]
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%d plus %H %M %S %f') }}" + template)
    config = config_for(data, tmp_path / "run")
    quiet(dated, config)
    config = config_for(data, tmp_path / "run", replace(SMALL, steps=6))
    with pytest.raises(ConfigError, match="earlier run"):
        quiet(dated, config)
    config.checkpointing = replace(config.checkpointing, resume=True)
    result, _ = quiet(dated, config)
    assert len(result.reports) == 6


@pytest.mark.unit
def test_a_checkpoint_whose_first_evaluation_is_damaged_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path)
    config.checkpointing = replace(config.checkpointing, every=2)
    quiet(model, config)
    state = tmp_path / "checkpoint" / "step-4" / "state.json"
    table = json.loads(state.read_text())
    entries = dict(table["dict"])
    entries["baseline"] = {"dict": [["loss", {"value": None}]]}
    state.write_text(json.dumps({"dict": list(entries.items())}))
    seal(state.parent)
    config.checkpointing = replace(config.checkpointing, resume=True)
    with pytest.raises(EntrenarError, match="checkpoint: has no held-out loss of before"):
        quiet(model, config)


@pytest.mark.unit
def test_the_folder_is_tried_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("entrenar.train.folder.tempfile.TemporaryFile", full)
    config = config_for(tmp_path / "nothing.jsonl", tmp_path / "run")
    with (
        pytest.raises(ConfigError, match=r"run cannot be written \(.*: No space left on device\); choose another"),
        run.prepared(config),
    ):
        pass


@pytest.mark.unit
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("precision", "used"), [("auto", auto_precision()), ("highest", "highest"), ("high", "high")])
def test_precision_and_threads_are_those_of_the_run_while_it_runs(precision: str, used: str, tmp_path: Path) -> None:
    cpu.set_num_threads(2)
    training = Training(precision=precision, threads=1)
    config = config_for(tmp_path / "nothing.jsonl", tmp_path / "run", training)
    inside = None
    with contextlib.suppress(FormatError), run.prepared(config):
        inside = get_matmul_precision(), cpu.get_num_threads()
        raise FormatError("the run fails")
    assert inside == (used, 1)
    assert (get_matmul_precision(), cpu.get_num_threads()) == ("highest", 2)
