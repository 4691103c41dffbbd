"""Margins around a map: padding by a constant, by reflection or by repeating the border; and cropping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamview.streaming.ops.registry import Extent, Local, NotLocal, Op, Piece, Size, Sized, Value, Wants, lowers, lowers_module
from streamview.streaming.ops.resample import Resample, Taps, one_tap
from streamview.streaming.schedule import Table, Window

__all__ = ["Pad"]

Gradients = tuple[list[Tensor | None], list[Tensor | None]]


@dataclass(frozen=True, slots=True)
class Pad:
    """Constant padding of the image's borders, or cropping where the padding is negative."""

    rows: Window
    cols: Window
    value: float

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor], piece: Piece, wants: Wants | None) -> tuple[Tensor, Any]:
        """Pad the piece where it touches a border."""
        top, bottom, left, right = piece.pad
        out = F.pad(inputs[0], (left, right, top, bottom), value=self.value) if any(piece.pad) else inputs[0]
        return out, None if wants is None else inputs[0].shape

    def vjp(self, grad: Tensor, saved: Any, weights: Sequence[Tensor], piece: Piece, wants: Wants) -> Gradients:
        """Drop the padding's gradient."""
        top, _, left, _ = piece.pad
        return [grad[:, :, top : top + saved[2], left : left + saved[3]]], []


def _reflected(n: int, before: int, after: int) -> tuple[Table, Taps]:
    if max(before, after) >= n:
        return one_tap([], 1.0, 0.0)  # torch refuses it, and so does a value without extent
    inner = [abs(o) for o in range(-before, n + after)]
    return one_tap([2 * (n - 1) - o if o >= n else o for o in inner], 1.0, -float(before))


def _repeated(n: int, before: int, after: int) -> tuple[Table, Taps]:
    return one_tap([min(max(o, 0), n - 1) for o in range(-before, n + after)], 1.0, -float(before))


@lowers(F.pad, torch.ops.aten.pad.default)
def _pad(input: Value, pad: Sequence[Any], mode: str = "constant", value: float | None = None) -> Local:
    if len(pad) not in (2, 4) or mode not in ("constant", "reflect", "replicate"):
        raise NotLocal(f"padding {tuple(pad)} with mode={mode!r}: what lies beyond one border is read at the other")
    left, right, top, bottom = (*pad, 0, 0)[:4]
    axes = ((top, bottom), (left, right))
    if any(isinstance(m, Extent) and m.axis != axis for axis, margins in enumerate(axes) for m in margins):
        raise NotLocal("rows padded by a number of columns")

    def sized(sizes: Sequence[Size]) -> Op:
        y, x = ([m.of([s[axis] for s in sizes]) if isinstance(m, Extent) else m for m in axes[axis]] for axis in (0, 1))
        if mode == "constant":
            return Pad(Window(before=y[0], after=y[1]), Window(before=x[0], after=x[1]), value or 0.0)
        mirror = _reflected if mode == "reflect" else _repeated
        height, width = sizes[input.index]
        (rows, row_taps), (cols, col_taps) = mirror(height, *y), mirror(width, *x)
        return Resample(rows, cols, row_taps, col_taps)

    known = mode == "constant" and not any(isinstance(m, Extent) for m in pad)
    return Local(sized([]) if known else Sized(sized), (input,))


@lowers_module(nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)
def _pad_module(module: Any, input: Value) -> Local:
    mode = "constant" if isinstance(module, nn.ConstantPad2d) else "reflect" if isinstance(module, nn.ReflectionPad2d) else "replicate"
    return _pad(input, module.padding, mode, getattr(module, "value", None))
