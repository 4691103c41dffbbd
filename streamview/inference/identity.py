"""What decides the values of a result, known before it is computed."""

from __future__ import annotations

from streamview.errors import RegionError
from streamview.geometry import Region
from streamview.networks import Model
from streamview.results import GRADIENT, ExplanationMethod, Identity, Precision
from streamview.slides import Slide
from streamview.slides.padding import PaddedSampler
from streamview.slides.sampling import SAMPLING_VERSION, Sampler

__all__ = ["identify", "identity_of", "sample_region"]


def identify(
    model: Model,
    slide: Slide,
    region: Region | None = None,
    *,
    precision: Precision = "float32",
    pad_to: int | None = None,
    method: ExplanationMethod = GRADIENT,
) -> Identity:
    """Return the identity that the result of such a run will have, before it runs; `method` as its maps have it.

    Raises
    ------
    SlideError, RegionError
        When slide, region and model do not fit together.
    """
    return identity_of(model, slide, sample_region(model, slide, region, pad_to)[0], precision, method)


def sample_region(model: Model, slide: Slide, region: Region | None, pad_to: int | None) -> tuple[Sampler | PaddedSampler, tuple[int, int]]:
    """The region on the network's grid, and the height and width that it has there without padding.

    Raises
    ------
    SlideError, RegionError
        When slide, region and model do not fit together.
    """
    plain = Sampler(slide, region, model.card.mpp)
    if pad_to is None:
        return plain, plain.shape
    try:
        return PaddedSampler(plain, (pad_to, pad_to)), plain.shape
    except RegionError as error:
        raise RegionError(f"{slide.name}: {error}") from None


def identity_of(
    model: Model, slide: Slide, sampler: Sampler | PaddedSampler, precision: Precision, method: ExplanationMethod = GRADIENT
) -> Identity:
    """As `identify`, of a region that is sampled already."""
    return Identity(
        weights_sha256=model.sha256,
        card_sha256=model.card.sha256,
        source=slide.identity,
        region=sampler.region,
        mpp=sampler.mpp,
        precision=precision,
        padded=sampler.shape if isinstance(sampler, PaddedSampler) else None,
        slide_mpp=slide.mpp,
        slide_mpp_source="unknown" if slide.mpp is None else "given" if slide.mpp_source.startswith("given") else "file",
        pixel_source=slide.pixel_source,
        background=slide.background,
        level=sampler.level,
        sampling=SAMPLING_VERSION,
        method=None if method == GRADIENT else str(method),
    )
