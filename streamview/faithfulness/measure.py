"""Measure the maps of one result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamview.errors import RegionError, StreamviewError
from streamview.faithfulness.curves import area_under, normalise, ranking, step_counts
from streamview.faithfulness.grid import Squares, average, cell_side, patch_side, tissue_shares
from streamview.faithfulness.localisation import Area, Localisation, localise_map
from streamview.faithfulness.parts import Parts
from streamview.faithfulness.progress import EXPLANATION, Together
from streamview.faithfulness.result import Change, Curve, Faithfulness, MapFaithfulness, Similarity, read_change
from streamview.faithfulness.runs import Explain, Runs, explain_again
from streamview.faithfulness.settings import Settings
from streamview.faithfulness.shuffling import STAGES
from streamview.inference.prepared import PreparedRun
from streamview.progress import Report
from streamview.results import Method, Plane, Saliency, SaliencyMap
from streamview.system.versions import versions

__all__ = ["forward_passes", "measure_faithfulness"]

_LEAST_PATCHES, _LEAST_CELLS = 4, 16
_LEAST_TISSUE, _MOSTLY_TISSUE = 0.05, 0.5  # of a patch that is erased, of a cell that is compared

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def measure_faithfulness(
    run: PreparedRun,
    saliency: Saliency,
    settings: Settings = Settings(),
    *,
    annotated: tuple[str, Area] | None = None,
    explain: Explain = explain_again,
    parts: Parts | None = None,
    report: Report | None = None,
) -> Faithfulness:
    """Measure whether the maps of a result show what the network uses.

    Patches are ranked by what a display shows of the map there: means over cells of 8 px, about the displays' blur, without what is
    negative, are averaged over each patch. The score is the target's raw logit (or difference of two, or output of a regression), never
    a softmax probability.

    Parameters
    ----------
    run
        Prepared for the network, slide and region of the result.
    saliency
        The result; maps of any name are measured.
    settings
        What is measured.
    annotated
        Name and area of annotations that the maps are compared with.
    explain
        Computes the maps again; what it does not give is not compared with shuffled networks and changed regions.
    parts
        Measurements that were finished before, to which those of this run are added.
    report
        Called after every step of the engine; may raise `Cancelled`.

    Returns
    -------
    Faithfulness

    Raises
    ------
    StreamviewError
        When run and result do not belong together, or the maps are answers for patches.
    RegionError
        When the region has fewer than four patches with tissue.
    SlideError, ModelError, MemoryBudgetError
        As `PreparedRun.predict`.

    Examples
    --------
    >>> import streamview
    >>> from streamview.faithfulness import Settings, measure_faithfulness
    >>> with streamview.open_slide("slide.svs") as slide:
    ...     run = streamview.prepare(streamview.load_model("demo"), slide)
    ...     (saliency,) = run.explain(["lesion"])
    ...     measured = measure_faithfulness(run, saliency, Settings(steps=4, shuffles=1, noises=0))
    >>> [check.name for check in measured.checks("evidence")]
    ['deletion', 'insertion', 'parameter randomisation', 'stability']
    """
    start = time.monotonic()
    name, parts = saliency.prediction.slide_name, parts or Parts()
    if run.identity != saliency.prediction.identity:
        raise StreamviewError(f"{name}: the maps are of another network, slide or region than the run; expected a run prepared as theirs")
    given: dict[Method, SaliencyMap] = {method: one for method, one in saliency.maps.items() if method != "patches"}
    if not given:
        raise StreamviewError(f"{name}: its map holds answers for patches, which explain nothing; compute maps with `streamview saliency`")
    patches, cells = (Squares.of(run, side) for side in (settings.patch or patch_side(run.inside), cell_side(run.inside)))
    counted = _patches_with_tissue(run, patches, name)
    counts = step_counts(int(counted.sum()), settings.steps)
    means = {method: average(one, cells) for method, one in given.items()}
    ranked = {method: average(_shown(values, cells), patches) for method, values in means.items()}
    flaws = {method: _flaw(values, counted) for method, values in ranked.items()}
    sound = [method for method, flaw in flaws.items() if flaw is None]
    todo = {} if not sound else {task: units for task, units in _tasks(settings, sound, len(counts)).items() if task not in parts}
    runs = Runs(
        run=run,
        saliency=saliency,
        settings=settings,
        explain=explain,
        plan=run.plan(),
        patches=patches,
        counts=counts,
        cells=cells,
        compared=_cells_with_tissue(run, cells),
        means={method: means[method] for method in sound},
        scratch=parts.scratch,
        progress=Together("faithfulness", sum(todo.values()), report),
    )
    for task in todo:
        parts.put(task, _job(task, runs, ranked, counted, parts)())
    full, empty = parts["ends"] if sound else (math.nan, math.nan)
    shares = tuple(count / counts[-1] for count in counts)
    annotations, area = annotated or ("", None)

    def curve(task: str) -> Curve:
        values = normalise(parts[task], full, empty)
        return Curve(shares, tuple(parts[task]), None if values is None else area_under(shares, values))

    maps = tuple(
        MapFaithfulness(method, flaw)
        if flaw is not None
        else MapFaithfulness(
            method=method,
            on_glass=_share_on_glass(ranked[method], counted),
            deletion=curve(f"deletion-{method}"),
            insertion=curve(f"insertion-{method}"),
            shuffled=tuple(Similarity(**one) for one in _each(parts, "shuffled", settings.shuffles, method)),
            cascade=tuple(Similarity(**one) for one in _each(parts, "cascade", len(STAGES), method)),
            changes=tuple(read_change(one) for one in _each(parts, "changed", settings.noises + 1, method)),
            localisation=None if area is None else _localised(given[method], area, annotations),
        )
        for method, flaw in flaws.items()
    )
    return Faithfulness(
        identity=run.identity,
        target=saliency.target,
        slide_name=name,
        model_name=saliency.prediction.model_name,
        settings=settings,
        patch=patches.side,
        patches=counts[-1],
        cell=cells.side,
        full=full,
        empty=empty,
        random=tuple(curve(f"random-{n}") for n in range(settings.rankings)) if sound else (),
        maps=maps,
        annotations=annotations,
        seconds=time.monotonic() - start,
        version=versions()["streamview"],
    )


def forward_passes(settings: Settings, maps: int) -> int:
    """How many forward passes all measurements of a result take, an explanation counted as three."""
    return sum(_tasks(settings, [str(number) for number in range(maps)], settings.steps + 1).values())


def _tasks(settings: Settings, methods: Sequence[str], steps: int) -> dict[str, int]:
    """The measurements, in the order in which they are made, and the forward passes that each takes."""
    between = steps - 2  # scores of a curve besides its ends
    tasks = {"ends": 2}
    tasks |= {f"random-{n}": between for n in range(settings.rankings)}
    tasks |= {f"{kind}-{method}": between for method in methods for kind in ("deletion", "insertion")}
    tasks |= {f"shuffled-{n}": EXPLANATION for n in range(settings.shuffles)}
    tasks |= {f"cascade-{n}": EXPLANATION for n in range(len(STAGES))}
    return tasks | {f"changed-{n}": EXPLANATION for n in range(settings.noises + 1)}


def _job(task: str, runs: Runs, ranked: Mapping[Method, Floats], counted: Mask, parts: Parts) -> Callable[[], Any]:
    """What makes a measurement, as plain JSON values."""
    kind, _, which = task.partition("-")
    seed = runs.settings.seed
    if kind == "ends":
        return partial(runs.ends, counted)
    if kind == "random":
        order = np.random.default_rng((seed, int(which))).permutation(np.flatnonzero(counted))
        return partial(runs.deleted, order, parts["ends"])
    if kind in ("deletion", "insertion"):
        values = next(values for method, values in ranked.items() if method == which)
        order = ranking(values, counted, seed)
        return partial(runs.deleted if kind == "deletion" else runs.inserted, order, parts["ends"])
    if kind == "changed":
        return lambda: _plain(runs.changes(int(which), parts["ends"]))
    number, layers = (int(which), 1.0) if kind == "shuffled" else (0, STAGES[int(which)])
    return lambda: _plain(runs.similarities(number, layers))


def _plain(results: Mapping[Method, Similarity | Change]) -> dict[str, Any]:
    return {method: asdict(one) for method, one in results.items()}


def _each(parts: Parts, kind: str, count: int, method: str) -> list[dict[str, Any]]:
    """The results of a kind of measurement for one map."""
    return [parts[f"{kind}-{n}"][method] for n in range(count) if method in parts[f"{kind}-{n}"]]


def _patches_with_tissue(run: PreparedRun, patches: Squares, name: str) -> Mask:
    """Which patches are erased: those that hold tissue.

    Raises
    ------
    RegionError
        When these are fewer than four.
    """
    counted = tissue_shares(run, patches) >= _LEAST_TISSUE
    count, (height, width) = int(counted.sum()), run.inside
    if count < _LEAST_PATCHES:
        raise RegionError(
            f"{name}: {count} of the patches of {patches.side} px in {width} x {height} px hold tissue; expected {_LEAST_PATCHES} or more: "
            "choose smaller patches with --patch, or a larger region"
        )
    return counted


def _cells_with_tissue(run: PreparedRun, cells: Squares) -> Mask:
    """Which cells are compared: those of tissue, as on glass most maps are alike; all of them where hardly any holds tissue."""
    compared = tissue_shares(run, cells) >= _MOSTLY_TISSUE
    return compared if compared.sum() >= _LEAST_CELLS else np.ones_like(compared)


def _shown(means: Floats, cells: Squares) -> SaliencyMap:
    """What a display shows of a map, from its means over cells: nothing of what is negative."""
    step = cells.side * cells.scale[0], cells.side * cells.scale[1]
    origin = cells.region.y + (step[0] - 1) / 2, cells.region.x + (step[1] - 1) / 2
    return SaliencyMap("absolute", Plane(np.maximum(means, 0).astype(np.float32)), step, origin)


def _flaw(values: Floats, counted: Mask) -> str | None:
    """Why a map cannot be ranked, from its means over patches; None if it can."""
    if not np.isfinite(values).all():
        return "the map holds values that are not finite"
    if not values.any():
        return "the map is positive nowhere"
    tissue = values[counted]
    if np.ptp(tissue) <= 1e-9 * np.abs(tissue).max():
        return "the map has the same value on all patches with tissue, so it ranks none before another"
    return None


def _share_on_glass(values: Floats, counted: Mask) -> float:
    return float(values[~counted].sum() / values.sum())


def _localised(saliency_map: SaliencyMap, area: Area, annotations: str) -> Localisation:
    try:
        return localise_map(saliency_map, area)
    except ValueError:
        where = "nowhere" if not area.mask.any() else "everywhere"
        raise RegionError(
            f"{annotations}: its area is {where} in the region of the maps; expected a part of it: leave out --annotations, or name others"
        ) from None
