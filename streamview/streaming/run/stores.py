"""What a pass leaves for later: whole maps that are written and read piece by piece, in memory or in a file; carries in a file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from streamview.errors import MemoryBudgetError
from streamview.streaming.ops import layout

__all__ = ["Held", "Shelf", "Spilled", "Store"]

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
    """A map in memory, of the type of its pieces unless another is given."""

    def __init__(self, size: tuple[int, int], dtype: torch.dtype | None = None) -> None:
        self._size, self._dtype = size, dtype
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
        return torch.empty(shape, dtype=self._dtype or piece.dtype, device=piece.device, memory_format=layout(piece))


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
        _put(self._file, part, self._offset(image, row, col))

    def _fill(self, part: Tensor, image: int, row: int, col: int) -> None:
        _take(self._file, part, self._offset(image, row, col))


class Shelf:
    """Lists of tensors in a temporary file, which the system removes with the shelf; read and written, never mapped."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="streamview-")  # noqa: SIM115 - closed with the shelf
        weakref.finalize(self, self._file.close)
        self._end = 0
        self._known: dict[int, list[tuple[int, Tensor, torch.device] | None]] = {}

    def put(self, number: int, tensors: Sequence[Tensor | None]) -> None:
        """Write tensors of any dense layout under a number."""
        known: list[tuple[int, Tensor, torch.device] | None] = []
        for tensor in tensors:
            known.append(None if tensor is None else (self._end, torch.empty_like(tensor, device="meta"), tensor.device))
            if tensor is not None:
                _put(self._file, tensor.as_strided((tensor.numel(),), (1,)).cpu(), self._end)
                self._end += tensor.nbytes
        self._known[number] = known

    def take(self, number: int) -> list[Tensor | None]:
        """The tensors of a number, as they were."""
        found: list[Tensor | None] = []
        for known in self._known[number]:
            if known is None:
                found.append(None)
                continue
            offset, like, device = known
            flat = torch.empty(like.numel(), dtype=like.dtype)
            _take(self._file, flat, offset)
            found.append(flat.as_strided(like.shape, like.stride()).to(device))
        return found


def _put(file: IO[bytes], part: Tensor, offset: int) -> None:
    data = _bytes(part)
    try:
        while data:
            written = os.pwrite(file.fileno(), data, offset)
            data, offset = data[written:], offset + written
    except OSError as error:
        raise MemoryBudgetError(
            f"what did not fit into memory could not be written to {tempfile.gettempdir()}: {error.strerror}; free space there, set "
            "TMPDIR to a larger disk, or give more memory"
        ) from None


def _take(file: IO[bytes], part: Tensor, offset: int) -> None:
    data = _bytes(part)
    while data:
        count = os.preadv(file.fileno(), [data], offset)
        if count == 0:  # behind the end of a file that was never written there
            data[:] = bytes(len(data))
            return
        data, offset = data[count:], offset + count


def _bytes(part: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the processor."""
    flat: Any = part.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
