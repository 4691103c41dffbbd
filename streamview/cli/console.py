"""What the user sees: lines, bars with the time left, and what the work took."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

from streamview.errors import Cancelled, name_options
from streamview.progress import Step

__all__ = ["Bars", "amount", "complain", "one_line", "say", "warn"]


def say(line: str) -> None:
    """Print a line of the result at once, also into a pipe; what the output cannot encode (a file name that is no UTF-8) is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def complain(line: str) -> None:
    """Print a line on stderr; what it names as an argument of Python is an option here."""
    print(_encodable(name_options(line)), file=sys.stderr, flush=True)


def _encodable(line: str) -> str:
    """With the bytes of file names that are no UTF-8 written out, which a terminal would refuse."""
    return line.encode("utf-8", "backslashreplace").decode()


def warn(line: str) -> None:
    """Print what the reader of a result must know, on stderr."""
    complain(f"warning: {line}")


def amount(size: float) -> str:
    """Bytes for people: ``"1.9 GB"``, ``"21 MB"``; as `streamview.streaming.plan.plan.format_bytes`, without loading torch."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} KB"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


class Bars:
    """Draws steps as progress bars on stderr, and cancels: the `Report` of every command.

    Each task has its own bar with the rate and the time left; where stderr is no terminal, a line a minute and one when it is done.
    While its context lasts, a first Ctrl-C stops the work at its next step, where everything can be tidied up, and a second one at once;
    on leaving it the terminal is clean again.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._cancelled = False
        self._minute = 0  # of the running task, said last
        self._before: Any = None

    def __call__(self, step: Step) -> None:
        """Show a step.

        Raises
        ------
        Cancelled
            When the user asked for it.
        """
        if self._cancelled:
            raise Cancelled("stopped by the user")
        if sys.stderr.isatty():
            self._draw(step)
        elif step.done == step.total:
            complain(f"{step.task}: {step.total} steps, {step.elapsed:.1f} s")
        elif int(step.elapsed // 60) > self._minute and step.remaining is not None:
            complain(f"{step.task}: {step.done} of {step.total} steps, {step.remaining / 60:.0f} min left")
        self._minute = int(step.elapsed // 60)

    def _draw(self, step: Step) -> None:
        from tqdm import tqdm

        if self._bar is not None and step.done < self._bar.n:  # the task began again
            self.close()
        if self._bar is None:
            form = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {rate_fmt}, {elapsed} gone, {remaining} left"
            self._bar = tqdm(total=step.total, desc=step.task, unit="step", bar_format=form, file=sys.stderr, dynamic_ncols=True)
        self._bar.update(step.done - self._bar.n)
        if step.done == step.total:
            self.close()

    def close(self) -> None:
        """End the bar being drawn, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._cancelled:
            raise KeyboardInterrupt
        self._cancelled = True
        # not print: a handler may interrupt another print
        os.write(2, b"\ncancelling at the next step; Ctrl-C again stops at once\n")

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)
        self.close()
