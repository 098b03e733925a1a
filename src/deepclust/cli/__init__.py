"""The command line: ``deepclust demo | fit | predict | evaluate | datasets``.

Thin: options come from the estimator's fields, numbers from the library. It needs the extra
``cli`` (typer and rich), and says so when they are missing.
"""

from __future__ import annotations

import contextlib
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 for success, 2 for wrong input, 130 when interrupted."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.stderr.write(
            f"Error: the command line needs {error.name}, which is not installed; "
            'pip install "deepclust[cli]" brings it.\n'
        )
        sys.exit(2)
    with contextlib.suppress(ValueError):  # only a program's main thread may ask for signals
        # A polite kill tidies up like any other end.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    app(prog_name="deepclust")
