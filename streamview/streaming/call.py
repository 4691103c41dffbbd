"""What a call computes: a network bound to the size of its images, with its weights and the gradients that will be asked for.

In which steps it computes that is a `Plan`'s matter: a call is planned (`streamview.streaming.plan`) and then run
(`streamview.streaming.run`), and every plan of a call gives the same values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamview.streaming.graph import Bound, Demands
from streamview.streaming.ops import Size

__all__ = ["Call"]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What is computed, however it is divided into steps.

    Parameters
    ----------
    bound
        The captured network for the images' size.
    images, dtype
        Number of images, and the type of their pixels.
    needs
        Gradients that the backward pass is asked for; None where there is none.
    weights
        Values of the graph's weights, detached.
    gathered
        Type in which bridges and head get what is gathered of the maps, if not `dtype`.
    folded_bytes
        Bytes of those weights that are computed for the call, such as those that a BatchNorm is folded into.
    reader_bytes
        Bytes that whoever reads the image, and takes its gradient, needs for each px of a step.
    holds_maps
        Whether maps for the head are assembled; if not, they are handed out piece by piece.
    parts
        bool (h, w) in cells that cover the image evenly: beside them it is one even colour, and its gradient is not asked for. None: it is
        asked for everywhere.
    """

    bound: Bound
    images: int
    dtype: torch.dtype
    needs: Demands | None
    weights: Sequence[Tensor]
    gathered: torch.dtype | None = None
    folded_bytes: int = 0
    reader_bytes: int = 0
    holds_maps: bool = True
    parts: NDArray[np.bool_] | None = None

    @property
    def size(self) -> Size:
        """Height and width of the images."""
        return self.bound.sizes[0]

    @property
    def device(self) -> torch.device:
        """Where it is computed: where the weights are."""
        return next((weight.device for weight in self.weights), torch.device("cpu"))
