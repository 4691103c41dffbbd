"""Commands in this process: their parsers, and what they write."""

import csv
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable
from pathlib import Path

from streamview.cli.parser import build_parser

Run = Callable[..., tuple[int, str, str]]  # arguments of a command to its status, stdout and stderr; the fixture `run`


def subparsers() -> dict[str, ArgumentParser]:
    """The parser of every command, by its name."""
    (action,) = (action for action in build_parser()._actions if isinstance(action, _SubParsersAction))
    return dict(action.choices)


def rows_of(job: Path) -> list[dict[str, str]]:
    """The rows of a job's predictions.csv."""
    with (job / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))
