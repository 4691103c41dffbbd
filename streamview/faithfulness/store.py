"""Where verdicts lie in a job folder, and how they are read beside a stored map."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from streamview.errors import JobWarning, StreamviewError
from streamview.faithfulness.result import Faithfulness
from streamview.results import Saliency

__all__ = ["FILE", "faithfulness_folder", "read_faithfulness"]

FILE = "faithfulness"
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, StreamviewError)


def faithfulness_folder(maps: Path) -> Path:
    """The folder of the measurements of maps that are stored in a job as ``JOB/saliency/SLIDE/MAPS.ome.zarr``."""
    slide = maps.parent
    return slide.parent.parent / "faithfulness" / slide.name / maps.name.removesuffix(".ome.zarr")


def read_faithfulness(saliency: Saliency) -> Faithfulness | None:
    """Read what was measured of stored maps.

    Parameters
    ----------
    saliency
        Maps of a job.

    Returns
    -------
    Faithfulness
        None where nothing was measured, or of another result, or where it cannot be read, of which a `JobWarning` tells.
    """
    if saliency.path is None:
        return None
    path = faithfulness_folder(saliency.path) / f"{FILE}.json"
    if not path.is_file():
        return None
    try:
        measured = Faithfulness.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except _DAMAGED as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(f"{path}: damaged ({reason}); measure again with streamview faithfulness --restart", JobWarning, stacklevel=2)
        return None
    same = measured.identity.key == saliency.prediction.identity.key and measured.target == saliency.target
    return measured if same else None
