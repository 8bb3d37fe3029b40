"""The child side of a measurement: makes one object and calls its methods as the parent asks, a JSON line at a time.

    python benchmarks/worker.py MODULE CLASS '{"argument": "of the constructor"}'

A side of a comparison lives in a process of its own: its threads never meet the other side's, and its peak memory is
its own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback


def main(module: str, name: str, arguments: str) -> None:
    """Answer {"method": ..., "arguments": {...}} with {"value": ...} or {"error": ...} until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    try:
        side = getattr(importlib.import_module(module), name)(**json.loads(arguments))
        channel.write(json.dumps({"value": None}) + "\n")
        for line in sys.stdin:
            request = json.loads(line)
            value = getattr(side, request["method"])(**request["arguments"])
            channel.write(json.dumps({"value": value}) + "\n")
    except Exception:
        channel.write(json.dumps({"error": traceback.format_exc()}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
