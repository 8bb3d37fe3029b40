"""The frame of every program: errors as one sentence, Ctrl-C as 130, everything else as the bug it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from entrenar.errors import EntrenarError


def run(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0 when it returns, 1 with one sentence on an EntrenarError, 130 on Ctrl-C."""
    try:
        main()
    except EntrenarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the result was not written.", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
