"""What a map is, in words, and how to compute it again: on the command line or in Python. Pure."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamview.errors import StreamviewError
from streamview.inference.compute import Compute
from streamview.results import GRADIENT, RESEARCH_USE, ExplanationMethod, Saliency
from streamview.results.display import PRESETS, Recipe, title_of
from streamview_napari.requests.controls import command_options

if TYPE_CHECKING:
    from streamview_napari.requests.answers import RunFacts

__all__ = ["Origin", "about", "command", "find_origin", "python"]


@dataclass(frozen=True, slots=True)
class Origin:
    """How a map was computed, as far as its result does not say so itself.

    Parameters
    ----------
    model, weights, card, untrained
        As for `streamview.load_model`.
    slide
        Path of the slide.
    mpp
        Um per level-0 px that the user gave; None where the slide's own was taken.
    compute
        Where and how; where its `tile` is not known, results may differ in their last bits.
    """

    model: str
    slide: str
    weights: str | None = None
    card: str | None = None
    untrained: bool = False
    mpp: float | None = None
    compute: Compute = Compute()


def find_origin(saliency: Saliency, run: RunFacts | None = None) -> Origin:
    """Find out how a map was computed: from the facts of the run in this window, else from the job folder that it lies in.

    Raises
    ------
    StreamviewError
        When neither says so.
    """
    if run is not None and run.slide is not None:
        return Origin(run.model, run.slide, untrained=run.untrained, mpp=run.mpp, compute=run.compute)
    if saliency.path is None:
        raise StreamviewError(f"{saliency.target}: is made of other maps; copy the script of each of them")
    folder = saliency.path.parents[2] if len(saliency.path.parents) > 2 else saliency.path.parent
    origin = _in_job(folder, saliency) if (folder / "slides").is_dir() else None
    if origin is None:
        raise StreamviewError(f"{saliency.path}: does not say how it was computed; open the job folder that it was made in")
    return origin


def _in_job(folder: Path, saliency: Saliency) -> Origin | None:
    """What the job's record and its runs say of a map."""
    from streamview.jobs import Job

    for record in Job(folder).slides():
        for result in record.regions:
            stored = any((folder / known.path).resolve() == Path(str(saliency.path)).resolve() for known in result.maps)
            path = folder / "runs" / f"{result.run_id}.json"
            if not stored or result.source is None or not path.is_file():
                continue
            run = json.loads(path.read_text(encoding="utf-8"))
            words = run["command"]
            model, mpp = _option(words, "-m", "--model"), _option(words, "--mpp")
            if words[:1] != ["saliency"] or model is None:
                return None
            plan = result.plan or run.get("plan", {}).get(record.slide_id, {})
            tile = plan.get("tile")
            return Origin(
                model,
                result.source,
                weights=_option(words, "--weights"),
                card=_option(words, "--card"),
                untrained="--untrained" in words,
                mpp=None if mpp is None else float(mpp),
                compute=Compute(
                    _option(words, "--device") or "auto", _option(words, "--memory"), None if tile is None else (tile[0], tile[1])
                ),
            )
    return None


def _option(words: list[str], *names: str) -> str | None:
    """What follows an option on a command line, as ``--name value`` or ``--name=value``."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word in names:
            return following
        name, sign, value = word.partition("=")
        if sign and name in names:
            return value
    return None


def command(saliency: Saliency, origin: Origin, recipe: Recipe, job: str = "job") -> str:
    """Return the command line that computes a map again, into a job folder."""
    display = next((preset for preset, other in PRESETS.items() if other.method == recipe.method), None)
    options: dict[str, Any] = {
        "-i": origin.slide,
        "-o": job,
        "-m": origin.model,
        "--weights": origin.weights,
        "--card": origin.card,
        "--target": saliency.target.name,
        "--region": saliency.prediction.region,
        "--mpp": origin.mpp,
        "--display": display,
    }
    words = ["streamview", "saliency"]
    for option, value in options.items():
        words += [] if value is None else [option, str(value)]
    words += command_options(_compute(saliency, origin), Compute())
    return shlex.join([*words, *(["--untrained"] if origin.untrained else [])])


def python(saliency: Saliency, origin: Origin, recipe: Recipe) -> str:
    """Return the Python script that computes a map again, checks that it is the same, and draws it as it is shown."""
    prediction, region = saliency.prediction, saliency.prediction.region
    model = {"weights": origin.weights, "card": origin.card, "untrained": origin.untrained or None}
    mpp_argument = "" if origin.mpp is None else f", mpp={origin.mpp!r}"
    return f"""\
# {title_of(saliency, recipe.method)}: {saliency.target.name} | {prediction.slide_name} | {prediction.answer_for(saliency.target)}
# {RESEARCH_USE}
import streamview
from streamview.results.display import Recipe
from streamview.export.png import render_png

model = streamview.load_model({origin.model!r}{_keywords(model)})
with streamview.open_slide({origin.slide!r}{mpp_argument}) as slide:
    compute = {_compute_text(_compute(saliency, origin))}
    region = streamview.Region(y={region.y}, x={region.x}, height={region.height}, width={region.width})
    saliency = streamview.saliency(model, slide, region, {saliency.target.name!r}, out="map.ome.zarr", compute=compute)
    if saliency.prediction.identity.key != {prediction.identity.key!r}:
        raise SystemExit("the network or the slide is not the one that the map was made with")
    recipe = {recipe!r}
    render_png(slide, saliency, recipe, "map.png")
print(saliency.prediction.answer_for(saliency.target))
"""


def about(saliency: Saliency, recipe: Recipe, origin: Origin | None, verified: str = "") -> str:
    """Say what a map is and how it was computed, a fact a line."""
    prediction, identity = saliency.prediction, saliency.prediction.identity
    grid = f"{prediction.shape[1]} x {prediction.shape[0]} px"
    mpp = "mpp unknown" if prediction.mpp is None else f"{prediction.mpp[1]:.4g} um/px"
    facts = {
        "Map": title_of(saliency, recipe.method),
        "Reduction": saliency.maps[recipe.method].reduction,
        "Target": f"{saliency.target.name}, {prediction.answer_for(saliency.target)}",
        "Slide": prediction.slide_name,
        "Region": f"{prediction.region} (x, y, width, height in level-0 px), read as {grid} at {mpp}",
        "Network": prediction.model_name + ("" if prediction.trained else " (untrained, random weights)"),
        "Weights": f"sha256 {identity.weights_sha256}",
        "Precision": identity.precision,
        "Glass": identity.glass or "as scanned",
        "Plan": "not known"
        if origin is None or origin.compute.tile is None
        else f"steps of {origin.compute.tile[1]} x {origin.compute.tile[0]} px on {origin.compute.device}",
        "Exactness": verified or "not verified",
        "Identity": identity.key,
        "Stored": "in memory" if saliency.path is None else str(saliency.path),
    }
    lines = [f"{name}: {value}" for name, value in facts.items()]
    return "\n".join([*lines, *prediction.warnings, RESEARCH_USE])


def _compute(saliency: Saliency, origin: Origin) -> Compute:
    """What computes a map again: in its precision, and by its steps where they are known, whatever the memory."""
    identity: Any = saliency.prediction.identity
    method = GRADIENT if identity.method is None else ExplanationMethod.parse(identity.method)
    compute = replace(origin.compute, precision=identity.precision, method=method, glass=identity.glass or "as-scanned")
    return compute if compute.tile is None else replace(compute, memory=None)


def _compute_text(compute: Compute) -> str:
    """The expression of Python that makes it."""
    text = f"streamview.{compute!r}".removesuffix(")")
    if compute.method != GRADIENT:
        text += f", method=streamview.ExplanationMethod.parse({str(compute.method)!r})"
    return f"{text}{'' if compute.glass == 'as-scanned' else f', glass={compute.glass!r}'})"


def _keywords(values: dict[str, Any]) -> str:
    return "".join(f", {name}={value!r}" for name, value in values.items() if value is not None)
