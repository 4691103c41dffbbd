"""What decides the values of a result, known before it is computed."""

from __future__ import annotations

from dataclasses import replace

from streamview.errors import RegionError
from streamview.geometry import Region
from streamview.inference.compute import GlassPixels
from streamview.networks import Model
from streamview.results import GRADIENT, ExplanationMethod, Identity, Precision
from streamview.slides import Slide
from streamview.slides.flat import FlatSampler
from streamview.slides.padding import AnySampler, PaddedSampler, flat_part
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
    glass: GlassPixels = "as-scanned",
) -> Identity:
    """Return the identity that the result of such a run will have, before it runs; `method` as its maps have it.

    Raises
    ------
    SlideError, RegionError
        When slide, region and model do not fit together.
    """
    # where the tissue is does not matter here
    return replace(identity_of(model, slide, sample_region(model, slide, region, pad_to)[0], precision, method), glass=_recorded(glass))


def sample_region(
    model: Model, slide: Slide, region: Region | None, pad_to: int | None, glass: GlassPixels = "as-scanned"
) -> tuple[AnySampler, tuple[int, int]]:
    """The region on the network's grid, and the height and width that it has there without padding.

    Raises
    ------
    SlideError, RegionError
        When slide, region and model do not fit together.
    """
    scanned = Sampler(slide, region, model.card.mpp)
    plain = FlatSampler(slide, scanned) if glass == "flat" else scanned
    if pad_to is None:
        return plain, plain.shape
    try:
        return PaddedSampler(plain, (pad_to, pad_to)), plain.shape
    except RegionError as error:
        raise RegionError(f"{slide.name}: {error}") from None


def identity_of(model: Model, slide: Slide, sampler: AnySampler, precision: Precision, method: ExplanationMethod = GRADIENT) -> Identity:
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
        glass=_recorded("flat" if flat_part(sampler) is not None else "as-scanned"),
    )


def _recorded(glass: GlassPixels) -> str | None:
    return None if glass == "as-scanned" else glass
