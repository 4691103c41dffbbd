"""The demo's network: five small blocks, global max-pool, a linear layer; finds the planted lesion of a synthetic slide."""

from __future__ import annotations

from torch import nn

from streamview_models.layers import conv_block, sequential_network

__all__ = ["build"]


def build(outputs: int = 2, *, width: int = 16) -> nn.Sequential:
    """Build the demo's network, which maps (N, 3, H, W) of any H, W >= 32 px to (N, outputs).

    Five times 3x3 convolution (padding 1), ReLU, 2x2 max-pool (total stride 32), then the maximum of the whole map.

    Parameters
    ----------
    outputs
        Number of classes.
    width
        Channels of the first convolution; the last block has four times as many.
    """
    channels = [width, width * 3 // 2, width * 2, width * 3, width * 4]
    features: list[nn.Module] = []
    for source, target in zip([3, *channels], channels, strict=False):
        features += conv_block(source, target, 1, padding=1, pool=nn.MaxPool2d(2))
    return sequential_network(features, [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels[-1], outputs)])
