"""The oracle of every exactness test: the network itself on the whole image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from streamview.streaming import module, stream
from streamview.streaming.capture import capture as capturing
from streamview.streaming.capture.capture import capture
from streamview.streaming.graph import Graph
from streamview.streaming.plan.plan import Plan, make_plan

__all__ = ["captured", "captured_once", "errors", "gradients", "joined", "remembering"]


@contextlib.contextmanager
def remembering(saved_steps: float, segment: int, spill: bool = False) -> Iterator[None]:
    """Have every pass save this share of its steps, and compute the others again in segments of so many rows, from a file with `spill`."""
    made = make_plan

    def plan(*args: Any, **how: Any) -> Plan:
        found = made(*args, **how)
        passes = [replace(p, saved_steps=round(saved_steps * p.steps), segment=segment, spill=spill and segment > 0) for p in found.passes]
        return replace(found, passes=tuple(passes))

    with mock.patch.object(module, "make_plan", plan):
        yield


@contextlib.contextmanager
def captured(exported: bool) -> Iterator[None]:
    """Have `stream` capture by torch.export without trying torch.fx."""
    with mock.patch.object(capturing, "capture", partial(capture, exported=exported)):
        yield


@contextlib.contextmanager
def captured_once(exported: bool = False) -> Iterator[None]:
    """Have `stream` use the first capture of a network again and again; for networks that are not changed meanwhile.

    A capture is compared with its network where the first call of `stream` has it compared.
    """
    captures: dict[tuple[nn.Module, int | None, bool], Graph] = {}

    def once(module: nn.Module, *, channels: int | None = None, reduce: bool = True, check: bool = False) -> Graph:
        key = module, channels, reduce
        if key not in captures:
            captures[key] = capture(module, channels=channels, reduce=reduce, check=check, exported=exported)
        return captures[key]

    with mock.patch.object(capturing, "capture", once):
        yield


def joined(out: Any) -> Tensor:
    """A network's output, if it is one tensor, or all of its tensors in one."""
    return out if isinstance(out, Tensor) else torch.cat([t.flatten() for t in _pytree.tree_leaves(out)])


def gradients(network: nn.Module, image: Tensor, parameters: list[Tensor], cotangent: Tensor | None) -> list[Tensor | None]:
    """Output, gradient of the image and of every parameter, for a given gradient of the output."""
    leaf = image.clone().requires_grad_()
    out = joined(network(leaf))
    return [out.detach(), *torch.autograd.grad(out, [leaf, *parameters], cotangent, allow_unused=True)]


def jumps(network: nn.Module, image: Tensor) -> bool:
    """Whether autograd's own gradient of the whole image is another after a change of the image by rounding.

    So it is where two values of a maximum are equal but for rounding, as on even background: both gradients are right.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.no_grad():
        cotangent = torch.randn_like(joined(network(image.clone())))
    expected = gradients(network, image, parameters, cotangent)
    for _ in range(5):
        moved = gradients(network, image * (1 + 1e-13 * torch.randn_like(image)), parameters, cotangent)
        for a, b in zip(expected, moved, strict=True):
            if a is not None and b is not None and a.numel() and (a - b).abs().max() > 1e-6 * a.abs().max():
                return True
    return False


def errors(network: nn.Module, image: Tensor, **how: Any) -> list[float]:
    """Worst error of the output, the image's gradient and every parameter's, relative to the largest value of each.

    A gradient that is zero but for rounding (a bias in front of a normalisation) is measured against a thousandth of the largest.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.no_grad():
        shape = joined(network(image.clone()))
    cotangent = torch.randn_like(shape)
    expected = gradients(network, image, parameters, cotangent)
    found = gradients(stream(network, **{"check": False, **how}), image, parameters, cotangent)  # what is compared here is the engine
    worst, floor = [], 1e-3 * max((b.abs().max().item() for b in expected[1:] if b is not None and b.numel()), default=0.0)
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            worst.append(0.0 if all(t is None or not t.any() for t in (a, b)) else torch.inf)
        elif b.numel():
            scale = max(b.abs().max().item(), floor, 1e-12)
            worst.append((a - b).abs().max().item() / scale)
    return worst
