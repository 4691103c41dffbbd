"""A name or a file to what can be said of the network: whether it streams, and how."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from streamview.inspection.report import Streamability
from streamview.inspection.sizes import outlook
from streamview.inspection.streamability import streamability
from streamview.networks import load_model

__all__ = ["inspect_model"]


def inspect_model(
    spec: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    card: str | os.PathLike[str] | None = None,
    untrained: bool = False,
    outlooks: bool = False,
) -> Streamability:
    """Load a network as `load_model` does and say what streaming makes of it: whether it streams, its cut, the images it takes.

    Parameters
    ----------
    spec, weights, card
        As for `load_model`. Where the spec is a name, no weights are needed: the report does not depend on their values.
    untrained
        Ignore the weights of a folder too.
    outlooks
        Whether to say what images of 2048, 8192 and 32768 px a side will take on this machine, which times a sample.

    Returns
    -------
    Streamability
        Also of a network that cannot be streamed.

    Raises
    ------
    ModelError
        As `load_model` does.

    Examples
    --------
    >>> import streamview
    >>> print(streamview.inspect_model("demo"))
    Sequential streams (captured by torch.fx)
      image  3 channels, any sides from 32 px on
      local  10 operations in 1 pass, piecewise linear
      cut    max of features.14: 64 channels, stride 32 x 32 px
      sees   94 x 94 px
      head   head.1, head.2
    """
    named = weights is None and not Path(spec).exists()
    module = load_model(spec, weights=weights, card=card, untrained=untrained or named).module
    found = streamability(module)
    return replace(found, outlooks=outlook(module)) if outlooks and found.streams else found
