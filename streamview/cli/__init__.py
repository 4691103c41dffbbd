"""The command line: parses the arguments, calls one core function and shows its result.

Results go to stdout; progress, warnings and errors to stderr. Each command imports its own heavy dependencies, so that
``streamview --help`` is instant.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from streamview.cli.console import complain, one_line, warn
from streamview.cli.parser import build_parser
from streamview.cli.usage import check_place
from streamview.errors import AnnotationWarning, Cancelled, JobWarning, SlideWarning, StreamviewError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Arguments (default: those of the process).

    Returns
    -------
    int
        Exit status: 0 on success, 1 after an error or if a slide failed, 2 for an invalid command line (raised as `SystemExit`),
        130 when cancelled, 141 if the output's reader has gone.
    """
    # read by torch at its first allocation: huge pages make the large blocks of a step a fifth cheaper
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    from streamview.cli.commands import COMMANDS

    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show, warnings.showwarning)
            if getattr(options, "output", None) is not None:
                check_place("-o", options.output, folder=options.command in ("demo", "export"))
            if isinstance(getattr(options, "json", None), str):
                check_place("--json", options.json, folder=False)
            return COMMANDS[options.command](options, arguments)
    except (KeyboardInterrupt, Cancelled):
        complain("cancelled")
        return 130
    except StreamviewError as error:
        complain(f"error: {one_line(error)}")
        return 1
    except BrokenPipeError:
        # as in `streamview models | head`; the remaining buffer must not fail again when Python flushes it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _show(others: Callable[..., Any], message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
    """Print warnings about slides, annotations and jobs in the command's own form, and all others as Python does."""
    if issubclass(category, SlideWarning | AnnotationWarning | JobWarning):
        warn(str(message))
    else:
        others(message, category, *where, **how)
