"""Whole maps that are written and read piece by piece: in memory, or in a file without a name."""

from __future__ import annotations

import os
import tempfile
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor

from streamview.errors import MemoryBudgetError
from streamview.streaming.ops import layout

__all__ = ["Held", "Spilled", "Store"]

Span = tuple[int, int]


class Store(Protocol):
    """A map (N, C, H, W)."""

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Write the piece of these rows and columns."""

    def accumulate(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Add to what is there; what was never written is zero."""

    def read(self, rows: Span, cols: Span) -> Tensor:
        """The piece of these rows and columns, (N, C, h, w), not to be changed."""

    def result(self) -> Tensor:
        """The whole map."""


class Held:
    """A map in memory."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._whole: Tensor | None = None

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Write the piece of these rows and columns."""
        if self._whole is None:
            self._whole = self._empty(piece)
        self._whole[:, :, rows[0] : rows[1], cols[0] : cols[1]] = piece

    def accumulate(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Add to what is there; what was never written is zero."""
        if self._whole is None:
            self._whole = self._empty(piece).zero_()
        self._whole[:, :, rows[0] : rows[1], cols[0] : cols[1]] += piece

    def read(self, rows: Span, cols: Span) -> Tensor:
        """The piece of these rows and columns, a view."""
        return self.result()[:, :, rows[0] : rows[1], cols[0] : cols[1]]

    def result(self) -> Tensor:
        """The whole map."""
        if self._whole is None:
            raise AssertionError("no piece was added")
        return self._whole

    def _empty(self, piece: Tensor) -> Tensor:
        shape = (*piece.shape[:2], *self._size)
        return torch.empty(shape, dtype=piece.dtype, device=piece.device, memory_format=layout(piece))


class Spilled:
    """A map in a temporary file (rows of (W, C) for every image), which the system removes with the store.

    It is read and written, never mapped, so that its pages do not count as the process's memory. The folder is that of
    `tempfile`, which ``TMPDIR`` names.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._file = tempfile.TemporaryFile(prefix="streamview-")  # noqa: SIM115 - closed with the store
        weakref.finalize(self, self._file.close)
        self._like: Tensor | None = None

    def add(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Write the piece of these rows and columns."""
        self._like = piece[:0, :, :0, :0].new_empty((piece.shape[0], piece.shape[1], 0, 0))
        found = piece.permute(0, 2, 3, 1)
        # not `contiguous`, which leaves any stride to dimensions of length one
        pixels = torch.empty(found.shape, dtype=piece.dtype).copy_(found)
        for image, strip in enumerate(pixels):
            if cols == (0, self._size[1]):
                self._write(strip, image, rows[0], 0)
            else:
                for offset, row in enumerate(strip):
                    self._write(row, image, rows[0] + offset, cols[0])

    def accumulate(self, piece: Tensor, rows: Span, cols: Span) -> None:
        """Add to what is there; what was never written is zero."""
        if self._like is None:
            self._like = piece.new_empty((piece.shape[0], piece.shape[1], 0, 0))
        self.add(piece + self.read(rows, cols), rows, cols)

    def read(self, rows: Span, cols: Span) -> Tensor:
        """The piece of these rows and columns, a copy."""
        like = self._known()
        images, channels = like.shape[:2]
        out = torch.empty((images, rows[1] - rows[0], cols[1] - cols[0], channels), dtype=like.dtype)
        for image in range(images):
            if cols == (0, self._size[1]):
                self._fill(out[image], image, rows[0], 0)
            else:
                for offset in range(rows[1] - rows[0]):
                    self._fill(out[image, offset], image, rows[0] + offset, cols[0])
        return out.permute(0, 3, 1, 2).to(like.device)

    def result(self) -> Tensor:
        """The whole map."""
        return self.read((0, self._size[0]), (0, self._size[1]))

    def _known(self) -> Tensor:
        if self._like is None:
            raise AssertionError("no piece was added")
        return self._like

    def _offset(self, image: int, row: int, col: int) -> int:
        like = self._known()
        return ((image * self._size[0] + row) * self._size[1] + col) * like.shape[1] * like.element_size()

    def _write(self, part: Tensor, image: int, row: int, col: int) -> None:
        data, offset = _bytes(part), self._offset(image, row, col)
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise MemoryBudgetError(
                f"a map between two passes could not be written to {tempfile.gettempdir()}: {error.strerror}; free space there, set "
                "TMPDIR to a larger disk, or give more memory"
            ) from None

    def _fill(self, part: Tensor, image: int, row: int, col: int) -> None:
        data, offset = _bytes(part), self._offset(image, row, col)
        while data:
            count = os.preadv(self._file.fileno(), [data], offset)
            if count == 0:  # behind the end of a file that was never written there
                data[:] = bytes(len(data))
                return
            data, offset = data[count:], offset + count


def _bytes(part: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the processor."""
    flat: Any = part.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
