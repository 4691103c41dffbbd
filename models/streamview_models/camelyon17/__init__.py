"""The CAMELYON17 networks of the paper: Table 2 without BatchNorm and dropout, negative against metastasis."""

from __future__ import annotations

from torch import nn

from streamview_models.layers import table2_network

__all__ = ["build"]


def build(outputs: int = 2, *, width: int = 32, layers: int = 28) -> nn.Sequential:
    """Build Table 2 without BatchNorm and dropout.

    Parameters
    ----------
    outputs
        Number of classes.
    width
        Channels of the first block.
    layers
        22, 25 or 28: made for regions of 2048, 4096 or 8192 px.
    """
    return table2_network(layers, outputs, width, batch_norm=False, dropout=None)
