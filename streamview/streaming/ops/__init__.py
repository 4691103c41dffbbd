"""The local operations: geometry, forward piece and lean backward of each in one place.

To add a function of single pixels, add its name to a list in `pointwise`. For any other operation write a class with the attributes of
`Op`, and functions that turn torch's calls into it, decorated with `lowers` (functions and tensor methods) or `lowers_module`. A call
that is not local (it mixes rows or columns over the whole map) raises `NotLocal` with the reason.
"""

from streamview.streaming.ops import combine, conversions, margins, mixing, patches, pointwise, reduce, resample, reshape, window
from streamview.streaming.ops.registry import (
    Extent,
    Local,
    NotLocal,
    Op,
    OtherChannels,
    Partial,
    Piece,
    Reduction,
    Size,
    Statistic,
    Trait,
    Value,
    Wants,
    Weight,
    computed,
    layout,
    lower,
)

__all__ = [
    "Extent",
    "Local",
    "NotLocal",
    "Op",
    "OtherChannels",
    "Partial",
    "Piece",
    "Reduction",
    "Size",
    "Statistic",
    "Trait",
    "Value",
    "Wants",
    "Weight",
    "combine",
    "computed",
    "conversions",
    "layout",
    "lower",
    "margins",
    "mixing",
    "patches",
    "pointwise",
    "reduce",
    "resample",
    "reshape",
    "window",
]
