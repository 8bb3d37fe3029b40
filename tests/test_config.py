"""One definition of a configuration: TOML keys, flags and help from dataclass fields, and the files in configs/."""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar.config import (
    ADAPTER_SECTIONS,
    ArgumentParser,
    add_arguments,
    check_dataclass,
    commented,
    default_of,
    describe,
    dump_toml,
    from_arguments,
    from_table,
    load_toml,
    nearest,
    option,
    shipped_configurations,
    toml_value,
)
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAConfig
from entrenar.models.config import SECTIONS
from entrenar.train.config import TrainConfig, section_types

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.toml"))
TYPES: dict[str, Any] = {"model": LLaMAConfig, **section_types()}
KEYS = [(section, spec.name) for section, kind in TYPES.items() for spec in fields(kind)]
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@dataclass
class Inner:
    depth: int = option(1, help="how deep", unit="m", minimum=1, maximum=9)


@dataclass
class Sample:
    """Every kind of field but a section."""

    name: str = option(help="what it is called")
    size: int = option(3, help="how large", unit="tokens", minimum=1)
    rate: float = option(0.5, help="how fast, in %", above=0, below=1)
    on: bool = option(True, help="whether it runs")
    kind: str = option("big", help="which", choices=("big", "small"))
    limit: int | None = option(None, help="at most this many", minimum=2)
    scale: int | float = option(1, help="by how much")
    tags: list[str] = option(factory=lambda: ["a"], help="its tags")
    weights: list[float] | None = option(None, help="its weights")
    extra: dict[str, Any] | None = option(None, help="anything")

    def __post_init__(self) -> None:
        check_dataclass(self, "sample")


@dataclass
class Nested(Sample):
    inner: Inner = field(default_factory=Inner)


# ---------------------------------------------------------------------- tables
@pytest.mark.unit
def test_a_table_becomes_the_dataclass_with_defaults_for_what_is_left_out() -> None:
    expected = Nested("x", 3, 0.5, True, "big", None, 1, ["a"], None, None, Inner(1))
    assert from_table(Nested, {"name": "x"}, "s") == expected
    full = {
        "name": "y",
        "size": 4,
        "rate": 0.25,
        "on": False,
        "kind": "small",
        "limit": 7,
        "scale": 2,
        "tags": [],
        "weights": [1, 2.5],
        "extra": {"a": 1},
        "inner": {"depth": 2},
    }
    made = from_table(Nested, full, "s")
    assert made == Nested("y", 4, 0.25, False, "small", 7, 2, [], [1.0, 2.5], {"a": 1}, Inner(2))
    assert isinstance(made.scale, int)  # an integer stays one where both are allowed
    assert all(isinstance(weight, float) for weight in made.weights)
    assert isinstance(from_table(Sample, {"name": "x", "scale": 1.5}, "s").scale, float)
    assert from_table(Sample, {"name": "x"}, "s").tags is not from_table(Sample, {"name": "x"}, "s").tags


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"siez": 1}, r"^s\.siez is no known key; did you mean 'size'\?$"),
        ({"qqqq": 1}, r"^s\.qqqq is no known key; expected one of extra, inner, kind, limit, .*, weights\.$"),
        ({"size": 0}, r"^s\.size is 0, expected at least 1\.$"),
        ({"size": 1.5}, r"^s\.size is 1\.5, expected an integer\.$"),
        ({"size": "1"}, r"^s\.size is '1', expected an integer\.$"),
        ({"size": True}, r"^s\.size is true, expected an integer\.$"),
        ({"size": None}, r"^s\.size is null, expected an integer\.$"),
        ({"size": 2**63}, r"^s\.size is an integer of 64 bits, expected a number below 2\*\*63\.$"),
        ({"rate": 10**400}, r"^s\.rate is an integer of 1329 bits, expected a number below 2\*\*63\.$"),
        ({"rate": 0}, r"^s\.rate is 0\.0, expected more than 0\.$"),
        ({"rate": 1}, r"^s\.rate is 1\.0, expected less than 1\.$"),
        ({"rate": float("nan")}, r"^s\.rate is nan, expected a finite number\.$"),
        ({"rate": "fast"}, r"^s\.rate is 'fast', expected a number\.$"),
        ({"rate": False}, r"^s\.rate is false, expected a number\.$"),
        ({"on": 1}, r"^s\.on is 1, expected true or false\.$"),
        ({"kind": "smal"}, r"^s\.kind is 'smal'; did you mean 'small'\?$"),
        ({"kind": "zzz"}, r"^s\.kind is 'zzz'; expected one of big, small\.$"),
        ({"limit": 1}, r"^s\.limit is 1, expected at least 2\.$"),
        ({"limit": "1"}, r"^s\.limit is '1', expected an integer\.$"),
        ({"scale": "1"}, r"^s\.scale is '1', expected an integer or a number\.$"),
        ({"tags": "a"}, r"^s\.tags is 'a', expected a list\.$"),
        ({"tags": ["a", 1]}, r"^s\.tags is 1, expected text\.$"),
        ({"weights": [1, "b"]}, r"^s\.weights is 'b', expected a number\.$"),
        ({"weights": [2**70]}, r"^s\.weights is an integer of 71 bits"),
        ({"extra": []}, r"^s\.extra is \[\], expected a table\.$"),
        ({"inner": 3}, r"^s\.inner is 3, expected a table of keys\.$"),
        ({"inner": {"depth": 10}}, r"^s\.inner\.depth is 10, expected at most 9\.$"),
        ({"inner": {"dept": 1}}, r"^s\.inner\.dept is no known key; did you mean 'depth'\?$"),
    ],
)
def test_whatever_does_not_fit_is_one_sentence_with_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_table(Nested, {"name": "x"} | change, "s")


@pytest.mark.unit
def test_a_required_key_that_is_missing_says_what_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^s\.name is missing; what it is called\.$"):
        from_table(Sample, {}, "s")
    with pytest.raises(ConfigError, match=r"^s is \[1\], expected a table of keys\.$"):
        from_table(Sample, [1], "s")  # type: ignore[arg-type]


@pytest.mark.unit
def test_an_instance_made_in_code_is_held_against_the_same_ranges() -> None:
    with pytest.raises(ConfigError, match=r"^sample\.size is 0, expected at least 1"):
        Sample("x", size=0)
    with pytest.raises(ConfigError, match=r"^sample\.on is 'yes', expected true or false"):
        Sample("x", on="yes")  # type: ignore[arg-type]
    assert isinstance(Sample("x", weights=[1]).weights[0], float)


@pytest.mark.unit
def test_the_nearest_name_is_offered_only_where_one_is_near() -> None:
    assert nearest("q_porj", ["q_proj", "v_proj"]) == "did you mean 'q_proj'?"
    assert nearest("xyz", ["b", "a"]) == "expected one of a, b."


@pytest.mark.unit
def test_help_names_unit_and_default() -> None:
    lines = {spec.name: describe(spec) for spec in fields(Sample) if spec.metadata}
    assert lines["name"] == "what it is called; required"
    assert lines["size"] == "how large [tokens]; default 3"
    assert lines["limit"] == "at most this many; default unset"
    assert lines["tags"] == 'its tags; default ["a"]'
    assert lines["on"] == "whether it runs; default true"


# ---------------------------------------------------------------------- TOML
TOML_VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab c.\"'", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.property
@given(TOML_VALUES)
@settings(max_examples=300, deadline=None)
def test_any_value_is_written_so_that_toml_reads_it_back(value: Any) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}") == {"x": value}


@pytest.mark.property
@given(
    st.builds(
        Sample,
        name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        size=st.integers(1, 2**62),
        rate=st.floats(0, 1, exclude_min=True, exclude_max=True),
        on=st.booleans(),
        kind=st.sampled_from(["big", "small"]),
        limit=st.none() | st.integers(2, 100),
        tags=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=3),
        weights=st.none() | st.lists(st.floats(-1e9, 1e9), max_size=3),
        extra=st.none() | st.dictionaries(st.text("abc", min_size=1), st.integers(0, 9), max_size=3),
    )
)
@settings(max_examples=100, deadline=None)
def test_a_dumped_section_is_read_back_the_same(sample: Sample) -> None:
    assert from_table(Sample, tomllib.loads(dump_toml(sample, "s"))["s"], "s") == sample


@pytest.mark.unit
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file or directory\); expected a TOML"):
        load_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not valid TOML: "):
        load_toml(tmp_path / "bad.toml")


# ---------------------------------------------------------------------- flags
@dataclass
class Flags:
    size: int = option(3, help="how large, at most 100 %", unit="tokens", minimum=1)
    rate: float = option(0.5, help="how fast", above=0)
    on: bool = option(True, help="whether it runs")
    kind: str = option("big", help="which", choices=("big", "small"))
    limit: int | None = option(None, help="at most this many", minimum=2)
    path_name: str | None = option(None, help="where")
    tags: list[str] = option(factory=lambda: ["a"], help="its tags")
    parts: dict[str, int] = option(factory=dict, help="sizes by name")

    def __post_init__(self) -> None:
        check_dataclass(self, "flags")


def parse(*arguments: str, names: dict[str, str] | None = None) -> Flags:
    parser = ArgumentParser(prog="p")
    add_arguments(parser, Flags, None, names)
    return from_arguments(Flags, parser.parse_args(list(arguments)), names)


@pytest.mark.unit
def test_every_field_is_a_flag() -> None:
    assert parse() == Flags()
    arguments = [
        "--size",
        "7",
        "--rate",
        "1e-3",
        "--no-on",
        "--kind",
        "small",
        "--limit",
        "4",
        "--path-name",
        "x/y",
        "--tags",
        "b,c",
        "--parts",
        "b.c=4, d==5",
    ]
    assert parse(*arguments) == Flags(7, 0.001, False, "small", 4, "x/y", ["b", "c"], {"b.c": 4, "d=": 5})
    assert parse("--path-name", "7").path_name == "7"
    assert parse("--width", "9", names={"size": "width"}).size == 9


@pytest.mark.unit
def test_an_instance_gives_the_flags_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="p")
    add_arguments(parser, Flags, Flags(size=11, tags=["x", "y"]))
    assert from_arguments(Flags, parser.parse_args([])) == Flags(size=11, tags=["x", "y"])
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--size VALUE how large, at most 100 % [tokens] (default: 11)" in text
    assert '--tags VALUE its tags (default: ["x", "y"])' in text


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--siez", "1"], "p: error: unknown argument --siez; did you mean '--size'?\n"),
        (["--zzzzzz=1"], "p: error: unknown argument --zzzzzz; expected one of --help, --kind, --limit, --no-on, --on"),
        (["--size", "1.5"], "p: error: argument --size: '1.5' is not an integer\n"),
        (["--rate", "fast"], "p: error: argument --rate: 'fast' is not a number\n"),
        (["--limit", "x"], "p: error: argument --limit: 'x' is not an integer\n"),
        (["--parts", "b"], "p: error: argument --parts: 'b' is not NAME=VALUE\n"),
        (["--parts", "b=c"], "p: error: argument --parts: 'c' is not an integer\n"),
        (["--size"], "p: error: argument --size: expected one argument\n"),
    ],
)
def test_a_wrong_flag_ends_the_program_with_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*arguments)
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.unit
def test_a_flag_out_of_range_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"flags\.size is 0, expected at least 1"):
        parse("--size", "0")
    with pytest.raises(ConfigError, match=r"flags\.kind is 'bgi'; did you mean 'big'\?"):
        parse("--kind", "bgi")


@pytest.mark.unit
def test_flags_of_every_section_give_the_sections_defaults() -> None:
    for kind in section_types().values():
        parser = ArgumentParser()
        add_arguments(parser, kind)
        assert from_arguments(kind, parser.parse_args([])) == kind()
    assert isinstance(parser, argparse.ArgumentParser)


@pytest.mark.unit
def test_gradient_checkpointing_is_a_word_or_a_number_of_layers() -> None:
    kind = section_types()["training"]
    parser = ArgumentParser()
    add_arguments(parser, kind)

    def flag(text: str) -> Any:
        return from_arguments(kind, parser.parse_args([f"--gradient-checkpointing={text}"])).gradient_checkpointing

    for value in ("auto", "on", "off", 0, 7):
        assert from_table(kind, {"gradient_checkpointing": value}, "training").gradient_checkpointing == value
        assert flag(str(value)) == value
    for text in ("of", "7.5"):
        message = rf"gradient_checkpointing is '{text}'; expected an integer or one of 'auto', 'on', 'off'\."
        with pytest.raises(ConfigError, match=message):
            flag(text)
    with pytest.raises(ConfigError, match=r"gradient_checkpointing is -1, expected at least 0"):
        flag("-1")
    with pytest.raises(ConfigError, match=r"gradient_checkpointing is true, expected an integer or text"):
        from_table(kind, {"gradient_checkpointing": True}, "training")


# ---------------------------------------------------------------------- configs/
def sections_of(path: Path) -> dict[str, dict[str, str]]:
    """Settings of a configuration file, each with its comment, by section and key.

    A section or key that is commented out counts too. The comment is behind the setting, or above it in lines.
    """
    found: dict[str, dict[str, str]] = {}
    above: list[str] = []
    for line in path.read_text().splitlines():
        setting = None
        if header := re.fullmatch(r"(?:# )?\[(\w+)\]", line):
            keys = found.setdefault(header[1], {})
        elif setting := re.match(r"(?:# )?(?:# )?(\w+) =(?: |$)", line):
            keys[setting[1]] = f"{line}  # {' '.join(above)}" if above else line
        above = [*above, line.lstrip("# ")] if line.startswith("# ") and not (header or setting) else []
    return found


@pytest.mark.unit
@every_file
def test_every_key_of_a_file_has_its_help_unit_and_default_beside_it(path: Path) -> None:
    found = sections_of(path)
    assert list(found) == list(SECTIONS) == list(TYPES)
    for section, lines in found.items():
        assert list(lines) == [spec.name for spec in fields(TYPES[section])], section
        for spec in fields(TYPES[section]):
            assert lines[spec.name].endswith(f"  # {describe(spec)}"), lines[spec.name]


@pytest.mark.unit
@every_file
def test_every_key_of_a_file_is_read(path: Path) -> None:
    table = tomllib.loads(path.read_text())
    read: dict[str, Any] = {"model": LLaMAConfig.from_file(path), **vars(TrainConfig.from_file(path))}
    assert set(table) == {"model", "training", "lr_schedule", "data", "checkpointing", "observe", "preference"}
    for section, keys in table.items():
        assert {key: getattr(read[section], key) for key in keys} == keys


@pytest.mark.unit
@every_file
def test_the_sections_that_are_commented_out_are_valid_as_they_stand(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    for section in ADAPTER_SECTIONS:
        start = text.index(f"# [{section}]\n")
        block = list(itertools.takewhile(lambda line: line.startswith("# "), text[start:].splitlines()))
        other = tmp_path / f"{section}.toml"
        other.write_text(text[:start] + "\n".join(line.removeprefix("# ") for line in block))
        config = TrainConfig.from_file(other)
        assert config.adapter == section_types()[section]()


def wrong_value(default: Any) -> str:
    """A value of a type that no field with this default takes."""
    return '["x", 1]' if not isinstance(default, list) else "1"


@pytest.mark.unit
@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda name: name)
def test_a_wrong_type_and_a_misspelt_key_are_found_in_every_section(section: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    reader: Any = LLaMAConfig if section == "model" else TrainConfig
    default = next(default_of(spec) for spec in fields(TYPES[section]) if spec.name == key)
    path.write_text(f"[{section}]\n{key} = {wrong_value(default)}\n")
    with pytest.raises(ConfigError, match=rf"run\.toml: {section}\.{key} is .*, expected"):
        reader.from_file(path)
    path.write_text(f"[{section}]\n{key}x = 1\n")
    with pytest.raises(ConfigError, match=rf"run\.toml: {section}\.{key}x is no known key; did you mean '{key}'\?"):
        reader.from_file(path)


@pytest.mark.unit
def test_an_unknown_section_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[trainig]\nsteps = 1\n")
    for reader in (TrainConfig, LLaMAConfig):
        with pytest.raises(ConfigError, match=r"run\.toml: \[trainig\] is no known section; did you mean 'training'\?"):
            reader.from_file(path)


@pytest.mark.architecture
def test_no_key_is_defined_and_then_never_looked_at() -> None:
    used = {"bos_token_id"}  # the engine only carries it from file to file
    for path in set((ROOT / "entrenar").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                used.add(node.attr)
    for section, key in KEYS:
        assert key in used, f"[{section}] {key} has no effect"


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "9" * 5000, r"is not TOML that can be read: an integer has thousands of digits\.$"),
        ("a = " + "[" * 3000 + "]" * 3000, r"is not TOML that can be read: its brackets are nested too deeply\.$"),
        ("a = " + "{b = " * 3000 + "1" + "}" * 3000, r"is not TOML that can be read: its brackets are nested too"),
    ],
    ids=["digits", "brackets", "tables"],
)
def test_toml_beyond_the_reader_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_toml(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("value", "option", "message"),
    [
        ("", "data.path", r"^data\.path is empty; leave it out, or give it a value\.$"),
        (
            list(range(1000)),
            "observe.trace_file",
            r"^observe\.trace_file is \[0, 1, 2, 3, 4, 5, \.\.\.\], expected text\.$",
        ),
    ],
    ids=["empty", "long"],
)
def test_a_text_that_is_empty_or_something_long_is_refused_shortly(value: Any, option: str, message: str) -> None:
    section, key = option.split(".")
    with pytest.raises(ConfigError, match=message):
        from_table(section_types()[section], {key: value}, section)


@pytest.mark.unit
@pytest.mark.parametrize("form", ["{}", "{}.toml", "configs/{}", "configs/{}.toml", "{root}/configs/{}.toml"])
def test_a_shipped_file_is_found_by_name_from_any_folder(form: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = shipped_configurations()
    assert len(shipped) == len(FILES) >= 5
    for name, path in shipped.items():
        assert load_toml(form.format(name, root=ROOT)) == tomllib.loads(path.read_text()) != {}


@pytest.mark.unit
def test_a_file_of_the_readers_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "llama2").mkdir(parents=True)  # a folder of the name is no file
    (tmp_path / "llama2" / "tiny").mkdir(parents=True)
    assert "model" in load_toml("configs/llama2/tiny.toml")
    assert "model" in load_toml("llama2/tiny")
    (tmp_path / "configs" / "llama2" / "tiny.toml").write_text("[training]")
    assert load_toml("configs/llama2/tiny.toml") == {"training": {}}


@pytest.mark.unit
def test_a_file_that_is_missing_is_said_with_those_that_are_shipped(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    message = (
        r"^llama2/9b: cannot be read \(No such file .+\); expected a TOML .+, or one of .*llama2/7b, llama2/tiny\.$"
    )
    with pytest.raises(ConfigError, match=message):
        load_toml("llama2/9b")


@pytest.mark.unit
def test_a_line_of_toml_is_never_wider_than_120_columns() -> None:
    text = dump_toml(Sample("x", tags=["t" * 50, "u" * 50]), "s")
    assert max(map(len, text.splitlines())) <= 120
    assert from_table(Sample, tomllib.loads(text)["s"], "s").tags == ["t" * 50, "u" * 50]
    wide = commented('key = "value"', "word " * 40 + "; default 1")
    assert max(map(len, wide)) <= 120
    assert wide[-1] == 'key = "value"'
    assert " ".join(line.removeprefix("# ") for line in wide[:-1]).split() == ("word " * 40 + "; default 1").split()
