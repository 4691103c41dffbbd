"""The certificate of a loaded model, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import streamview
from streamview.errors import Cancelled, MemoryBudgetError, RegionError
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inspection.certificate import Certificate
from streamview.inspection.verification import _pixels
from streamview.networks import Model, load_model
from streamview.progress import Step
from streamview.slides import open_slide
from streamview.slides.sampling import Sampler
from streamview.streaming.step import backward_step
from tests.support.commands import Run
from tests.support.slides import SyntheticSlide


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("demo")


def test_of_random_pixels(model: Model) -> None:
    steps: list[Step] = []
    found = streamview.verify(model, windows=2, report=steps.append)
    assert found.passed
    assert (found.network, found.weights_sha256, found.pixels) == (model.card.name, model.sha256, "random")
    assert found.facts["card_sha256"] == model.card.sha256
    assert [(step.task, step.done, step.total) for step in steps] == [("verification", done, 2) for done in range(3)]
    assert not any(p.requires_grad for p in model.module.parameters())
    assert all(p.dtype == torch.float32 for p in model.module.parameters())


def test_of_a_region_of_a_slide(model: Model, synthetic_slide: SyntheticSlide) -> None:
    region = Region(700, 300, 301, 402)
    with open_slide(synthetic_slide.path) as slide:
        found = streamview.verify(model, slide, region, windows=2, compute=Compute(tile=(64, 97)))
        assert found.facts["slide_identity"] == slide.identity
    assert found.passed
    assert found.facts["region"] == "300,700,402,301"
    assert "300,700,402,301" in str(found)
    assert all(c.y + c.height <= 301 and c.x + c.width <= 402 and c.tile == (64, 97) for c in found.comparisons)


def test_glass_alone_passes(model: Model) -> None:
    """Equal pixels would tie in max-pooling; noise below half a grey level keeps them apart and rounds to them."""
    glass = np.full((300, 280, 3), 240, np.uint8)
    assert streamview.verify(model, glass, windows=1, mpp=model.card.mpp).passed
    sampler = Sampler(streamview.slides.as_slide(glass, model.card.mpp), None, model.card.mpp)
    seen = _pixels(sampler, model, 0)((0, 20), (5, 9))
    assert seen.shape == (3, 20, 4)
    assert len(seen.unique()) == seen.numel()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (model.card.mean, model.card.std))
    assert ((seen * std + mean) * 255).round().eq(240).all()


def test_it_can_be_cancelled_and_refuses_what_does_not_fit(model: Model) -> None:
    def cancel(step: Step) -> None:
        if step.done:
            raise Cancelled("stopped by the user")

    with pytest.raises(Cancelled):
        streamview.verify(model, report=cancel)
    with pytest.raises(MemoryBudgetError, match="the process already takes"):
        streamview.verify(model, compute=Compute(memory="1MB"))
    with pytest.raises(RegionError, match="expected one inside level 0"):
        streamview.verify(model, np.zeros((90, 90, 3), np.uint8), Region(0, 0, 99, 99), mpp=0.5)


def test_the_command_prints_and_keeps_the_certificate(run: Run, model: Model, synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    job, file = tmp_path / "job", tmp_path / "new" / "certificate.json"
    arguments = ["-m", "demo", "-i", synthetic_slide.path, "--region", "300,700,402,301", "--windows", 1, "--seed", 5]
    status, out, err = run("verify", *arguments, "--json", file, "-o", job)
    assert status == 0
    assert "verification: 1 step, " in err
    assert "\npassed: worst relative error " in out
    kept = job / "certificates" / f"synthetic.svs-x300-y700-w402-h301-{model.sha256[:12]}.json"
    assert f"written: {file}" in out
    assert [path for path in job.rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == file.read_text()
    found = Certificate.from_dict(json.loads(kept.read_text()))
    assert found.passed
    assert found.seed == 5
    assert str(found) in out


def test_a_broken_engine_fails_the_command(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamview.streaming.run.passes.backward_step", lambda *args: (backward_step(*args)[0], [None] * 99))
    status, out, _ = run("verify", "-m", "demo", "--windows", 1, "-o", tmp_path)
    assert status == 1
    assert "\nFAILED: worst relative error " in out
    (kept,) = (tmp_path / "certificates").iterdir()
    assert json.loads(kept.read_text())["passed"] is False


def test_the_command_says_what_does_not_fit(run: Run) -> None:
    status, _, err = run("verify", "-m", "demo", "--region", "0,0,9,9")
    assert (status, err.count("\n")) == (1, 1)
    assert "there is no slide; name one with -i" in err
    status, out, _ = run("verify", "-m", "imagenette", "--untrained", "--windows", 1)
    assert status == 0
    assert "weights: random (untrained)" in out
