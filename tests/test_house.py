"""The house rules that a machine can check: few loose modules, few parameters, one preparation a run."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import streamview
from streamview.cohort import regions as cohort
from streamview.cohort.settings import Settings
from streamview.cohort.slide import process
from streamview.cohort.work import Work
from streamview.cohort.worklist import read_worklist
from streamview.inference import prepared
from streamview.inference.compute import Compute
from streamview.inference.prepared import PreparedRun
from streamview.jobs import Job
from streamview.streaming.capture import capture
from streamview.streaming.plan.plan import Plan
from tests.support.slides import SyntheticSlide

ROOT = Path(streamview.__file__).parent


def test_at_most_eight_modules_are_loose() -> None:
    loose = [path.stem for path in ROOT.glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= 8, loose


def test_no_public_function_but_finetune_takes_more_than_nine_parameters() -> None:
    many = []
    for path in ROOT.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        public = {
            name.value for node in body if isinstance(node, ast.Assign) for name in ast.walk(node.value) if isinstance(name, ast.Constant)
        }
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name in public:
                count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                many += [node.name] if count > 9 else []
    assert many == ["finetune"]


class Counted:
    """Counts the preparations and captures of runs, and records the plans that were forecast and those that were run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prepared = self.captures = 0
        self.forecast: list[Plan] = []
        self.run: list[Plan] = []
        prepare, captured, forecast, complete = prepared.prepare, capture.capture, PreparedRun.forecast, PreparedRun._complete

        def counted_prepare(*args, **options):
            self.prepared += 1
            return prepare(*args, **options)

        def counted_capture(*args, **options):
            self.captures += 1
            return captured(*args, **options)

        def recorded_forecast(run, *args, **options):
            self.forecast.append((expected := forecast(run, *args, **options)).plan)
            return expected

        def recorded_complete(run, call, plan, *rest):
            self.run.append(plan)
            return complete(run, call, plan, *rest)

        monkeypatch.setattr(cohort, "prepare", counted_prepare)
        monkeypatch.setattr(capture, "capture", counted_capture)
        monkeypatch.setattr(PreparedRun, "forecast", recorded_forecast)
        monkeypatch.setattr(PreparedRun, "_complete", recorded_complete)


@pytest.mark.parametrize("answer", ["region", "maps"])
def test_a_slide_is_prepared_once_and_runs_by_the_plan_that_was_announced(
    answer, synthetic_slide: SyntheticSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    announced = []
    model = streamview.load_model("demo")
    settings = Settings(answer, region=streamview.Region(600, 300, 256, 300), compute=Compute(tile=(64, 100)))
    work = Work(model, Job(tmp_path), "run", settings, announce=lambda slide, ahead: announced.append(ahead.first))
    (case,) = read_worklist([synthetic_slide.path])
    assert process(work, case).status == "answered"
    assert (counted.prepared, counted.captures) == (1, 1)
    (ahead,) = announced
    assert counted.forecast == [ahead.plan]
    assert counted.run[0] is ahead.plan
    assert counted.run == [ahead.plan]


def test_a_prepared_run_gives_what_the_public_functions_give() -> None:
    model, pixels = streamview.load_model("demo"), np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    run = streamview.prepare(model, pixels, mpp=0.5, compute=Compute(tile=(64, 128)))
    plan = run.forecast(targets=2).plan
    both = run.explain(["normal", "lesion"], plan)
    assert np.array_equal(run.predict().logits, both[0].prediction.logits)
    for target, ours in zip(("normal", "lesion"), both, strict=True):
        alone = streamview.saliency(model, pixels, target=target, mpp=0.5, compute=Compute(tile=(64, 128)))
        for method, saliency_map in alone.maps.items():
            assert np.array_equal(saliency_map.values, ours.maps[method].values)
        assert alone.prediction.identity == ours.prediction.identity == run.identity
