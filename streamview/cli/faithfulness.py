"""The command ``faithfulness``: whether a job's maps show what the network uses."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.cli.console import Bars, complain, one_line, say, warn
from streamview.cli.run import parse_tile
from streamview.cli.talk import show_cost
from streamview.errors import Cancelled, ModelError, StreamviewError

if TYPE_CHECKING:
    from streamview.faithfulness.forecast import Forecast
    from streamview.faithfulness.job import JobMaps
    from streamview.faithfulness.result import Faithfulness
    from streamview.jobs import Job, RegionResult
    from streamview.networks import Model

__all__ = ["faithfulness", "verdicts"]


def faithfulness(options: Namespace, arguments: list[str]) -> int:
    """Measure the maps of a job; the exit status is 1 where some could not be measured, not where a map fails."""
    from streamview.faithfulness.job import Telling, measure_maps, stored_maps
    from streamview.faithfulness.settings import Settings
    from streamview.inference.compute import Compute
    from streamview.jobs import Job

    start, job = time.monotonic(), Job(options.job)
    if not (job.folder / "slides").is_dir():
        raise StreamviewError(f"{job.folder}: is not a job folder; give one written by streamview saliency")
    settings = Settings(options.patch, options.steps, options.rankings, options.shuffles, seed=options.seed)
    compute = Compute(options.device, options.memory, None if options.tile is None else parse_tile(options.tile))
    annotations = None if options.annotations is None else Path(options.annotations)
    chosen, failed = stored_maps(job, options.slide, options.target), 0
    with Bars() as bars:
        telling = Telling(_announce, say, bars)
        load = cache(lambda name: _load(options, name))
        for maps in chosen:
            say(f"\n{maps}")
            try:
                measured = measure_maps(
                    maps, load, settings, annotations=annotations, compute=compute, restart=options.restart, telling=telling
                )
            except Cancelled:
                raise
            except StreamviewError as error:
                failed += 1
                complain(f"error: {one_line(error)}")
                continue
            bars.close()
            _show(measured, job, maps)
    if failed:
        complain(f"{failed} of {len(chosen)} results could not be measured")
    show_cost(time.monotonic() - start)
    return 1 if failed else 0


def verdicts(job: Job, result: RegionResult) -> Iterator[str]:
    """Yield the stored verdicts on an answer's maps, a line each."""
    from streamview.faithfulness.store import read_faithfulness
    from streamview.results import open_saliency

    for stored in result.maps:
        path = job.folder / stored.path
        if not path.is_dir() or not (job.folder / "faithfulness").is_dir():
            continue
        saliency = open_saliency(path)
        measured = read_faithfulness(saliency)
        if measured is not None:
            yield from (f"{saliency.target}, {method}: {measured.line(method)}" for method in saliency.maps if measured.of(method))


def _load(options: Namespace, name: str) -> Model:
    from streamview.networks import load_model

    spec = name if options.model is None else options.model
    try:
        return load_model(spec, weights=options.weights, card=options.card, untrained=options.untrained)
    except ModelError as error:
        if options.model is not None:
            raise
        raise ModelError(f"the maps are of the network {name}, which is no name to load it by ({error}); name it with -m") from None


def _announce(maps: JobMaps, forecast: Forecast) -> None:
    say(f"forecast: {forecast}")


def _show(measured: Faithfulness, job: Job, maps: JobMaps) -> None:
    from streamview.faithfulness.store import FILE, faithfulness_folder

    say(f"score {measured.full:.4g}, without its tissue {measured.empty:.4g}")
    say(f"{measured.patches} patches of {measured.patch} px hold tissue; {len(measured.random)} random rankings")
    for one in measured.maps:
        say(f"{one.method}: {measured.line(one.method)}")
        for detail in measured.details(one.method):
            say(f"  {detail}")
        if measured.failures(one.method):
            names = ", ".join(check.name for check in measured.failures(one.method))
            warn(f"the map {one.method} of {measured.target} fails {names}")
    if maps.saliency.path is not None:
        say(f"written: {os.path.relpath(faithfulness_folder(maps.saliency.path) / FILE)}.json")
