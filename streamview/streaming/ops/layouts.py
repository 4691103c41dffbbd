"""How a tensor that a network sees lies over a streamed value, which is always stored as (N, C, H, W).

A layout names each dimension: ``"N"``, ``"H"``, ``"W"``, ``"HW"`` (rows and columns flattened), or a part of the channels
``(stride, length)``. All channels are the one part ``(1, C)``; ``x.view(n, 2, C // 2, h, w)`` has the two parts ``(C // 2, 2)`` and
``(1, C // 2)``. So permuting and splitting dimensions costs nothing until channels truly change places.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["Layout", "Part", "canonical", "from_layout", "is_canonical", "merged", "parts", "split", "to_layout"]

Part = tuple[int, int]
Layout = tuple[str | Part, ...]


def canonical(channels: int) -> Layout:
    """The layout (N, C, H, W)."""
    return ("N", (1, channels), "H", "W")


def is_canonical(layout: Layout) -> bool:
    """Whether a layout is (N, C, H, W)."""
    return len(layout) == 4 and layout[0] == "N" and layout[2:] == ("H", "W")


def parts(layout: Layout) -> list[Part]:
    """The parts of the channels, slowest first, as the channels are stored."""
    return sorted((d for d in layout if isinstance(d, tuple)), reverse=True)


def split(part: Part, lengths: Sequence[int]) -> list[Part]:
    """A part of the channels as several parts of these lengths, slowest first."""
    found: list[Part] = []
    stride = part[0]
    for length in reversed(lengths):
        found.insert(0, (stride, length))
        stride *= length
    return found


def merged(found: Sequence[Part]) -> Part | None:
    """Neighbouring parts as one; None where channels would have to change places."""
    stride, length = found[-1]
    for outer, count in reversed(found[:-1]):
        if count > 1 and outer != stride * length:
            return None
        length *= count
    return stride, length


def to_layout(x: Tensor, layout: Layout) -> Tensor:
    """A tensor (N, C, h, w) as the network sees it, as a view."""
    stored = ["N", *parts(layout), "H", "W"]
    lengths = [length for _, length in parts(layout)]
    if len(lengths) > 1:
        x = x.unflatten(1, lengths)
    elif not lengths:
        x = x.squeeze(1)
        stored = ["N", "H", "W"]
    if "HW" in layout:
        x, stored = x.flatten(-2), [*stored[:-2], "HW"]
    return x.permute([stored.index(d) for d in layout])


def from_layout(x: Tensor, layout: Layout, size: Sequence[int]) -> Tensor:
    """The inverse of `to_layout`, for a tensor of `size` (h, w)."""
    if "HW" in layout:
        at = layout.index("HW")
        x, layout = x.unflatten(at, size), (*layout[:at], "H", "W", *layout[at + 1 :])
    stored = ["N", *parts(layout), "H", "W"]
    x = x.permute([layout.index(d) for d in stored])
    if len(stored) == 3:
        return x.unsqueeze(1)
    return x.flatten(1, len(stored) - 3) if len(stored) > 4 else x
