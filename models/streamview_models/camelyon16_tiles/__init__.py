"""A small network for metastases in H&E-stained lymph nodes: one map of evidence, its global maximum, a linear layer."""

from __future__ import annotations

from torch import nn

from streamview_models.layers import conv_block, sequential_network

__all__ = ["build"]


def build(outputs: int = 2, *, width: int = 16) -> nn.Sequential:
    """Build the network, which maps (N, 3, H, W) of any H, W >= 48 px to (N, outputs).

    Six 3x3 convolutions (padding 1, ReLU) in four blocks that each end in a 2x2 max-pool (total stride 16), a seventh, a 1x1 convolution
    to one map, its mean over 3x3 positions, then the maximum of the whole map. So the map before the maximum is, but for a factor, the
    class evidence, and a few odd cells do not decide.

    Parameters
    ----------
    outputs
        Number of classes.
    width
        Channels of the first convolution; the last has four times as many.
    """
    channels, convolutions = [width, width * 3 // 2, width * 2, width * 3], [1, 1, 2, 2]
    features: list[nn.Module] = []
    for source, target, count in zip([3, *channels], channels, convolutions, strict=False):
        features += conv_block(source, target, count, padding=1, pool=nn.MaxPool2d(2))
    features += [nn.Conv2d(channels[-1], width * 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width * 4, 1, 1)]
    features.append(nn.AvgPool2d(3, stride=1))
    return sequential_network(features, [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(1, outputs)])
