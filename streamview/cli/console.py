"""Output of the command line: lines, warnings, and progress bars with the time left."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

from streamview.errors import Cancelled, name_options
from streamview.progress import Step, format_steps

__all__ = ["Bars", "amount", "complain", "one_line", "say", "warn"]


def say(line: str) -> None:
    """Print a line of the result and flush; characters that the output cannot encode (file names that are not UTF-8) are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def complain(line: str) -> None:
    """Print a line on stderr, with options in place of the Python arguments it names."""
    print(_encodable(name_options(line)), file=sys.stderr, flush=True)


def _encodable(line: str) -> str:
    """Escape the bytes of file names that are not UTF-8, which a terminal would reject."""
    return line.encode("utf-8", "backslashreplace").decode()


def warn(line: str) -> None:
    """Print a warning on stderr."""
    complain(f"warning: {line}")


def amount(size: float) -> str:
    """Format bytes: ``"1.9 GB"``, ``"21 MB"``; the same as `streamview.streaming.plan.plan.format_bytes`, without loading torch."""
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{size / 2**10:.0f} KB"


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())


class Bars:
    """Progress bars on stderr, and cancellation: the `Report` of every command.

    Each task has its own bar with rate and time left; where stderr is not a terminal, one line per minute and one at the end.
    Inside the context, the first Ctrl-C cancels at the next step, so that everything is cleaned up, and the second interrupts at once.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._cancelled = False
        self._minute = 0  # of the current task, last reported
        self._previous_handler: Any = None

    def __call__(self, step: Step) -> None:
        """Show a step.

        Raises
        ------
        Cancelled
            After Ctrl-C.
        """
        self.check()
        if sys.stderr.isatty():
            self._draw(step)
        elif step.done == step.total:
            complain(f"{step.task}: {format_steps(step.total)}, {step.elapsed:.1f} s")
        elif int(step.elapsed // 60) > self._minute and step.remaining is not None:
            complain(f"{step.task}: {step.done} of {format_steps(step.total)}, {step.remaining / 60:.0f} min left")
        self._minute = int(step.elapsed // 60)

    def check(self) -> None:
        """Go on, or cancel.

        Raises
        ------
        Cancelled
            After Ctrl-C.
        """
        if self._cancelled:
            raise Cancelled("stopped by the user")

    def _draw(self, step: Step) -> None:
        from tqdm import tqdm

        if self._bar is not None and step.done < self._bar.n:  # the task restarted
            self.close()
        if self._bar is None:
            form = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {rate_fmt}, {elapsed} gone, {remaining} left"
            self._bar = tqdm(total=step.total, desc=step.task, unit="step", bar_format=form, file=sys.stderr, dynamic_ncols=True)
        self._bar.update(step.done - self._bar.n)
        if step.done == step.total:
            self.close()

    def close(self) -> None:
        """Close the current bar, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._cancelled:
            raise KeyboardInterrupt
        self._cancelled = True
        # not print: the handler may interrupt another print
        os.write(2, b"\ncancelling at the next step; Ctrl-C again stops at once\n")

    def __enter__(self) -> Self:
        self._previous_handler = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._previous_handler)
        self.close()
