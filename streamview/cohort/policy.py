"""Which regions of a slide are answered: the whole, each piece of tissue, or a grid of squares over the tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from streamview.errors import ModelError, RegionError
from streamview.geometry import Region
from streamview.networks.cards import ModelCard
from streamview.slides import Slide
from streamview.slides.sampling import Sampler
from streamview.slides.tissue import Tissue, tissue_regions, tissue_share

__all__ = ["Kind", "RegionPolicy", "choose_regions"]

Kind = Literal["whole", "tissue", "grid"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_CELL = 32  # px of the network's grid: the stride of most networks
_PIECE = 256  # px of the network's grid: smallest side of a region around a piece of tissue, unless the card states a smaller one
_NEAR_UM = 500.0  # pieces of tissue no further apart share a region


@dataclass(frozen=True, slots=True)
class RegionPolicy:
    """How the regions of a slide are chosen.

    Parameters
    ----------
    kind
        ``"whole"``: the slide. ``"tissue"``: a region around each piece of tissue, grown to whole cells of 32 px on the network's grid.
        ``"grid"``: squares over the tissue.
    side
        Of the squares, px of the network's grid; None: the size on the card.
    overlap
        Share (0 to 0.9) of the side by which neighbouring squares overlap.
    least_tissue
        Share (0..1) of a square that must be tissue for it to be answered.
    most
        At most so many regions per slide, those with most tissue; None: all.

    Raises
    ------
    RegionError
        If a value is out of its range.
    """

    kind: Kind = "whole"
    side: int | None = None
    overlap: float = 0.0
    least_tissue: float = 0.05
    most: int | None = None

    def __post_init__(self) -> None:
        problem = None
        if self.kind not in KINDS:
            problem = f"--regions {self.kind}: expected {', '.join(KINDS)}"
        elif self.side is not None and self.side < _CELL:
            problem = f"--grid {self.side}: expected {_CELL} px or more"
        elif not 0 <= self.overlap <= 0.9:
            problem = f"--overlap {self.overlap:g}: expected a share of 0 to 0.9"
        elif not 0 <= self.least_tissue <= 1:
            problem = f"--least-tissue {self.least_tissue:g}: expected a share of 0 to 1"
        elif self.most is not None and self.most < 1:
            problem = f"--max-regions {self.most}: expected 1 or more"
        if problem is not None:
            raise RegionError(problem)

    def on(self, card: ModelCard) -> RegionPolicy:
        """The policy with the squares' side as the card states it, where none is given.

        Raises
        ------
        ModelError
            If squares are asked for, and neither says their side.
        """
        if self.kind != "grid" or self.side is not None:
            return self
        if card.input_size is None:
            raise ModelError(
                f"--regions grid: the card of the model {card.name} states no size; give the side of the squares with --grid PX"
            )
        return replace(self, side=card.input_size[1])

    def __str__(self) -> str:
        """In words, as tables state it."""
        most = "" if self.most is None else f", at most {self.most} with most tissue"
        if self.kind == "whole":
            return "whole slide"
        if self.kind == "tissue":
            return f"each piece of tissue{most}"
        overlap = f", overlapping by {self.overlap:.0%}" if self.overlap else ""
        return f"grid of {self.side} px squares of which at least {self.least_tissue:.2g} is tissue{overlap}{most}"


def choose_regions(
    policy: RegionPolicy, slide: Slide, tissue: Tissue | None, card: ModelCard, *, padded: bool = False
) -> tuple[Region, ...]:
    """Choose the regions of a slide, in level-0 pixels, in an order that depends on the slide alone: from top to bottom.

    Parameters
    ----------
    policy
        With its side, see `RegionPolicy.on`.
    slide
        The slide.
    tissue
        Its tissue; needed unless the policy is ``"whole"``.
    card
        Of the network, for its mpp and size.
    padded
        Whether regions are padded to one size, so that small ones need not grow.

    Raises
    ------
    SlideError
        If the slide has no tissue, or its scale is unknown.
    RegionError
        If no square has enough tissue.
    """
    if policy.kind == "whole" or tissue is None:
        return (Region(0, 0, *slide.shape),)
    scale = Sampler(slide, None, card.mpp).scale
    if policy.kind == "tissue":
        side = 0 if padded else min(_PIECE, card.input_size[0]) if card.input_size else _PIECE
        near = 2 * _CELL * max(scale) if slide.mpp is None else _NEAR_UM / min(slide.mpp)
        align, least = (_CELL * scale[0], _CELL * scale[1]), (side * scale[0], side * scale[1])
        return tissue_regions(tissue, slide.name, near, align, least)[: policy.most]
    (box,) = tissue_regions(tissue, slide.name, float(max(slide.shape)))  # all pieces are that near
    side = policy.side or _PIECE
    stride = side if not policy.overlap else min(side, max(_CELL, round(side * (1 - policy.overlap) / _CELL) * _CELL))
    rows, columns = (
        _starts(start, stop, whole, side * unit, stride * unit, unit)
        for start, stop, whole, unit in zip((box.y, box.x), (box.y_stop, box.x_stop), slide.shape, scale, strict=True)
    )
    height, width = (min(math.ceil(side * unit - 1e-6), whole) for unit, whole in zip(scale, slide.shape, strict=True))
    squares = [Region(y, x, height, width) for y in rows for x in columns]
    shares = np.array([tissue_share(tissue, square) for square in squares])
    chosen = [number for number in np.argsort(-shares, kind="stable").tolist() if shares[number] >= max(policy.least_tissue, 1e-9)]
    if not chosen:
        raise RegionError(
            f"{slide.name}: no square of {side} px is at least {policy.least_tissue:.2g} tissue (the most is {shares.max():.2g}); "
            "lower --least-tissue, or give smaller squares with --grid"
        )
    return tuple(squares[number] for number in sorted(chosen[: policy.most]))


def _starts(start: int, stop: int, whole: int, side: float, stride: float, unit: float) -> list[int]:
    """First pixels of squares along one axis that cover ``start .. stop``, centred on it where there is room, all inside the slide."""
    if side >= whole:
        return [0]
    count = max(1, math.ceil((stop - start + 2 * unit - side) / stride) + 1)
    extent = (count - 1) * stride + side
    if extent > whole:  # the last square moves inwards
        places = [*(number * stride for number in range(count) if number * stride < whole - side), whole - side]
    else:
        first = min(max((start + stop - extent) / 2, 0.0), whole - extent)
        places = [first + number * stride for number in range(count)]
    # on whole pixels of the network's grid, so that maps of all squares are in step
    last = whole - math.ceil(side - 1e-6)
    return list(dict.fromkeys(min(math.floor(math.floor(place / unit + 1e-9) * unit), last) for place in places))
