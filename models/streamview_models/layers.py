"""What the network families share: the type of a builder, the body of the paper's Table 2, He initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

__all__ = ["Builder", "conv_block", "sequential_network", "table2_network"]


class Builder(Protocol):
    """Makes one network with fresh weights drawn from torch's global generator.

    ``outputs`` is the number of classes (or regressed values); ``width`` scales every channel count: it is the number of
    channels after the first convolution, and a narrow network is a quick stand-in for the real one in tests.
    """

    def __call__(self, outputs: int = ..., *, width: int = ...) -> nn.Module:
        """Build the network for (N, 3, H, W) float input."""


def conv_block(
    in_channels: int, channels: int, convolutions: int, *, padding: int, pool: nn.Module, batch_norm: bool = False
) -> list[nn.Module]:
    """List the layers of ``convolutions`` times 3x3 convolution (and BatchNorm) and ReLU, then ``pool``.

    Parameters
    ----------
    in_channels, channels
        Channels entering the block and leaving each of its convolutions.
    convolutions
        Number of convolutions, each of stride 1.
    padding
        Zeros on each side of every convolution's input, px.
    pool
        The pooling layer that ends the block.
    batch_norm
        Whether BatchNorm follows each convolution; it then has no bias of its own, BatchNorm has.
    """
    layers: list[nn.Module] = []
    for source in [in_channels] + [channels] * (convolutions - 1):
        layers.append(nn.Conv2d(source, channels, 3, padding=padding, bias=not batch_norm))
        layers += [nn.BatchNorm2d(channels)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    return [*layers, pool]


def table2_network(layers: int, outputs: int, width: int, *, batch_norm: bool, dropout: float | None) -> nn.Sequential:
    """Build the network of the paper's Table 2, which maps (N, 3, H, W) of any H, W >= 2 ** (pools - 1) to (N, outputs).

    Blocks of two 3x3 convolutions (padding 1, ReLU) and a 2x2 max-pool; the last pool takes the maximum of the whole map.

    Parameters
    ----------
    layers
        Convolutions, pools and the fully connected layer together: 22 for 2048 px, 25 for 4096 and 28 for 8192. Each step
        repeats the block of 16 x ``width`` channels once more, so that the last map covers the same number of pixels.
    outputs
        Values of the fully connected layer, without non-linearity.
    width
        Channels of the first block (the paper: 32).
    batch_norm
        Whether the last two blocks (the final seven layers) hold BatchNorm.
    dropout
        Probability of the dropout before the fully connected layer; None leaves it out.
    """
    blocks = (layers - 1) // 3
    channels = [width * 2 ** min(block, 4) for block in range(blocks)]
    features: list[nn.Module] = []
    for block, (source, target) in enumerate(zip([3, *channels], channels, strict=False)):
        last = block == blocks - 1
        pool: nn.Module = nn.AdaptiveMaxPool2d(1) if last else nn.MaxPool2d(2)
        features += conv_block(source, target, 2, padding=1, pool=pool, batch_norm=batch_norm and block >= blocks - 2)
    head = [nn.Flatten(), *([] if dropout is None else [nn.Dropout(dropout)]), nn.Linear(channels[-1], outputs)]
    return sequential_network(features, head)


def sequential_network(features: Sequence[nn.Module], head: Sequence[nn.Module]) -> nn.Sequential:
    """Chain ``features`` and ``head`` and draw their weights after He et al. (2015): normal, fan-in, gain of ReLU; biases zero."""
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*features))
    network.add_module("head", nn.Sequential(*head))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
