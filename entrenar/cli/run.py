"""The frame of every program: errors as one sentence, Ctrl-C as 130, everything else as the bug it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from entrenar.errors import EntrenarError, printable


def run(main: Callable[[], object]) -> NoReturn:
    """Run `main` and exit: 0, 1 with one sentence on an error of the input or the machine, 130 on Ctrl-C.

    `main` imports what it needs: a wrong environment variable or an early Ctrl-C shows during imports.
    """
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal lacks must not end a run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        main()
    except EntrenarError as error:
        _fail(f"error: {error}", 1)
    except OSError as error:  # a full disk, a closed pipe, a file that vanished
        _fail(f"error: {error.filename or 'the system'}: {error.strerror or error}.", 1)
    except MemoryError:
        _fail("error: the memory is used up; use a shorter sequence, a smaller batch or gradient checkpointing.", 1)
    except KeyboardInterrupt as interrupt:
        _fail(f"interrupted: {str(interrupt) or 'nothing was written.'}", 130)
    sys.exit(0)


def _fail(message: str, status: int) -> NoReturn:
    print(printable(message), file=sys.stderr)
    sys.exit(status)
