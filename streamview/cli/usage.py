"""Parsing beyond argparse: negative numbers, units, output paths, and errors that show the right command's usage."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from streamview.errors import StreamviewError

__all__ = ["Parser", "check_place", "micrometres"]

_LENGTH = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*(um|µm|μm|mm)?(?:/px)?\s*", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors show its own usage and suggest near matches."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # no option starts with a minus and a digit, so -5,0,10,10 is a value
        self._negative_number_matcher = re.compile(r"-[0-9.]")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Reject unknown arguments in the parser of their command, whose usage is the one to show."""
        arguments = list(args or ())
        before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
        commands = self._commands()
        if commands:
            self._check_command(commands, before_dashes)
        else:
            self._check_options(before_dashes)
        options, rest = super().parse_known_args(arguments, namespace)
        if rest and not commands:
            numbers = all(re.match(r"-?[0-9.]", part) for part in rest)
            self.error(f"not understood: {' '.join(rest)}{'; write the numbers of one option as 0,0,512,512' if numbers else ''}")
        return options, rest

    def _commands(self) -> Mapping[str, argparse.ArgumentParser]:
        choices = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return choices[0] if choices else {}

    def _check_command(self, commands: Mapping[str, argparse.ArgumentParser], arguments: Sequence[str]) -> None:
        first = arguments[0] if arguments else ""
        if first.startswith("-"):
            if not self._knows(first):
                self.error(f"unknown option {first}: options of a command come after its name")
        elif first and first not in commands:
            close = get_close_matches(first, commands, 1)
            suggestion = f"did you mean {close[0]}?" if close else f"there are {', '.join(commands)}"
            (commands[close[0]] if close else self).error(f"no command {first!r}; {suggestion}")

    def _check_options(self, arguments: Sequence[str]) -> None:
        for argument in arguments:
            if re.match("--?[^0-9.-]", argument) and not self._knows(argument):
                close = get_close_matches(argument.split("=")[0], self._option_string_actions, 1)
                self.error(f"unknown option {argument.split('=')[0]}{f'; did you mean {close[0]}?' if close else ''}")

    def _knows(self, argument: str) -> bool:
        """Whether it is an option of this command or an abbreviation of one, perhaps with its value."""
        name = argument.split("=")[0] if argument.startswith("--") else argument[:2]
        return any(option.startswith(name) for option in self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Print this command's usage and the error, and exit with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def micrometres(text: str) -> float:
    """Parse a number of micrometres, with or without a unit: ``0.5``, ``0.5um``, ``0.5 um/px``, ``0.1mm``.

    Raises
    ------
    argparse.ArgumentTypeError
        If it is not such a number.
    """
    parts = _LENGTH.fullmatch(text)
    if parts is None:
        try:
            return float(text)  # nan and inf, which the command itself rejects
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected micrometres, such as 0.5 or 0.5um") from None
    return float(parts[1]) * (1000 if (parts[2] or "").lower() == "mm" else 1)


def check_place(option: str, text: str, *, folder: bool = True) -> None:
    """Reject an output path that cannot be written, before anything is computed.

    Parameters
    ----------
    option
        The option that gave it.
    text
        The path; it need not exist.
    folder
        Whether the output is a folder, so that an existing file is an error; otherwise the command itself handles an existing file.

    Raises
    ------
    StreamviewError
        If it is empty or a URL, lies below a file, or its parent folder is not writable.
    """
    if not text.strip() or "://" in text:
        raise StreamviewError(f"{option} {text!r}: expected a path on this machine")
    path = Path(os.path.abspath(text))
    existing = next(ancestor for ancestor in (path, *path.parents) if os.path.lexists(ancestor))
    if existing == path and not path.is_dir():
        if folder:
            raise StreamviewError(f"{option} {text}: is a file, but the output is a folder; choose another name")
        existing = path.parent
    if not existing.is_dir():
        raise StreamviewError(f"{option} {text}: {existing} is a file, so nothing can be written in it; choose another output")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise StreamviewError(f"{option} {text}: cannot write in {existing} ({error.strerror}); choose another output") from error
