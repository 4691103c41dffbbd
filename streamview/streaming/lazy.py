"""An image that is read in pieces when the streamed pass needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from streamview.streaming.step import Span

__all__ = ["LazyImage"]


@dataclass(frozen=True, slots=True, eq=False)
class LazyImage:
    """An image that is never in memory as a whole.

    Parameters
    ----------
    shape
        (N, C, H, W).
    read
        Gives the pixels (N, C, h, w) of these rows and columns; the same ones at every call. It is called once for every step of the
        forward pass, and again where the backward pass needs them.
    dtype, device
        Of what `read` gives.
    """

    shape: tuple[int, int, int, int]
    read: Callable[[Span, Span], Tensor]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, image: Tensor) -> LazyImage:
        """The pixels of a tensor (N, C, H, W)."""
        images, channels, height, width = image.shape
        return cls((images, channels, height, width), lambda r, c: image[:, :, r[0] : r[1], c[0] : c[1]], image.dtype, image.device)
