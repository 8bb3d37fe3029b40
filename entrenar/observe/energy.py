"""Energy that the processor packages took, where RAPL's counters are readable (often by root alone)."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
# Linux, Documentation/power/powercap: microjoules that wrap around at max_energy_range_uj.
COUNTER, RANGE = "energy_uj", "max_energy_range_uj"


class Energy:
    """Joules of all packages since it was made; call `joules` more often than a counter wraps, about once a minute."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        found = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
        self._packages = [path for path in found if path.name.count(":") == 1]  # parts of one have two
        self._last = self._read()
        self._total = 0

    def _read(self) -> list[int] | None:
        try:
            return [int((package / COUNTER).read_text()) for package in self._packages] or None
        except (OSError, ValueError):
            return None

    def joules(self) -> float | None:
        """Joules so far; None where a counter cannot be read."""
        now, before = self._read(), self._last
        if now is None or before is None:
            self._last = None
            return None
        for package, a, b in zip(self._packages, before, now, strict=True):
            self._total += b - a if b >= a else b - a + self._range(package)
        self._last = now
        return self._total / 1e6

    @staticmethod
    def _range(package: Path) -> int:
        try:
            return int((package / RANGE).read_text())
        except (OSError, ValueError):
            return 0
