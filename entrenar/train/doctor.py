"""What this machine and this installation are: what a report of a fault needs, and what a slow run is explained by."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import entrenar
from entrenar._kernels import cpu
from entrenar.io.hub import cache_directory
from entrenar.observe.hardware import available_memory, machine
from entrenar.observe.peak import machine_peak

# What is used where it is installed, beside what the package needs: extras, and peers of the tests.
OPTIONAL = (
    *("scikit-learn", "huggingface_hub", "opentelemetry-sdk", "prometheus-client", "tensorboard", "mlflow-skinny"),
    *("wandb", "trackio", "matplotlib", "pyarrow", "torch", "transformers", "peft"),
)
NEEDED = ("numpy", "safetensors", "ml_dtypes", "gguf", "tokenizers", "jinja2", "rich", "psutil")
VARIABLES = ("ENTRENAR_", "OMP_", "HF_")
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def examine(measure: bool = True) -> dict[str, Any]:
    """Everything as values that JSON holds; with `measure` the peaks too, of some two seconds."""
    threads, why = cpu.threads_at_import()
    quota = cpu.cgroup_quota()
    found: dict[str, Any] = {
        "version": entrenar._version(Path(entrenar.__path__[0])),
        "folder": str(Path(entrenar.__path__[0])),
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": machine()["cpu"],
        "tier": cpu.tier(),
        "tiers": cpu.supported_tiers(),
        "precisions": {name: cpu.effective_precision(name) for name in cpu.PRECISIONS},
        "threads": threads,
        "threads_why": why,
        "openmp": cpu.has_openmp(),
        "waiting": cpu.get_waiting(),
        "cpus": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cgroup_quota": quota if quota < 1 << 16 else None,
        "load": os.getloadavg()[0],
        "memory_bytes": psutil.virtual_memory().total,
        "available_bytes": available_memory(),
        "cache": str(cache_directory()),
        "installed": {name: _version(name) for name in (*NEEDED, *OPTIONAL)},
        "environment": _environment(),
    }
    if measure:
        peak = machine_peak()
        rates = {"fp32_gflops": peak.fp32, "int16_gops": peak.int16, "int8_gops": peak.int8, "read_gb_s": peak.read}
        found["peaks"] = {"threads": peak.threads, **rates}
    return found


def remarks(found: dict[str, Any]) -> list[str]:
    """What costs speed here, a sentence each with what to do."""
    said = []
    if not found["openmp"]:
        said.append("Compiled without threads: every kernel runs on one CPU; build with a compiler that has OpenMP.")
    allowed = min(found["affinity"] or found["cpus"], found["cgroup_quota"] or found["cpus"])
    if found["threads"] < allowed:
        said.append(f"{found['threads']} threads where {allowed:g} CPUs may be used ({found['threads_why']}).")
    if found["threads"] > allowed:
        said.append(
            f"{found['threads']} threads on {allowed:g} CPUs ({found['threads_why']}) wait for each other; use fewer."
        )
    if found["tier"] != found["tiers"][-1]:
        said.append(f"The tier is {found['tier']}, and this CPU has {found['tiers'][-1]}; unset ENTRENAR_ISA.")
    if found["load"] > (found["cpus"] or 1):
        said.append(f"The load is {found['load']:.1f} on {found['cpus']} CPUs: other programs take a share of them.")
    missing = [name for name in NEEDED if found["installed"][name] is None]
    if missing:
        said.append(f"{', '.join(missing)} is missing; install entrenar again.")
    return said


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _environment() -> dict[str, str]:
    """The variables that change what is done; of secrets only that they are set."""
    names = sorted(name for name in os.environ if name.startswith(VARIABLES))
    return {name: "(set)" if any(word in name for word in SECRET) else os.environ[name] for name in names}
