"""`entrenar doctor`: what it says of this machine, and of one that is not as it should be."""

from __future__ import annotations

import json

import pytest

from entrenar._kernels import cpu
from entrenar.train.doctor import NEEDED, examine, remarks
from tests.train.builders import run_entrenar


@pytest.mark.unit
def test_a_person_and_a_program_read_the_same() -> None:
    ended = run_entrenar("doctor", "--json", HF_TOKEN="hf_secret", ENTRENAR_NUM_THREADS="1")
    assert (ended.returncode, ended.stderr) == (0, "") and "hf_secret" not in ended.stdout
    found = json.loads(ended.stdout)
    assert found["threads"] == 1 and found["threads_why"] == "ENTRENAR_NUM_THREADS=1"
    assert found["tier"] == cpu.tier() and found["openmp"] == cpu.has_openmp()
    assert found["peaks"]["fp32_gflops"] > 0 and found["peaks"]["read_gb_s"] > 0
    assert found["available_bytes"] <= found["memory_bytes"] and found["environment"]["HF_TOKEN"] == "(set)"
    assert all(found["installed"][name] for name in NEEDED)
    shown = run_entrenar("doctor", ENTRENAR_NUM_THREADS="1")
    assert shown.returncode == 0
    for text in (
        found["version"],
        found["tier"],
        "ENTRENAR_NUM_THREADS=1",
        "GFLOP/s fp32",
        "GB/s read",
        found["cache"],
    ):
        assert text in shown.stdout
    wrong = run_entrenar("doctor", "--jsn")
    assert (
        wrong.returncode == 2
        and wrong.stderr == "entrenar doctor: error: unknown argument --jsn; did you mean '--json'?\n"
    )


@pytest.mark.unit
def test_what_costs_speed_is_said() -> None:
    found = examine(measure=False)
    assert "peaks" not in found
    good = found | {"load": 0.0, "threads": 2, "cpus": 2, "affinity": 2, "cgroup_quota": None, "openmp": True}
    good["tier"] = good["tiers"][-1]
    assert remarks(good) == []
    for change, text in (
        ({"openmp": False}, "Compiled without threads"),
        ({"threads": 1, "threads_why": "OMP_NUM_THREADS=1"}, "1 threads where 2 CPUs may be used (OMP_NUM_THREADS=1)"),
        ({"threads": 8}, "8 threads on 2 CPUs"),
        ({"cgroup_quota": 0.5}, "2 threads on 0.5 CPUs"),
        ({"load": 9.0}, "The load is 9.0 on 2 CPUs"),
        ({"installed": dict.fromkeys(found["installed"])}, "numpy, safetensors"),
    ):
        (said,) = remarks(good | change)
        assert text in said
