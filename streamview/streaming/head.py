"""Whether a network's head takes the maps of an image's size, found without computing anything."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from streamview.errors import RegionError
from streamview.streaming.graph import Bound, Graph, Sink, bind, gathered

__all__ = ["LARGEST", "accepted_sides", "head_takes"]

LARGEST = 1024
"""Px; sides up to this are tried one by one."""


def head_takes(bound: Bound) -> bool:
    """Whether the head of a network in eval mode takes what is gathered for images of the bound size.

    True also where that cannot be told: because it takes what bridges gave, or a call depends on values.
    """
    head = bound.graph.head
    maps = [key for key in head.takes if isinstance(key, Sink)]
    if len(maps) < len(head.takes):
        return True
    like = next((weight for weight in head.module.parameters() if weight.is_floating_point()), torch.empty(0))
    with _unlogged(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        shapes = [gathered(bound, key) for key in maps]
        tensors = [torch.empty(2, channels, *size, dtype=like.dtype, device=like.device) for channels, size in shapes]
        try:
            head.module(*tensors)
        except RuntimeError as error:
            return type(error) is not RuntimeError  # others say that a call depends on values
        except (ValueError, TypeError, AssertionError, IndexError):
            return False
    return True


def accepted_sides(graph: Graph) -> list[int]:
    """The sides, up to `LARGEST` px, of square images that a network in eval mode takes."""
    known: dict[tuple[object, ...], bool] = {}
    accepted = []
    for side in range(1, LARGEST + 1):
        with contextlib.suppress(RegionError):
            bound = bind(graph, (side, side))
            sizes = tuple(gathered(bound, key) for key in graph.head.takes if isinstance(key, Sink))
            if sizes not in known:
                known[sizes] = head_takes(bound)
            if known[sizes]:
                accepted.append(side)
    return accepted


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep torch from logging calls that do not fit: that is the answer asked for."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
