"""The oracle of every exactness test: the network itself on the whole image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamview.streaming import stream

__all__ = ["errors", "gradients"]


def gradients(module: nn.Module, image: Tensor, parameters: list[Tensor], cotangent: Tensor | None) -> list[Tensor | None]:
    """Output, gradient of the image and of every parameter, for a given gradient of the output."""
    leaf = image.clone().requires_grad_()
    out = module(leaf)
    return [out.detach(), *torch.autograd.grad(out, [leaf, *parameters], cotangent, allow_unused=True)]


def errors(module: nn.Module, image: Tensor, **how: Any) -> list[float]:
    """Worst error of the output, the image's gradient and every parameter's, relative to the largest value of each.

    A gradient that is zero but for rounding (a bias in front of a normalisation) is measured against a thousandth of the largest.
    """
    parameters = list(module.parameters())
    with torch.no_grad():
        shape = module(image.clone())
    cotangent = torch.randn_like(shape)
    expected = gradients(module, image, parameters, cotangent)
    found = gradients(stream(module, **how), image, parameters, cotangent)
    worst, floor = [], 1e-3 * max((b.abs().max().item() for b in expected[1:] if b is not None and b.numel()), default=0.0)
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            worst.append(0.0 if all(t is None or not t.any() for t in (a, b)) else torch.inf)
        elif b.numel():
            scale = max(b.abs().max().item(), floor, 1e-12)
            worst.append((a - b).abs().max().item() / scale)
    return worst
