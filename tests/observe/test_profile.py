"""Profiles: what is between two moments, the roofline, thread-seconds, and sentences that say what to do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from entrenar.observe.bottlenecks import bottlenecks
from entrenar.observe.peak import Peak
from entrenar.observe.profile import OTHER_SHAPES, Counts, Profile, Row, shape_name

pytestmark = pytest.mark.unit
PEAK = Peak("v4i", 4, 100.0, 200.0, 400.0, 10.0)
PRODUCT = ("linear_forward", "forward", (512, 1536, 576), "q4_1", "int16")
SLOW = ("silu", "backward", (1000,), "", "fp32")
BEFORE = Counts(10.0, {PRODUCT: (5, 1.0, 100, 200)}, {"forward": (1.0, 0.5)}, 0.0)
AFTER = Counts(
    20.0,
    {PRODUCT: (15, 6.0, 600 * 10**9 + 100, 10**9 + 200), SLOW: (3, 2.0, 10**6, 10**9)},
    {"forward": (2.5, 1.5), "checkpoint": (1.5, 0.25)},
    0.0,
)


def made(**changes: object) -> Profile:
    return replace(Profile.between(BEFORE, AFTER, PEAK, (3, 12)), **changes)  # type: ignore[arg-type]


def row(kernel: str, seconds: float, flops: int, moved: int, **more: object) -> Row:
    plain = Row(kernel, "8x8", "forward", "fp32", (512, 8), 1, seconds, flops, moved)
    return replace(plain, **more)  # type: ignore[arg-type]


def test_what_was_counted_before_is_taken_off() -> None:
    found = made()
    assert [(each.kernel, each.calls, each.seconds) for each in found.rows] == [
        ("linear_forward", 10, 5.0),
        ("silu", 3, 2.0),
    ]
    assert found.wall_seconds == 10
    assert found.outside == {"forward": (1.5, 1.0), "checkpoint": (1.5, 0.25)}


def test_a_shape_without_new_calls_is_no_row() -> None:
    assert Profile.between(AFTER, AFTER, PEAK).rows == ()


def test_the_share_of_the_peak_is_that_of_the_roof_which_takes_longer() -> None:
    product, slow = made().rows
    assert product.gflops == pytest.approx(120)
    assert product.share(PEAK) == pytest.approx(0.6)  # 600 GFLOP at 200 a second are 3 of the 5 seconds
    assert product.bound(PEAK) == "compute"
    assert slow.share(PEAK) == pytest.approx(0.05)  # 1 GB at 10 a second is 0.1 of the 2 seconds
    assert slow.bound(PEAK) == "memory"
    assert slow.lost(PEAK) == pytest.approx(1.9)


def test_an_arithmetic_that_the_tier_lacks_is_held_to_fp32() -> None:
    assert row("matmul", 1.0, 10**11, 1, arithmetic="int16").share(replace(PEAK, int16=0.0)) == pytest.approx(1.0)


def test_operands_from_the_caches_go_beyond_memorys_roof_and_lose_nothing() -> None:
    found = row("silu", 0.01, 1, 10**9)
    assert found.share(PEAK) == pytest.approx(10)
    assert found.lost(PEAK) == 0


def test_thread_seconds_are_parted_without_rest() -> None:
    parts = made().thread_seconds()
    assert parts == pytest.approx({"kernels": 28.0, "interpreter": 1.25, "waiting": 1.75, "single_threaded": 9.0})
    assert sum(parts.values()) == pytest.approx(10 * 4)


def test_kernels_of_other_threads_are_not_the_runs() -> None:
    assert made(elsewhere=2.0).kernel_seconds == pytest.approx(5.0)


def test_rows_of_all_phases_are_one_in_the_table() -> None:
    again = replace(made().rows[0], phase="backward")
    found = made(rows=(*made().rows, again)).kernels()
    assert [(each.kernel, each.phase, each.calls, each.seconds) for each in found] == [
        ("linear_forward", "", 20, 10.0),
        ("silu", "", 3, 2.0),
    ]


@pytest.mark.parametrize(
    ("extents", "weight", "name"),
    [
        ((512, 1536, 576), "q4_1", "512x1536x576 q4_1 int16"),
        ((7,), "", "7"),
        ((), "", ""),
        (None, "", OTHER_SHAPES),
    ],
)
def test_shapes_are_written_as_people_write_them(extents: tuple[int, ...] | None, weight: str, name: str) -> None:
    assert shape_name(extents, weight, "int16") == name


def test_json_has_what_readers_ask_for() -> None:
    table = json.loads(json.dumps(made().to_json(["a sentence"])))
    assert table["peak"] == {"gflops": 100.0, "gbs": 10.0, "gops_int16": 200.0, "gops_int8": 400.0}
    assert table["bottlenecks"] == ["a sentence"]
    assert (table["wall_seconds"], table["threads"], table["first_step"], table["last_step"]) == (10, 4, 3, 12)
    wanted = {"kernel", "shape", "calls", "seconds", "flops", "bytes", "gflops", "gbs", "share_of_peak", "bound"}
    assert set(table["kernels"][0]) == wanted


# ---------------------------------------------------------------------- bottlenecks
def test_bottlenecks_are_those_that_cost_most_beyond_the_peak() -> None:
    first, second, third = bottlenecks(made())
    assert first.startswith(
        "linear_forward takes 50.0 % of the time at 60 % of this machine's peak, which costs 20.0 %"
    )
    assert "512x1536x576 q4_1 int16 (compute-bound, 60 %)" in first
    assert second.startswith("silu takes 20.0 % of the time at 5 %")
    assert third.startswith(
        "The run waits without a CPU for 12.5 % of the time outside of kernels, most of it in check"
    )
    assert "checkpointing.every" in third


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (row("linear_forward", 1.0, 10**10, 1), "training.precision high"),
        (row("linear_forward", 1.0, 19 * 10**10, 1, arithmetic="int16"), "near what the machine can do"),
        (row("linear_forward", 1.0, 10**10, 1, arithmetic="int16"), "training.precision medium"),
        (row("linear_forward", 1.0, 10**10, 1, arithmetic="int16", extents=(8, 8)), "8 rows are few"),
        (row("linear_forward", 1.0, 10**10, 1, arithmetic="int8"), "cores of its own"),
        (row("skinny_backward_a", 1.0, 10**10, 1), "lora.target_modules"),
        (row("attention_forward", 1.0, 10**10, 1), "training.sequence_length"),
        (row("adam_step", 1.0, 10, 10**9), "training.gradient_accumulation"),
        (row("cross_entropy_forward", 1.0, 10, 10**9), "data.train_on_prompt"),
        (row("embedding_forward", 1.0, 10, 10**9), "fewer tokens"),
        (row("rms_norm_forward", 1.0, 10, 10**9), "moves memory"),
        (row("pow_forward", 1.0, 10**9, 10), "elementary functions"),
    ],
)
def test_each_kind_of_kernel_has_its_advice(found: Row, says: str) -> None:
    assert says in bottlenecks(made(rows=(found,), outside={}))[0]


@pytest.mark.parametrize(
    ("phase", "times", "says"),
    [
        ("data", (5.0, 5.0), "make batches sooner"),
        ("checkpoint", (5.0, 5.0), "checkpointing.every"),
        ("reduce", (5.0, 0.0), "the slowest one"),
        ("forward", (5.0, 5.0), "while 3 of 4 threads have nothing to do: larger operations"),
        ("", (5.0, 5.0), "most of it in what is between the phases"),
        ("optimizer", (5.0, 0.0), "make profile-llama"),
    ],
)
def test_what_is_outside_of_kernels_has_its_advice(phase: str, times: tuple[float, float], says: str) -> None:
    assert says in bottlenecks(made(rows=(), outside={phase: times}))[0]


def test_one_thread_leaves_no_others_idle() -> None:
    sentence = bottlenecks(made(rows=(), threads=1, outside={"forward": (5.0, 5.0)}))[0]
    assert "nothing to do" not in sentence
    assert "forward: larger" in sentence


def test_an_empty_profile_has_no_bottlenecks() -> None:
    empty = Profile.between(AFTER, AFTER, PEAK)
    assert bottlenecks(replace(empty, outside={})) == []
    assert empty.to_json([])["kernels"] == []
