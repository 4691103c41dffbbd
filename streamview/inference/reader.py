"""The pixels that the passes of a run read: decoded once where there is room, and one part ahead of the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from streamview.inference.changes import Change
from streamview.networks.cards import ModelCard
from streamview.networks.suitability import Overview
from streamview.slides.padding import AnySampler
from streamview.slides.readahead import ReadAhead
from streamview.streaming.call import Call
from streamview.streaming.plan.plan import Plan
from streamview.streaming.step import Span, build_grid

__all__ = ["PixelReader"]


class PixelReader:
    """Reads the normalised pixels of a region. Use it as a context manager: what it caches does not outlive it.

    Pixel p becomes ``(p / 255 - mean) / std``.

    Parameters
    ----------
    sampler
        The region on the network's grid.
    inside
        Height and width of the region's own part of the grid, without padding.
    card
        Mean and standard deviation of the network's pixels.
    background
        RGB (0..255) of the slide where there is no tissue.
    call
        For which it reads: the device, and the type of the pixels.
    caches
        Whether decoded parts stay on the device, as uint8, for later passes.

    Attributes
    ----------
    overview
        Of the pixels that were read.
    background
        The normalised background (1, 3, 1, 1).
    """

    def __init__(
        self,
        sampler: AnySampler,
        inside: tuple[int, int],
        card: ModelCard,
        background: tuple[int, int, int],
        call: Call,
        caches: bool,
    ) -> None:
        self.overview = Overview(inside)
        self._sampler, self._device, self._dtype, self._caches = sampler, call.device, call.dtype, caches
        self._inside, self._exact = inside, call.gathered or torch.float32
        self._change: Change | None = None
        std, mean = (torch.tensor(v, device=call.device).view(1, 3, 1, 1) for v in (card.std, card.mean))
        # as p * scale - shift
        self._scale, self._shift = 1 / (255 * std), mean / std
        self.background = torch.tensor(background, dtype=torch.float32, device=call.device).view(1, 3, 1, 1) * self._scale - self._shift
        self._last: tuple[tuple[int, int, int, int], Tensor] | None = None
        self._ahead: ReadAhead[Tensor] | None = None
        self._cache: dict[tuple[int, int, int, int], Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._last = None
        self._cache.clear()

    @property
    def reads_ahead(self) -> bool:
        """Whether parts are read in a thread: on CUDA, where the processor is idle meanwhile."""
        return self._device.type == "cuda"

    def pixels(self, rows: Span, cols: Span) -> Tensor:
        """Normalised pixels of a part of the grid, (1, 3, h, w) in the type of the streamed part, changed where that was asked for."""
        image = self._read(rows, cols)
        return (image if self._change is None else self._changed(image, rows, cols, self._change)).to(self._dtype)

    @property
    def black(self) -> Tensor:
        """Normalised black (1, 3, 1, 1)."""
        return -self._shift

    @property
    def range(self) -> Tensor:
        """The range of pixel values, 0..255, in normalised units: (1, 3, 1, 1)."""
        return 255 * self._scale

    @contextlib.contextmanager
    def changed_by(self, change: Change | None) -> Iterator[None]:
        """Hand out changed pixels of the region, while what `reduce` and `attribute` multiply by stays; what is padded stays too."""
        self._change = change
        try:
            yield
        finally:
            self._change = None

    def _changed(self, image: Tensor, rows: Span, cols: Span, change: Change) -> Tensor:
        bottom, right = min(rows[1], self._inside[0]), min(cols[1], self._inside[1])
        if (bottom, right) == (rows[1], cols[1]):
            return change(image, rows, cols)
        if bottom <= rows[0] or right <= cols[0]:
            return image
        height, width = bottom - rows[0], right - cols[0]
        image = image.clone()
        image[:, :, :height, :width] = change(image[:, :, :height, :width], (rows[0], bottom), (cols[0], right))
        return image

    def reduce(self, grad: Tensor, rows: Span, cols: Span, scale: float = 1.0) -> Tensor:
        """Both maps of a finished part of the image's gradient (1, 3, h, w), which is `scale` times too large: float32 (2, h, w)."""
        grad = self._unscaled(grad, scale)
        signed = (self._read(rows, cols) - self.background).mul_(grad).sum(1)
        return torch.stack([grad.abs().amax(1), signed]).squeeze(1).to(torch.float32).cpu()

    def attribute(self, baseline: Tensor, grad: Tensor, rows: Span, cols: Span, scale: float = 1.0) -> Tensor:
        """Gradient x (pixels - baseline) of each channel, as `reduce`: float32 (3, h, w); zero where the region is padded."""
        product = (self._read(rows, cols) - baseline).mul_(self._unscaled(grad, scale))[0]
        product[:, max(self._inside[0] - rows[0], 0) :] = 0
        product[:, :, max(self._inside[1] - cols[0], 0) :] = 0
        return product.to(torch.float32).cpu()

    def _unscaled(self, grad: Tensor, scale: float) -> Tensor:
        grad = grad.to(self._exact)
        return grad / scale if scale != 1 else grad

    @contextlib.contextmanager
    def reading(self, call: Call, plan: Plan, *, backwards: bool = False) -> Iterator[None]:
        """Decode each part of a pass while the one before is computed, where that saves time."""
        order = [part for part in read_order(call, plan) if (*part[0], *part[1]) not in self._cache] if self.reads_ahead else []
        if not order:
            yield
            return
        with ReadAhead(self.fetch, order[::-1] if backwards else order) as self._ahead:
            try:
                yield
            finally:
                self._ahead = None

    def fetch(self, rows: Span, cols: Span) -> Tensor:
        """Pixels of a part of the grid, uint8 (h, w, 3), in memory that the device reads by itself."""
        array = self._sampler.read(*rows, *cols)
        self.overview.add(array, rows, cols)
        decoded = torch.from_numpy(array)
        return decoded.pin_memory() if self._device.type == "cuda" else decoded

    def _read(self, rows: Span, cols: Span) -> Tensor:
        """Normalised pixels of a part of the grid, (1, 3, h, w), float32 unless the call is of doubles; the last part is remembered."""
        key = (*rows, *cols)
        if self._last is None or self._last[0] != key:
            part = self._cache.get(key)
            if part is None:
                decoded = self.fetch(rows, cols) if self._ahead is None else self._ahead.read(rows, cols)
                part = decoded.to(self._device, non_blocking=True)
                if self._caches:
                    self._cache[key] = part
            # cuDNN works on (N, C, H, W) in float32, and would lay out anew whatever comes with the channels last
            planes = self._device.type == "cuda" and self._dtype == torch.float32
            layout = torch.contiguous_format if planes else torch.preserve_format
            image = part.permute(2, 0, 1)[None].to(self._exact, memory_format=layout).mul_(self._scale).sub_(self._shift)
            self._last = key, image
        return self._last[1]


def read_order(call: Call, plan: Plan) -> list[tuple[Span, Span]]:
    """Rows and columns of the parts of the image as a forward pass reads them."""
    parts: list[tuple[Span, Span]] = []
    stored = plan.stored(call.bound.graph)
    for phase, chosen in enumerate(plan.passes):
        program = call.bound.program(phase, stored)
        if program.values[0] == 0:  # the image is the first of a pass's sources, if it is one
            grid = build_grid(program, chosen.tile)
            parts += [(grid.rows.new(0, i), grid.cols.new(0, j)) for i, j in grid.steps()]
    return parts
