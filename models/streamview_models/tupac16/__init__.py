"""The TUPAC16 networks of the paper's Table 2: regression of the PAM50 proliferation score."""

from __future__ import annotations

from torch import nn

from streamview_models.layers import table2_network

__all__ = ["build"]


def build(outputs: int = 1, *, width: int = 32, layers: int = 28) -> nn.Sequential:
    """Build Table 2 with BatchNorm in the last two blocks and dropout 0.5 before the fully connected layer.

    Parameters
    ----------
    outputs
        Regressed values.
    width
        Channels of the first block.
    layers
        22, 25 or 28: made for regions of 2048, 4096 or 8192 px.
    """
    return table2_network(layers, outputs, width, batch_norm=True, dropout=0.5)
