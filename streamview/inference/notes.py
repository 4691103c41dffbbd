"""What the reader of a result must know of its region: how it differs from what the network was trained on."""

from __future__ import annotations

from streamview.networks import Model
from streamview.networks.suitability import contradicted_scale
from streamview.slides import Slide
from streamview.slides.padding import AnySampler, PaddedSampler

__all__ = ["region_warnings"]

_SIZE_SLACK = 1.1  # a region's side may differ by this factor from what the card states before a warning


def region_warnings(model: Model, slide: Slide, sampler: AnySampler, inside: tuple[int, int]) -> tuple[str, ...]:
    """What the reader of a result must know: how region and card differ, and what was assumed when the model was loaded."""
    card, warnings = model.card, []
    height, width = sampler.shape
    if not card.trained:
        warnings.append("The weights are random (untrained=True): the answer and the maps mean nothing.")
    if isinstance(sampler, PaddedSampler):
        warnings.append(
            f"The region is {inside[1]} x {inside[0]} px; zeros at the right and below make it {width} x {height} px for the network."
        )
    if card.input_size is not None:
        low, high = card.input_size
        if min(height, width) * _SIZE_SLACK < low or max(height, width) > high * _SIZE_SLACK:
            sides = f"{low} px" if low == high else f"{low} to {high} px"
            what = "padded region" if isinstance(sampler, PaddedSampler) else "region"
            warnings.append(f"The {what} is {width} x {height} px on the network's grid; the model was trained on sides of {sides}.")
    if card.mpp is None:
        warnings.append("The card states no mpp: the region was read at the slide's full resolution as it is.")
    elif sampler.mpp is not None and max(abs(m / card.mpp - 1) for m in sampler.mpp) > 0.01:
        warnings.append(f"The region was read at {sampler.mpp[0]:.3f} um/px; the model was trained at {card.mpp:.3f} um/px.")
    scale = contradicted_scale(slide.mpp, slide.stated_mpp)
    return (*warnings, *([] if scale is None else [scale]), *model.notes)
