"""Glass that is made flat: the answer is that of the flattened image, the map ends beside the tissue, and little is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import streamview.streaming.run.passes as passes
from streamview.cohort.settings import Settings
from streamview.errors import ModelError
from streamview.export.dicom.provenance import algorithm_parameters
from streamview.export.report import write_results
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.explain import predict, saliency
from streamview.inference.identity import identify
from streamview.inference.methods import ExplanationMethod
from streamview.inference.prepared import prepare
from streamview.networks import Model
from streamview.results import Identity, open_saliency
from streamview.slides import as_slide
from streamview.slides.flat import FlatSampler
from streamview.slides.sampling import Sampler
from streamview.streaming.busy import Reach, busy_steps, summed
from streamview.streaming.step import build_grid
from streamview.system.machine import resident_memory
from tests.support.inference import Gated, distance, make_model, whole
from tests.support.networks import seed_network

FLAT = Compute(glass="flat")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Noisy glass with two pieces of tissue, one at the edge."""
    rng = np.random.default_rng(5)
    image = rng.normal(242, 2, (640, 900, 3))
    for top, left, bottom, right in ((120, 200, 260, 380), (500, 700, 640, 800)):
        image[top:bottom, left:right] = rng.normal((170, 90, 150), 25, (bottom - top, right - left, 3))
    return image.clip(0, 255).astype(np.uint8)


class Mean(nn.Sequential):
    """Convolutions behind a mean, so that every pixel has a gradient."""

    def __init__(self) -> None:
        body = [nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
        super().__init__(*body, nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return make_model(Mean())


def flattened(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    slide = as_slide(pixels)
    sampler = FlatSampler(slide, Sampler(slide))
    return sampler.read(0, pixels.shape[0], 0, pixels.shape[1]), sampler.near_tissue(0, pixels.shape[0], 0, pixels.shape[1])


def test_only_glass_is_changed(pixels: NDArray[np.uint8]) -> None:
    flat, kept = flattened(pixels)
    assert np.array_equal(flat[kept], pixels[kept])
    assert (flat[~kept] == 255).all()
    assert kept[117:263, 203:377].all()
    assert kept[503:, 697:803].all()
    assert not kept[300:450].any()
    slide = as_slide(pixels)
    sampler = FlatSampler(slide, Sampler(slide))
    for y0, y1, x0, x1 in ((0, 90, 0, 900), (100, 300, 150, 500), (130, 200, 250, 300), (450, 640, 650, 900), (7, 8, 3, 4)):
        assert np.array_equal(sampler.read(y0, y1, x0, x1), flat[y0:y1, x0:x1])


def test_a_region_has_the_glass_of_its_slide(pixels: NDArray[np.uint8]) -> None:
    flat, _ = flattened(pixels)
    slide, region = as_slide(pixels), Region(100, 230, 300, 400)
    assert np.array_equal(FlatSampler(slide, Sampler(slide, region)).read(0, 300, 0, 400), flat[100:400, 230:630])


@pytest.mark.parametrize("mpp", [1.0, 1.33, 1.7, 1.97, 2.6, 4.1])
def test_cells_hold_what_is_kept(pixels: NDArray[np.uint8], mpp: float) -> None:
    slide = as_slide(pixels, mpp=1.0)
    sampler = FlatSampler(slide, Sampler(slide, Region(3, 5, 633, 889), mpp))
    sampler._near_mask = np.random.default_rng(0).random(sampler._near_mask.shape) < 0.02
    parts, near = sampler.parts, sampler.near_tissue(0, sampler.shape[0], 0, sampler.shape[1])
    rows, columns = (np.arange(n) * p // n for n, p in zip(near.shape, parts.shape, strict=True))
    assert not (near & ~parts[np.ix_(rows, columns)]).any()
    assert parts.mean() < 0.2


@pytest.mark.parametrize("tile", [(32, 1000), (48, 80), (64, 64), None], ids=["strips", "tiles", "whole strides", "chosen"])
def test_map_equals_autograd_on_the_flat_image(model: Model, pixels: NDArray[np.uint8], tile: tuple[int, int] | None) -> None:
    flat, kept = flattened(pixels)
    found = saliency(model, pixels, compute=Compute(tile=tile, glass="flat", memory=None if tile is None else "2GB"))
    logits, absolute, signed = whole(model, flat, found.target.index)
    assert distance(found.prediction.logits, logits.numpy()) < 1e-5
    for name, expected in (("absolute", absolute), ("signed", signed)):
        values = np.asarray(found.maps[name].values)  # type: ignore[index]
        assert np.isnan(values[~kept]).all()
        assert distance(values[kept], expected[kept]) < 1e-5


@pytest.mark.parametrize("module", [lambda: seed_network(4, 4), lambda: Gated(2)], ids=["maximum", "barriers"])
def test_other_networks(module: Any, pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(2)
    model, (flat, kept) = make_model(module()), flattened(pixels)
    found = saliency(model, pixels, compute=FLAT)
    _, absolute, _ = whole(model, flat, found.target.index)
    assert absolute[kept].any()
    assert distance(np.asarray(found.maps["absolute"].values)[kept], absolute[kept]) < 1e-4


@pytest.mark.parametrize("growth", [None, 2**29])
def test_little_is_computed(model: Model, pixels: NDArray[np.uint8], growth: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = None if growth is None else resident_memory() + growth
    forward, backward = [], []
    run, reverse = passes.run_step, passes.backward_step
    monkeypatch.setattr(passes, "run_step", lambda *a: (forward.append(0), run(*a))[1])
    monkeypatch.setattr(passes, "backward_step", lambda *a: (backward.append(0), reverse(*a))[1])
    prepared = prepare(model, pixels, compute=Compute(tile=(64, 64), glass="flat", memory=memory))
    plan = prepared.plan(1)
    forward.clear()
    backward.clear()  # of the check of the captured network
    prepared.explain(plan=plan)
    assert plan.computed < 0.5
    assert len(backward) == round(plan.computed * plan.steps)
    # besides these a few steps of every geometry, and those on which a carry of something else arrives
    assert len(forward) - (0 if plan.saved_steps == plan.steps else len(backward)) < 0.7 * plan.steps
    assert prepared.forecast(1).plan.overhead == pytest.approx(plan.overhead)


def test_nothing_is_read_beside_the_tissue(model: Model, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = Sampler.read, np.zeros(pixels.shape[:2], bool)

    def watched(self: Sampler, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        seen[y0:y1, x0:x1] = True
        return read(self, y0, y1, x0, x1)

    monkeypatch.setattr(Sampler, "read", watched)
    _, kept = flattened(pixels)
    seen[:] = False
    predict(model, pixels, compute=Compute(tile=(64, 64), glass="flat"))
    assert seen[kept].all()
    assert kept[seen].mean() > 0.6


def test_steps_that_see_no_part_are_left_out(model: Model) -> None:
    bound = prepare(model, np.full((320, 320, 3), 240, np.uint8)).forward.bound
    program = bound.program(0, ())
    grid, parts = build_grid(program, (32, 32)), np.zeros((40, 40), bool)
    assert not busy_steps(Reach(bound, program), grid, summed(parts)).any()
    parts[16, 16] = True  # px 128 to 136
    busy = np.argwhere(busy_steps(Reach(bound, program), grid, summed(parts)))
    assert busy.min() == 4
    assert busy[:, 1].max() <= 5  # deep values wait for rows worth computing, but not for columns
    assert busy_steps(Reach(bound, program), grid, summed(np.ones((1, 1), bool))).all()


@pytest.mark.slow
def test_a_black_baseline_counts_the_glass(model: Model, pixels: NDArray[np.uint8]) -> None:
    """Glass differs from the baseline, so it has attributions, which must be in their sum."""
    method = ExplanationMethod("integrated-gradients", steps=4, baseline="black")
    flat = prepare(model, as_slide(pixels), compute=Compute(glass="flat", method=method, tile=(32, 32))).explain([0])[0]
    plain = prepare(model, as_slide(flattened(pixels)[0]), compute=Compute(method=method)).explain([0])[0]
    assert plain.completeness is not None
    assert flat.completeness == pytest.approx(plain.completeness, rel=0.02)


def test_identity_says_so(model: Model, pixels: NDArray[np.uint8]) -> None:
    slide = as_slide(pixels)
    plain, flat = (predict(model, slide, compute=compute).identity for compute in (Compute(), FLAT))
    assert plain.key != flat.key
    assert flat.glass == "flat"
    assert "glass" not in plain.to_dict()
    assert Identity.from_dict(flat.to_dict()) == flat == identify(model, slide, glass="flat")
    assert Settings(compute=FLAT).compute.glass == "flat"
    with pytest.raises(ModelError, match="glass 'thin' is unknown: expected as-scanned or flat"):
        Compute(glass="thin")  # type: ignore[arg-type]


def test_exports_say_so(model: Model, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    slide = as_slide(pixels)
    for compute in (FLAT, Compute()):
        prediction = predict(model, slide, compute=compute)
        assert algorithm_parameters(prediction)["glass"] == compute.glass
        page, _ = write_results([prediction], tmp_path / f"{compute.glass}.html", slide)
        assert ("flat: away from tissue" in page.read_text(encoding="utf-8")) == (compute.glass == "flat")


def test_a_map_on_disk_takes_no_space_on_glass(model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = np.full((300, 5000, 3), 243, np.uint8)
    image[50:250, 4500:4700] = rng.integers(60, 200, (200, 200, 3))
    stored = saliency(model, image, compute=FLAT, out=tmp_path / "flat.ome.zarr")
    shards = sorted(path.name for path in (tmp_path / "flat.ome.zarr/0/c").rglob("*") if path.is_file())
    assert shards == ["2", "2"]  # of both maps the last of three
    values = np.asarray(open_saliency(tmp_path / "flat.ome.zarr").maps["absolute"].values[:, :])
    assert np.isnan(values[:, :4000]).all()
    assert np.isfinite(values[100:200, 4550:4650]).all()
    in_memory = saliency(model, image, compute=FLAT)
    np.testing.assert_array_equal(values, np.asarray(in_memory.maps["absolute"].values))
    assert stored.path is not None
