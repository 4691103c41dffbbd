"""The class evidence map: what each place of the last feature map says for a class, where the head is pooling and a linear layer.

With features f (C, h, w) before global pooling and the linear layer's weights W (K, C), the evidence for class k is
``E_k = sum_c W[k, c] f[c]``. With mean pooling its mean is the logit without its bias (class activation mapping, Zhou et al.,
CVPR 2016, https://arxiv.org/abs/1512.04150); with max pooling each channel's own peak is what enters the logit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx, nn

from streamview.streaming.graph import Graph, Sink

__all__ = ["Evidence", "linear_head", "pooled_sink"]


def linear_head(graph: Graph) -> nn.Linear | None:
    """The linear layer of a head that is global pooling, flattening and that layer; None for any other head."""
    pooled = pooled_sink(graph)
    if pooled is None:
        return None
    found = None
    head = graph.head.module
    for node in head.graph.nodes:
        if node.op == "placeholder" or node.op == "output":
            continue
        layer = head.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Linear) and found is None:
            found = layer
        elif found is not None or not (isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout) or _flattens(node)):
            return None
    return found


def pooled_sink(graph: Graph) -> Sink | None:
    """The global pooling that is all the head takes; None if it takes anything else."""
    (first, *more) = graph.head.takes
    return first if isinstance(first, Sink) and first.kind in ("mean", "max") and not more else None


def _flattens(node: fx.Node) -> bool:
    return node.target in (torch.flatten, torch.squeeze, "flatten", "squeeze", "view", "reshape", "size", "dropout") or (
        getattr(node.target, "__name__", "") == "dropout"
    )


class Evidence:
    """Gathers the evidence map while the features pass.

    It keeps the evidence of every class, or the features themselves where they are fewer than the classes.

    Parameters
    ----------
    layer
        The linear layer, weights (K, C).
    size
        Height and width of the feature map.
    """

    def __init__(self, layer: nn.Linear, size: tuple[int, int]) -> None:
        self._weight = layer.weight.detach()
        self._project = layer.out_features <= layer.in_features
        self._kept = torch.zeros((min(layer.out_features, layer.in_features), *size))

    def add(self, features: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
        """Take the features (1, C, h, w) of these rows and columns."""
        wide = features[0].to(self._weight.dtype)
        found = torch.einsum("kc,chw->khw", self._weight, wide) if self._project else wide
        self._kept[:, rows[0] : rows[1], cols[0] : cols[1]] = found

    def of(self, target: int) -> np.ndarray:
        """The evidence for a class, float32 (h, w)."""
        found = self._kept[target] if self._project else torch.einsum("c,chw->hw", self._weight[target].cpu(), self._kept)
        return np.ascontiguousarray(found.numpy(), np.float32)
