"""What is asked of every slide of a cohort, as one value that another process can be sent."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from streamview.cohort.policy import RegionPolicy
from streamview.cohort.worklist import Case
from streamview.geometry import Region, RegionText
from streamview.inference.compute import Compute
from streamview.networks import Model
from streamview.results import GRADIENT
from streamview.results.display import Preset

__all__ = ["Settings", "failure_key", "work_key"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of every slide.

    Parameters
    ----------
    answer
        ``"region"``: one answer for each region. ``"patch"``: one for each of its patches. ``"maps"``: one for each region, and saliency
        maps.
    targets
        What the maps explain, as for `streamview.inference.targets.find_targets`; empty for `Prediction.usual_target`.
    displays
        Presets of the pictures of maps; empty for the network's default.
    region
        In level-0 pixels, or as the user's text, converted for each slide; None to choose regions by the `policy`.
    policy
        How regions are chosen.
    aggregation
        How the answers for regions are put together; None: as the card states.
    compute, mpp, pad_to
        As for `streamview.predict`.
    """

    answer: Literal["region", "patch", "maps"] = "region"
    targets: tuple[str, ...] = ()
    displays: tuple[Preset, ...] = ()
    region: Region | RegionText | None = None
    policy: RegionPolicy = RegionPolicy()
    aggregation: str | None = None
    compute: Compute = Compute()
    mpp: float | None = None
    pad_to: int | None = None


def work_key(settings: Settings, model: Model, identity: str, region: Region | None, mpp: tuple[float, float] | None) -> str:
    """Hash of all that decides the results for a slide: the same work is done once, wherever and in whatever steps.

    Parameters
    ----------
    settings, model
        What is asked, and of which network.
    identity, mpp
        Of the slide; the mpp that is used.
    region
        The region that is asked for on this slide; None: those of the policy.
    """
    asked = _asked(settings) | {"region": None if region is None else str(region), "mpp": mpp}
    return _digest({"asked": asked, "model": [model.sha256, model.card.sha256], "slide": identity})


def failure_key(settings: Settings, model: Model, case: Case) -> str:
    """Hash of all that may be changed so that a slide that failed need not fail again: file, network, settings.

    Parameters
    ----------
    settings, model
        What is asked, and of which network.
    case
        The slide, with what was given for it.
    """
    try:
        status = os.stat(case.path)
        file: Any = [status.st_size, status.st_mtime_ns]
    except OSError:
        file = None
    return _digest({"asked": _asked(settings), "model": [model.sha256, model.card.sha256], "file": file, "case": asdict(case)})


def _asked(settings: Settings) -> dict[str, Any]:
    """The settings that decide values; device, memory and steps change no more than rounding."""
    compute = settings.compute
    fields = asdict(settings) | {"compute": compute.precision}
    # left out where they are the default, so that keys of earlier versions do not change
    fields |= {} if settings.answer != "maps" or compute.method == GRADIENT else {"method": str(compute.method)}
    return fields | ({} if compute.glass == "as-scanned" else {"glass": compute.glass})


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
