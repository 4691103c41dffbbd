"""The Imagenette network of the paper's Table 1."""

from __future__ import annotations

from torch import nn

from streamview_models.layers import conv_block, sequential_network

__all__ = ["build"]


def build(outputs: int = 10, *, width: int = 16) -> nn.Sequential:
    """Build the network of Table 1, which maps (N, 3, H, W) with H and W in 222..381 px (the paper: 320) to (N, outputs).

    Five times 3x3 convolution (padding 0), ReLU, max-pool; the last pool is 10x10 and leaves one position.

    Parameters
    ----------
    outputs
        Number of classes.
    width
        Channels of the first convolution; each block doubles them.
    """
    channels = [width * 2**block for block in range(5)]
    features: list[nn.Module] = []
    for source, target, window in zip([3, *channels], channels, (2, 2, 2, 2, 10), strict=False):
        features += conv_block(source, target, 1, padding=0, pool=nn.MaxPool2d(window))
    return sequential_network(features, [nn.Flatten(), nn.Linear(channels[-1], outputs)])
