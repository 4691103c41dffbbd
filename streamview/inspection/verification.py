"""The exactness certificate of a loaded model, on windows of the region that the user works on."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from streamview.errors import MemoryBudgetError
from streamview.files import atomic
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inspection.certificate import Certificate
from streamview.inspection.exactness import Pixels
from streamview.inspection.exactness import verify as verify_module
from streamview.networks import Model, as_model
from streamview.progress import Progress, Report
from streamview.results import RESEARCH_USE
from streamview.slides import as_slide
from streamview.slides.sampling import Sampler
from streamview.streaming.memory import format_bytes, parse_bytes
from streamview.system.machine import describe_device, find_device, resident_memory, total_memory
from streamview.system.versions import versions

if TYPE_CHECKING:
    from streamview.inference.prepared import Source

__all__ = ["verify", "write_certificate"]

_SIDE = 2048  # px of the image of random pixels, where the card states no input size


def verify(
    model: Model,
    source: Source | None = None,
    region: Region | None = None,
    *,
    windows: int = 3,
    seed: int = 0,
    compute: Compute = Compute(),
    mpp: float | None = None,
    report: Report | None = None,
) -> Certificate:
    """Show that the streamed model equals the plain one, in float64, on random windows.

    Parameters
    ----------
    model
        From `load_model`; stays as it is.
    source
        A slide, a pyramid or a uint8 (H, W, 3) array to take the pixels from, sampled and normalised as for `predict`; default
        random pixels (standard normal). Noise of less than half a grey level keeps equal pixels apart: where neighbours are equal,
        max-pooling has more than one right gradient.
    region
        Part of the source, in level-0 pixels; None for all.
    windows, seed
        As for `streamview.inspection.exactness.verify`.
    compute
        Where to run; its `memory` bounds the process (CUDA: what the plain network may take). The precision is always float64.
    mpp
        Micrometres per level-0 pixel of the source, where it does not say itself.
    report
        Called after every window; may raise `Cancelled`.

    Returns
    -------
    Certificate
        Of the model's name and the hash of its weights.

    Raises
    ------
    SlideError, RegionError, ModelError, NotStreamableError, MemoryBudgetError
        When source, region, model or budget do not fit; see each.

    Examples
    --------
    >>> import streamview
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     certificate = streamview.verify(streamview.load_model("demo"), slide, streamview.Region(0, 256, 256, 256), windows=1)
    >>> certificate.passed, certificate.worst < 1e-9
    (True, True)
    """
    card = as_model(model).card
    where = find_device(compute.device)
    facts = {"card_sha256": card.sha256, "streamview": versions().get("streamview", "unknown")}
    if not card.trained:
        facts["weights"] = "random (untrained)"
    pixels: Pixels | None = None
    side = card.input_size[1] if card.input_size else _SIDE
    shape = side, side
    if source is not None:
        slide = as_slide(source, mpp)
        sampler = Sampler(slide, region, card.mpp)
        shape = sampler.shape
        pixels = _pixels(sampler, model, seed)
        facts |= {"slide": slide.name, "slide_identity": slide.identity, "region": str(sampler.region)}
        facts |= {} if sampler.mpp is None else {"mpp": f"{sampler.mpp[1]:.6g}"}
    # the caller's module stays where it is
    module = model.module if where.type == "cpu" else copy.deepcopy(model.module).to(where)
    progress = Progress("verification", windows, report)
    found = verify_module(
        module,
        (3, *shape),
        windows=windows,
        seed=seed,
        tile=compute.tile,
        memory=_growth(compute.memory, where),
        pixels=pixels,
        done=progress.advance,
    )
    shown = "random" if pixels is None else f"of {facts['slide']}, region {facts['region']}, with noise below half a grey level"
    return replace(found, network=card.name, weights_sha256=model.sha256, pixels=shown, device=describe_device(where), facts=facts)


def _pixels(sampler: Sampler, model: Model, seed: int) -> Pixels:
    """Normalised pixels of the sampler's grid, float64, with noise."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (model.card.mean, model.card.std))
    random = np.random.default_rng(seed)

    def read(rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        grey = sampler.read(*rows, *cols)
        noisy = torch.from_numpy(grey + random.uniform(-0.5, 0.5, grey.shape))
        return (noisy.permute(2, 0, 1) / 255 - mean) / std

    return read


def _growth(memory: str | int | None, device: torch.device) -> int | None:
    """What of a bound on the process is left for the comparison."""
    if memory is None or device.type == "cuda":
        return None if memory is None else parse_bytes(memory, total_memory(device))
    limit, base = parse_bytes(memory), resident_memory()
    if limit <= base:
        raise MemoryBudgetError(f"memory {format_bytes(limit)}: the process already takes {format_bytes(base)}; give more")
    return limit - base


def write_certificate(certificate: Certificate, path: Path) -> None:
    """Write a certificate as JSON, whole or not at all.

    Raises
    ------
    StreamviewError
        When the disk is full or `path` may not be written.
    """
    values = {**certificate.to_dict(), "note": RESEARCH_USE}
    atomic.write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
