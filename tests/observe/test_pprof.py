"""profile.proto read by protocol buffers' own library, and collapsed stacks by their grammar."""

from __future__ import annotations

import gzip
import re
from typing import Any

import pytest

from entrenar.observe.peak import Peak
from entrenar.observe.pprof import INTERPRETER, WAITING, collapsed, pprof
from entrenar.observe.profile import Counts, Profile

pytestmark = pytest.mark.unit
PEAK = Peak("v4i", 2, 100.0, 200.0, 400.0, 10.0)
SHAPES = {
    ("linear_forward", "forward", (512, 1536, 576), "q4_1", "int16"): (10, 5.0, 6 * 10**14, 3 * 10**9),
    ("linear_forward", "", (512, 1536, 576), "q4_1", "int16"): (1, 0.5, 6 * 10**13, 3 * 10**8),
    ("silu", "backward", (1000,), "", "fp32"): (300, 1e-6, 1, 127),
    ("silu", "backward", None, "", "fp32"): (1, 1e-9, 128, 16384),
}
PROFILE = Profile.between(
    Counts(0.0, {}, {}, 0.0), Counts(10.0, SHAPES, {"forward": (1.5, 1.0), "": (0.25, 0.25)}, 0.0), PEAK
)
# google/pprof, proto/profile.proto: message: {field: (number, type)}; "*" repeats, a capital begins a message's name
MESSAGES = {
    "ValueType": {"type": (1, "int64"), "unit": (2, "int64")},
    "Sample": {"location_id": (1, "*uint64"), "value": (2, "*int64")},
    "Line": {"function_id": (1, "uint64"), "line": (2, "int64")},
    "Location": {"id": (1, "uint64"), "line": (4, "*Line")},
    "Function": {"id": (1, "uint64"), "name": (2, "int64"), "system_name": (3, "int64"), "filename": (4, "int64")},
    "Profile": {
        "sample_type": (1, "*ValueType"),
        "sample": (2, "*Sample"),
        "location": (4, "*Location"),
        "function": (5, "*Function"),
        "string_table": (6, "*string"),
        "time_nanos": (9, "int64"),
        "duration_nanos": (10, "int64"),
        "period_type": (11, "ValueType"),
        "period": (12, "int64"),
        "default_sample_type": (14, "int64"),
    },
}


def decoded(content: bytes) -> Any:
    """The message that protocol buffers' library reads; unknown fields, or a wrong type, are seen."""
    protobuf = pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields

    assert protobuf
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="pprof", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            spec = message.field.add(name=field, number=number)
            spec.label = kinds.LABEL_REPEATED if kind.startswith("*") else kinds.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind[0].isupper():
                spec.type, spec.type_name = kinds.TYPE_MESSAGE, f".pprof.{kind}"
            else:
                spec.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("pprof.Profile"))()
    found.ParseFromString(gzip.decompress(content))
    assert len(unknown_fields.UnknownFieldSet(found)) == 0
    return found


def read(content: bytes) -> dict[tuple[str, ...], list[int]]:
    """Stacks, outermost first, with their values."""
    found = decoded(content)
    text, functions = found.string_table, {each.id: each for each in found.function}
    locations = {each.id: text[functions[each.line[0].function_id].name] for each in found.location}
    return {
        tuple(locations[number] for number in reversed(sample.location_id)): list(sample.value)
        for sample in found.sample
    }


def test_protocol_buffers_library_reads_every_stack_and_value() -> None:
    kernel = "linear_forward 512x1536x576 q4_1 int16"
    assert read(pprof(PROFILE)) == {
        ("run", "step", "forward", kernel): [10, 5 * 10**9, 6 * 10**14, 3 * 10**9],
        ("run", kernel): [1, 5 * 10**8, 6 * 10**13, 3 * 10**8],
        ("run", "step", "backward", "silu 1000"): [300, 1000, 1, 127],
        ("run", "step", "backward", "silu other shapes"): [1, 1, 128, 16384],
        ("run", "step", "forward", INTERPRETER): [0, 10**9, 0, 0],
        ("run", "step", "forward", WAITING): [0, 5 * 10**8, 0, 0],
        ("run", INTERPRETER): [0, 25 * 10**7, 0, 0],
        ("run", WAITING): [0, 0, 0, 0],
    }


def test_the_table_of_strings_begins_with_none_and_the_types_are_named() -> None:
    found = decoded(pprof(PROFILE))
    text = found.string_table
    assert text[0] == ""
    assert [(text[each.type], text[each.unit]) for each in found.sample_type] == [
        ("calls", "count"),
        ("time", "nanoseconds"),
        ("flops", "count"),
        ("bytes", "bytes"),
    ]
    assert text[found.default_sample_type] == "time"
    assert found.duration_nanos == 10 * 10**9
    assert len(set(text)) == len(text)


def test_the_same_profile_gives_the_same_bytes() -> None:
    assert pprof(PROFILE) == pprof(PROFILE)


def test_an_empty_profile_is_a_message_too() -> None:
    empty = Profile.between(Counts(0.0, {}, {}, 0.0), Counts(0.0, {}, {}, 0.0), PEAK)
    assert read(pprof(empty)) == {}
    assert collapsed(empty) == ""


def test_collapsed_stacks_are_frames_and_microseconds() -> None:
    lines = collapsed(PROFILE).splitlines()
    assert all(re.fullmatch(r"run(;[^;]+)+ [1-9]\d*", line) for line in lines)
    assert "run;step;forward;linear_forward 512x1536x576 q4_1 int16 5000000" in lines
    assert f"run;step;forward;{WAITING} 500000" in lines
    assert not any("other shapes" in line for line in lines)  # a nanosecond
    total = sum(int(line.rsplit(" ", 1)[1]) for line in lines)
    assert total == round(1e6 * (PROFILE.kernel_seconds + PROFILE.outside_seconds))
