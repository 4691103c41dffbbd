"""Whether a map shows what the network uses: deletion and insertion, parameter randomisation, stability, and agreement with annotations.

`measure_faithfulness` measures the maps of one result, `measure_job` those of a job folder, where `read_faithfulness` finds the verdicts
again. Numbers are pure functions in ``curves``, ``similarity`` and ``localisation``; ``changed`` and ``shuffling`` are what the network is
given instead. Names are imported on first use, so that reading a verdict loads no network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamview.faithfulness.job import measure_job
    from streamview.faithfulness.measure import measure_faithfulness
    from streamview.faithfulness.result import Faithfulness
    from streamview.faithfulness.settings import Settings
    from streamview.faithfulness.store import read_faithfulness

__all__ = ["Faithfulness", "Settings", "measure_faithfulness", "measure_job", "read_faithfulness"]

_HOMES = {
    "Faithfulness": "result",
    "Settings": "settings",
    "measure_faithfulness": "measure",
    "measure_job": "job",
    "read_faithfulness": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamview.faithfulness' has no attribute {name!r}")
    return getattr(importlib.import_module(f"streamview.faithfulness.{_HOMES[name]}"), name)
