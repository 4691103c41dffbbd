"""Networks with their card and a hash of their weights: from the registry, a folder, timm, torchvision, a function, or torch.export.

`load_model` is the way in. ``architectures`` finds definitions by name, ``checkpoints`` reads files of weights, ``fitting`` matches the
two, ``exported`` and ``graphs`` read ``.pt2`` files. Nothing is downloaded, and nothing that stands in a file is ever run.
"""

from __future__ import annotations

from streamview.networks.load import Model, as_model, load_card, load_model

__all__ = ["Model", "as_model", "load_card", "load_model"]
