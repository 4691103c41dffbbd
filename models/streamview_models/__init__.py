"""The networks that come with streamview: `MODELS` maps an id to its builder.

A family of networks has one folder: ``__init__.py`` (its builder), ``card.json``, ``README.md`` and, where it was trained,
``weights.safetensors``. To add a network: add its folder and its line below.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from streamview_models import camelyon16_tiles, camelyon17, demo, imagenette, resnet, tupac16
from streamview_models.layers import Builder

__all__ = ["ALIASES", "MODELS", "Builder", "folder"]

_FAMILIES: dict[str, dict[str, Builder]] = {
    "demo": {"demo": demo.build},
    "camelyon16_tiles": {"camelyon16-tiles": camelyon16_tiles.build},
    "imagenette": {"imagenette": imagenette.build},
    "tupac16": {
        "tupac16-2048": partial(tupac16.build, layers=22),
        "tupac16-4096": partial(tupac16.build, layers=25),
        "tupac16-8192": partial(tupac16.build, layers=28),
    },
    "camelyon17": {
        "camelyon17-2048": partial(camelyon17.build, layers=22),
        "camelyon17-4096": partial(camelyon17.build, layers=25),
        "camelyon17-8192": partial(camelyon17.build, layers=28),
    },
    "resnet": {"resnet18": partial(resnet.build, layers=18), "resnet34": partial(resnet.build, layers=34)},
}

MODELS: Mapping[str, Builder] = MappingProxyType({name: build for family in _FAMILIES.values() for name, build in family.items()})
"""Id of every network -> its builder, called as ``build(outputs=..., width=...)``."""

ALIASES: Mapping[str, str] = MappingProxyType({"camelyon17": "camelyon17-8192", "tupac16": "tupac16-8192"})
"""Bare names of the paper's networks -> id of the largest one."""


def folder(name: str) -> Path:
    """Return the folder with the card (and perhaps the weights) of the network with the id ``name``; KeyError for any other."""
    families = {member: family for family, members in _FAMILIES.items() for member in members}
    return Path(__file__).parent / families[name]
