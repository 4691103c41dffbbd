"""What a command line may look like beyond what argparse knows: negative numbers, units, places, and errors that show the right usage."""

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
    """Says what is wrong with its own usage, and what may be meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # what begins with a minus and a digit is a value, such as -5,0,10,10: no option does
        self._negative_number_matcher = re.compile(r"-[0-9.]")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """Refuse what is unknown here, where the usage is known that it should have kept to."""
        arguments = list(args or ())
        given = arguments[: arguments.index("--")] if "--" in arguments else arguments
        below = self._commands()
        if below:
            self._check_command(below, given)
        else:
            self._check_options(given)
        options, rest = super().parse_known_args(arguments, namespace)
        if rest and not below:
            numbers = all(re.match(r"-?[0-9.]", part) for part in rest)
            self.error(f"not understood: {' '.join(rest)}{'; write the numbers of one option as 0,0,512,512' if numbers else ''}")
        return options, rest

    def _commands(self) -> Mapping[str, argparse.ArgumentParser]:
        found = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return found[0] if found else {}

    def _check_command(self, commands: Mapping[str, argparse.ArgumentParser], given: Sequence[str]) -> None:
        first = given[0] if given else ""
        if first.startswith("-"):
            if not self._knows(first):
                self.error(f"unknown option {first}: options of a command come after its name")
        elif first and first not in commands:
            close = get_close_matches(first, commands, 1)
            meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(commands)}"
            (commands[close[0]] if close else self).error(f"no command {first!r}; {meant}")

    def _check_options(self, given: Sequence[str]) -> None:
        for argument in given:
            if re.match("--?[^0-9.-]", argument) and not self._knows(argument):
                close = get_close_matches(argument.split("=")[0], self._option_string_actions, 1)
                self.error(f"unknown option {argument.split('=')[0]}{f'; did you mean {close[0]}?' if close else ''}")

    def _knows(self, argument: str) -> bool:
        """Whether it is an option of this command or the beginning of one, perhaps with its value."""
        name = argument.split("=")[0] if argument.startswith("--") else argument[:2]
        return any(option.startswith(name) for option in self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Print the usage of this command and what is wrong, and end with the status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def micrometres(text: str) -> float:
    """Read a number of micrometres, with or without a unit: ``0.5``, ``0.5um``, ``0.5 um/px``, ``0.1mm``.

    Raises
    ------
    argparse.ArgumentTypeError
        When it is no such number.
    """
    parts = _LENGTH.fullmatch(text)
    if parts is None:
        try:
            return float(text)  # nan and inf, which the command itself refuses
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected micrometres, such as 0.5 or 0.5um") from None
    return float(parts[1]) * (1000 if (parts[2] or "").lower() == "mm" else 1)


def check_place(option: str, text: str, *, folder: bool = True) -> None:
    """Refuse a place where nothing can be written, before anything is computed.

    Parameters
    ----------
    option
        Which named it.
    text
        The place; it need not exist.
    folder
        Whether a file that stands there is in the way; else the command itself says what it makes of that.

    Raises
    ------
    StreamviewError
        When it is empty or a URL, lies under a file, or the folder that it would be made in cannot be written to.
    """
    if not text.strip() or "://" in text:
        raise StreamviewError(f"{option} {text!r}: expected a path on this machine")
    place = Path(os.path.abspath(text))
    above = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if above == place and not place.is_dir():
        if folder:
            raise StreamviewError(f"{option} {text}: is a file, and the output is a folder; choose another name")
        above = place.parent
    if not above.is_dir():
        raise StreamviewError(f"{option} {text}: {above} is a file, so nothing can be written in it; choose another output")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise StreamviewError(f"{option} {text}: nothing can be written in {above} ({error.strerror}); choose another output") from error
