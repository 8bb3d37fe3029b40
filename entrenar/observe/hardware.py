"""What the machine has."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# files of limit and usage; memory.stat's name of the pages that can be taken back
CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory() -> int:
    """Bytes that this process can still take: the machine's free memory, capped by the limits of its cgroups."""
    import psutil

    return int(max(0, min(psutil.virtual_memory().available, *_cgroup_rooms())))


def machine() -> dict[str, str | int]:
    """The processor's name, the CPUs that this process may use, bytes of memory, the system and Python's version."""
    import psutil

    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return {
        "cpu": found[1] if found else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cgroup_folders(controller: str, cgroups: Path, membership: Path) -> list[tuple[bool, Path]]:
    """The cgroups of this process that have `controller`, and those above them, each with whether it is of version 2.

    `cgroups` is where they are mounted, `membership` the file that says which are this process's.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        root = cgroups if number == "0" else cgroups / controller
        leaf = root / path.lstrip("/")
        found += [(number == "0", folder) for folder in (leaf, *leaf.parents) if folder.is_relative_to(root)]
    return found


def _cgroup_rooms() -> list[float]:
    """Bytes that the memory cgroups of this process, and those above them, have left; infinity for no limit."""
    folders = cgroup_folders("memory", CGROUPS, MEMBERSHIP)
    return [math.inf, *(_room(folder, *(CGROUP_V2 if second else CGROUP_V1)) for second, folder in folders)]


def _room(folder: Path, limit: str, usage: str, reclaimable: str) -> float:
    """Limit - usage of one cgroup; infinity where it has no limit, or is not visible from this container."""
    try:
        left = int((folder / limit).read_text()) - int((folder / usage).read_text())
        found = re.search(rf"^{reclaimable} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # ValueError: "max"
        return math.inf
    return left + (int(found[1]) if found else 0)
