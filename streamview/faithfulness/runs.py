"""The runs that measure a result: of the network on changed regions, and of shuffled networks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamview.faithfulness.changed import ErasedSampler, NoisySampler, ShiftedSampler, with_sampler
from streamview.faithfulness.grid import Squares, average
from streamview.faithfulness.progress import Together
from streamview.faithfulness.result import Change, Similarity
from streamview.faithfulness.settings import Settings
from streamview.faithfulness.shuffling import shuffled
from streamview.faithfulness.similarity import rank_correlation, relative_change, structural_similarity
from streamview.inference.prepared import PreparedRun, prepare
from streamview.progress import Report
from streamview.results import Method, Saliency
from streamview.slides.padding import PaddedSampler
from streamview.streaming.plan.plan import Plan

__all__ = ["Explain", "Runs", "explain_again"]

Explain = Callable[[PreparedRun, Saliency, Path | None, Report | None], Saliency]
"""Computes the maps of a result for another run: run, result, folder for large maps (None: in memory), report."""
Floats = NDArray[np.float64]
_IN_MEMORY = 2**22  # px of maps that are not written to the disk
_SEEDS = 1000  # so that no two results with different seeds share a network


def explain_again(run: PreparedRun, saliency: Saliency, scratch: Path | None, report: Report | None) -> Saliency:
    """Compute the gradient and evidence maps of a result's target for another run.

    Parameters
    ----------
    run
        Of the same network or a shuffled one, over the same region or a changed one.
    saliency
        The result.
    scratch
        Folder for maps; None: they are kept in memory.
    report
        Called after every step.
    """
    return run.explain([saliency.target], outs=None if scratch is None else [scratch / "again.ome.zarr"], report=report)[0]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """What all runs of one result share.

    Parameters
    ----------
    run, saliency, settings, explain
        As for `streamview.faithfulness.measure_faithfulness`.
    plan
        Of a prediction.
    patches
        What is erased.
    counts
        How many patches are erased after each step.
    cells, compared
        In which maps are compared, and which of them, bool (rows, columns).
    means
        Means of the result's maps over the cells.
    scratch
        Folder for maps that are thrown away.
    progress
        Of all runs.
    """

    run: PreparedRun
    saliency: Saliency
    settings: Settings
    explain: Explain
    plan: Plan
    patches: Squares
    counts: tuple[int, ...]
    cells: Squares
    compared: NDArray[np.bool_]
    means: Mapping[Method, Floats]
    scratch: Path | None
    progress: Together

    def ends(self, counted: NDArray[np.bool_]) -> list[float]:
        """Scores of the region as it is, and with all its tissue erased."""
        return [self._score(self.run), self._erased(np.flatnonzero(counted))]

    def deleted(self, order: NDArray[np.intp], ends: tuple[float, float]) -> list[float]:
        """Scores while patches are erased in an order."""
        full, empty = ends
        return [full, *(self._erased(order[:count]) for count in self.counts[1:-1]), empty]

    def inserted(self, order: NDArray[np.intp], ends: tuple[float, float]) -> list[float]:
        """Scores while patches are brought back in an order."""
        full, empty = ends
        return [empty, *(self._erased(order[count:]) for count in self.counts[1:-1]), full]

    def similarities(self, number: int, layers: float) -> dict[Method, Similarity]:
        """Compare each map with that of a network with shuffled weights."""
        run = self.run
        padded = run.sampler.shape[0] if isinstance(run.sampler, PaddedSampler) else None
        model = shuffled(run.model, self.settings.seed * _SEEDS + number, layers)
        other = prepare(model, run.slide, run.sampler.region, compute=run.compute, pad_to=padded)
        compared, results = self.compared, {}
        for method, after in self._means_of(other)[1].items():
            before = self.means[method]
            rank = rank_correlation(np.abs(before[compared]), np.abs(after[compared]))
            results[method] = Similarity(rank, structural_similarity(before, after, compared), layers)
        return results

    def changes(self, number: int, ends: tuple[float, float]) -> dict[Method, Change]:
        """Compare each map with that of a hardly changed region: noisy, and at the end shifted."""
        run, settings, compared = self.run, self.settings, self.compared.copy()
        if number < settings.noises:
            what, move = f"noise of {settings.noise:g} grey level{'s' * (settings.noise != 1)}", (0, 0)
            changed = with_sampler(run, NoisySampler(run.sampler, run.inside, settings.noise, settings.seed * _SEEDS + number))
        else:
            what, move = f"a shift of {settings.shift[1]}, {settings.shift[0]} px", settings.shift
            changed = with_sampler(run, ShiftedSampler(run.sampler, run.inside, move))
            if min(compared.shape) > 4:  # nothing is known of what came in at the border
                compared[[0, -1]] = False
                compared[:, [0, -1]] = False
        score, means = self._means_of(changed, move)
        change = abs(score - ends[0]) / max(abs(ends[0] - ends[1]), 1e-12)
        results = {}
        for method, after in means.items():
            pair = self.means[method][compared], after[compared]
            results[method] = Change(what, rank_correlation(*pair), relative_change(*pair), change)
        return results

    def _erased(self, patches: NDArray[np.intp]) -> float:
        """The score with some patches erased."""
        run, erased = self.run, np.zeros(self.patches.shape, np.bool_)
        erased.flat[patches] = True
        return self._score(with_sampler(run, ErasedSampler(run.sampler, run.inside, self.patches.side, erased, run.slide.background)))

    def _score(self, run: PreparedRun) -> float:
        return run.predict(self.plan, self.progress.forward()).score_of(self.saliency.target)

    def _means_of(self, run: PreparedRun, move: tuple[int, int] = (0, 0)) -> tuple[float, dict[Method, Floats]]:
        """Score of another run, and means of its maps over the cells; its pixel (0, 0) was at `move`, px of the grid."""
        large = math.prod(run.inside) > _IN_MEMORY
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="maps-") as folder:
            again = self.explain(run, self.saliency, Path(folder) if large else None, self.progress.explanation())
            means = {}
            for method in self.means.keys() & again.maps.keys():
                one, scale = again.maps[method], run.sampler.scale
                origin = one.origin[0] + move[0] * scale[0], one.origin[1] + move[1] * scale[1]
                means[method] = average(replace(one, origin=origin), self.cells)
            return again.prediction.score_of(self.saliency.target), means
