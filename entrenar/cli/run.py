"""The frame of every program: errors as one sentence, Ctrl-C as 130, everything else as the bug it is."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from entrenar.config import named_stdout
from entrenar.errors import EntrenarError, printable

CLOSED = "error: standard output was closed, which ended the program; write it to a file to let it go on."


def run(main: Callable[[], object], *, debug: bool = False) -> NoReturn:
    """Run `main` and exit: 0, 1 with one sentence on an error, 130 on Ctrl-C; a run, 143 on SIGTERM, 129 on SIGHUP.

    With `debug` the traceback of an error comes before its sentence.
    `main` imports what it needs: a wrong environment variable or an early Ctrl-C shows during imports.
    """
    for name in ("stdout", "stderr"):  # closed from the start: nobody reads, and no file may get its number
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (as long as the process)
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal lacks must not end a run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with _traced() if debug else contextlib.nullcontext():
            _to_the_end(main)
    except EntrenarError as error:
        _fail(f"error: {error}", 1)
    except BrokenPipeError:
        _fail(CLOSED, 1)
    except OSError as error:  # a full disk, a file that vanished
        _fail(f"error: {error.filename or 'the system'}: {error.strerror or error}.", 1)
    except MemoryError:
        _fail("error: the memory is used up; use a shorter sequence, a smaller batch or gradient checkpointing.", 1)
    except KeyboardInterrupt as interrupt:
        _fail(f"interrupted: {str(interrupt) or 'nothing was written.'}", getattr(interrupt, "status", 130))
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # as rich ends a program
            _fail(CLOSED, 1)
        raise
    sys.exit(0)


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    """Print the traceback of whatever is raised, but of the end of the program."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, EntrenarError | OSError | MemoryError | KeyboardInterrupt):  # others print their own
            with contextlib.suppress(OSError):
                traceback.print_exc()
        raise


def _to_the_end(main: Callable[[], object]) -> None:
    """Run `main`, --help included, until its last line is out: a later failure would have no sentence."""
    try:
        main()
    finally:
        if sys.exc_info()[0] in (None, SystemExit):
            with named_stdout():
                sys.stdout.flush()


def _fail(message: str, status: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:  # so that the interpreter's last flush does not fail again
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError):  # the error stream may be closed as well
        print(printable(message), file=sys.stderr)
    sys.exit(status)
