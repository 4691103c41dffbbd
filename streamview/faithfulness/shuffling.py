"""The same network with shuffled weights.

Every array of parameters (weights of a layer, its biases) keeps its values in another order, so that their distribution, and with it the
size of activations, stays about as it was: Adebayo et al. (NeurIPS 2018, https://arxiv.org/abs/1810.03292) draw them anew, which needs to
know each layer's initialisation. Buffers, such as running means, stay.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from streamview.networks import Model

__all__ = ["STAGES", "shuffled"]

STAGES = (0.0, 0.5)
"""Shares of the layers, from the last, that the cascade shuffles before all of them: the last one alone, and the last half."""


def shuffled(model: Model, seed: int, share: float = 1.0) -> Model:
    """Return a copy of a network with shuffled weights.

    Parameters
    ----------
    model
        The network, which stays as it is.
    seed
        Of the order; layer by layer it is the same for every share.
    share
        Share (0..1) of the layers with parameters that are shuffled, from the last; at least one.
    """
    module = copy.deepcopy(model.module)
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    first = len(layers) - max(1, round(share * len(layers)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            for parameter in layer.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator)
                if number >= first:
                    parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return replace(model, module=module, sha256=f"{model.sha256}-shuffled-{seed}-{share:g}")
