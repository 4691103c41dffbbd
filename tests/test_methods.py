"""Methods of explanation against captum and plain autograd in double precision, whatever the steps; their values, notes and refusals."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from numpy.typing import NDArray
from torch import Tensor, nn

from streamview.errors import Cancelled, MemoryBudgetError, ModelError, RegionError, StreamviewError
from streamview.inference import forecast as forecasts
from streamview.inference.changes import normal_noise
from streamview.inference.compute import Compute
from streamview.inference.explain import explain, saliency
from streamview.inference.identity import identify
from streamview.inference.methods import passes_of, patch_counts
from streamview.inference.prepared import PreparedRun, prepare
from streamview.networks import Model
from streamview.progress import Step
from streamview.results import GRADIENT, ExplanationMethod, Prediction, Saliency, open_saliency, save_saliency
from streamview.results.display import default_preset, show, usual_recipe
from streamview.results.methods import PARAMETERS
from streamview.slides import as_slide
from streamview.slides.synthetic import synthetic_region
from streamview.streaming.call import Call
from streamview.streaming.run import passes as step_passes
from tests.support.inference import Gated, make_model
from tests.support.networks import seed_network

TEXTS = (
    "gradient",
    "smoothgrad:samples=3,noise=0.2,seed=7",
    "integrated-gradients:steps=5",
    "integrated-gradients:steps=4,baseline=black",
    "grad-cam",
    "occlusion:patch=70,stride=50",
)
SMOOTH, INTEGRATED, BLACK, CAM, OCCLUDED = (ExplanationMethod.parse(text) for text in TEXTS[1:])
TILES = [(32, 1000), (48, 80)]


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """Tissue, and even background at the left and below, larger than a step."""
    pixels = synthetic_region(150, 210, seed=3, lesion_share=0.2)[0].copy()
    pixels[:, :100] = pixels[90:] = (236, 233, 238)
    return pixels


@pytest.fixture(scope="module")
def uneven(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`pixels` with a little noise: on even background values tie, and a maximum has more than one right gradient."""
    noise = np.random.default_rng(0).integers(-8, 9, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def network(kind: str = "max") -> Model:
    torch.manual_seed(0)
    if kind == "max":
        return make_model(seed_network(4, 4))
    body = [nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.Softplus(), nn.Conv2d(6, 5, 3, padding=1), nn.Tanh()]
    ends = {
        "mean": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)],
        "map": [nn.AvgPool2d(20), nn.Flatten(), nn.Linear(5 * 3 * 5, 2)],
    }
    module = nn.Sequential(*body, *ends[kind])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 2
    return make_model(module)


def doubled(model: Model, pixels: NDArray[np.uint8], method: ExplanationMethod, tile: tuple[int, int] | None = None, **options: Any) -> Any:
    """The same run in double precision, and its pixels."""
    model = replace(model, module=model.module.double())
    run = prepare(model, pixels, compute=Compute(tile=tile, method=method), **options)
    graph = run.forward.bound.graph
    weights = [weight.read().detach() for weight in graph.weights]
    run = replace(run, forward=Call(run.forward.bound, 1, torch.float64, None, weights, torch.float64))
    with run.reader(run.forward) as reader:
        image = reader.pixels((0, run.sampler.shape[0]), (0, run.sampler.shape[1]))
        return run, image, reader


def close(actual: Any, expected: Any) -> float:
    expected = np.asarray(expected, np.float64)
    assert np.asarray(actual).shape == expected.shape
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max().clip(min=1e-300))


def by_noise(module: nn.Module, image: Tensor, reader: Any, method: ExplanationMethod, target: int) -> tuple[Tensor, Tensor]:
    absolute, signed = torch.zeros(image.shape[2:]).double(), torch.zeros(image.shape[2:]).double()
    for sample in range(method.samples):
        noise = torch.from_numpy(normal_noise(method.seed, sample, (0, image.shape[2]), (0, image.shape[3]))).double()
        noisy = (image + method.noise * reader.range.double() * noise).requires_grad_()
        grad = torch.autograd.grad(module(noisy)[0, target], noisy)[0]
        absolute += grad.abs().amax(1)[0] / method.samples
        signed += (grad * (image - reader.background)).sum(1)[0] / method.samples
    return absolute, signed


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_smoothgrad_equals_autograd_with_the_same_noise(pixels: NDArray[np.uint8], kind: str, tile: tuple[int, int]) -> None:
    run, image, reader = doubled(network(kind), pixels, SMOOTH, tile)
    expected = by_noise(run.model.module, image, reader, SMOOTH, 1)
    (actual,) = run.explain([1])
    assert list(actual.maps) == ["absolute", "signed"]
    assert [close(actual.maps[name].values, each) < 1e-6 for name, each in zip(("absolute", "signed"), expected, strict=True)] == [True] * 2


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("kind", "image_name", "method"), [("max", "uneven", INTEGRATED), ("mean", "pixels", BLACK)])
def test_integrated_gradients_equal_captum(
    request: pytest.FixtureRequest, kind: str, image_name: str, method: ExplanationMethod, tile: tuple[int, int]
) -> None:
    run, image, reader = doubled(network(kind), request.getfixturevalue(image_name), method, tile)
    baseline = (reader.background if method.baseline == "glass" else reader.black).double().expand_as(image)
    ours, theirs = run.explain([0, "tumour-normal"]), []
    for forward in (lambda x: run.model.module(x)[:, 0], lambda x: run.model.module(x)[:, 1] - run.model.module(x)[:, 0]):
        theirs.append(
            IntegratedGradients(forward).attribute(
                image, baseline, n_steps=method.steps, method="gausslegendre", return_convergence_delta=True
            )
        )
    for actual, (attributions, delta) in zip(ours, theirs, strict=True):
        assert close(actual.maps["signed"].values, attributions[0].sum(0)) < 1e-6
        assert close(actual.maps["absolute"].values, attributions[0].abs().amax(0)) < 1e-6
        assert actual.completeness == pytest.approx(abs(float(delta)), rel=1e-4, abs=1e-6 * float(attributions.abs().sum()))


def test_more_steps_complete_integrated_gradients(pixels: NDArray[np.uint8]) -> None:
    errors = []
    for steps in (1, 4, 16):
        run, _, _ = doubled(network("mean"), pixels, ExplanationMethod("integrated-gradients", steps=steps))
        errors.append(run.explain([0])[0].completeness)
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize("tile", TILES)
def test_occlusion_equals_captum(pixels: NDArray[np.uint8], tile: tuple[int, int]) -> None:
    run, image, reader = doubled(network(), pixels, OCCLUDED, tile)
    theirs = Occlusion(run.model.module).attribute(
        image, (3, 70, 70), (3, 50, 50), baselines=reader.background.double().expand_as(image), target=1
    )[0, 0]
    (actual,) = run.explain([1])
    assert close(actual.maps["signed"].values, theirs) < 1e-6
    assert close(actual.maps["absolute"].values, theirs.abs()) < 1e-6


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("kind", "layer"), [("max", 18), ("mean", 3), ("map", 4)])
def test_grad_cam_equals_captum(pixels: NDArray[np.uint8], kind: str, layer: int, tile: tuple[int, int]) -> None:
    run, image, _ = doubled(network(kind), pixels, CAM, tile)
    shown = []
    for target in (0, 1):
        theirs = LayerGradCam(run.model.module, run.model.module[layer]).attribute(image, target, relu_attributions=True)[0, 0]
        (actual,) = run.explain([target])
        assert list(actual.maps) == ["evidence"]
        assert not theirs.any() or close(actual.maps["evidence"].values, theirs.detach()) < 1e-6
        assert actual.maps["evidence"].values.any() == bool(theirs.any())
        shown.append(bool(theirs.any()))
    assert any(shown)


class Padded(nn.Module):
    """A network of the region alone, with what lies beside it."""

    def __init__(self, module: nn.Module, edge: Tensor) -> None:
        super().__init__()
        self.module, self.edge = module, edge

    def forward(self, image: Tensor) -> Tensor:
        height, width = self.edge.shape[2:]
        padding = 0, width - image.shape[3], 0, height - image.shape[2]
        return self.module(torch.nn.functional.pad(image, padding) + self.edge)


def test_what_is_padded_is_neither_changed_nor_attributed(pixels: NDArray[np.uint8]) -> None:
    for method in (SMOOTH, BLACK, INTEGRATED, ExplanationMethod("occlusion", patch=90)):
        run, image, reader = doubled(network("mean"), pixels, method, (48, 100), pad_to=250)
        height, width = pixels.shape[:2]
        edge = image.clone()
        edge[:, :, :height, :width] = 0
        module = Padded(run.model.module, edge)
        inner = image[:, :, :height, :width]
        (actual,) = run.explain([1])
        if method.name == "smoothgrad":
            expected = by_noise(module, inner, reader, method, 1)[1]
        elif method.name == "occlusion":
            glass = reader.background.double().expand_as(inner)
            expected = Occlusion(module).attribute(inner, (3, 90, 90), (3, 90, 90), baselines=glass, target=1)[0, 0]
        else:
            baseline = (reader.background if method.baseline == "glass" else reader.black).double().expand_as(inner)
            attributions, delta = IntegratedGradients(module).attribute(
                inner, baseline, target=1, n_steps=method.steps, return_convergence_delta=True
            )
            expected = attributions[0].sum(0)
            assert actual.completeness == pytest.approx(abs(float(delta)), rel=1e-3, abs=1e-6 * float(attributions.abs().sum()))
        assert close(actual.maps["signed"].values, expected.detach()) < 1e-6


def test_noise_is_decided_by_place_seed_and_sample_alone() -> None:
    whole = normal_noise(5, 2, (0, 200), (0, 300))
    assert np.array_equal(normal_noise(5, 2, (37, 171), (63, 129)), whole[:, :, 37:171, 63:129])
    assert abs(whole.mean()) < 0.01
    assert abs(whole.std() - 1) < 0.01
    assert np.abs(whole).max() < 7
    for other in (normal_noise(6, 2, (0, 200), (0, 300)), normal_noise(5, 3, (0, 200), (0, 300)), whole[:, :, ::-1], whole[..., ::-1]):
        assert abs(np.corrcoef(whole.ravel(), other.ravel())[0, 1]) < 0.02
    for rows, columns in ((slice(0, 64), slice(64, 128)), (slice(64, 128), slice(0, 64)), (slice(64, 128), slice(64, 128))):
        assert not np.array_equal(whole[:, :, :64, :64], whole[:, :, rows, columns])


@pytest.mark.parametrize("text", TEXTS)
def test_a_budget_and_steps_change_no_more_than_rounding(pixels: NDArray[np.uint8], text: str) -> None:
    model, method = network("mean"), ExplanationMethod.parse(text)  # of a maximum, rounding in float32 decides some gradients
    actual = [saliency(model, pixels, target=1, compute=Compute(tile=tile, method=method)) for tile in (None, (33, 70))]
    for name, saliency_map in actual[0].maps.items():
        assert close(actual[1].maps[name].values, saliency_map.values) < 1e-4


@pytest.mark.parametrize("text", TEXTS)
def test_inside_no_grad_and_inference_mode(pixels: NDArray[np.uint8], text: str) -> None:
    model, compute = network(), Compute(method=ExplanationMethod.parse(text), tile=(75, 105))
    expected = saliency(model, pixels, compute=compute)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            actual = saliency(model, pixels, compute=compute)
            assert not torch.is_grad_enabled()
        for name, saliency_map in expected.maps.items():
            assert np.array_equal(actual.maps[name].values, saliency_map.values)


@pytest.mark.parametrize("text", TEXTS)
def test_on_disk_as_in_memory_with_its_method(pixels: NDArray[np.uint8], tmp_path: Path, text: str) -> None:
    model, method = network("mean"), ExplanationMethod.parse(text)
    compute = Compute(method=method, tile=(75, 105))
    in_memory = explain(model, pixels, targets=[0, 1], compute=compute)
    outs = [tmp_path / "0.ome.zarr", tmp_path / "1.ome.zarr"]
    explain(model, pixels, targets=[0, 1], outs=outs, compute=compute)
    assert sorted(tmp_path.iterdir()) == outs
    for out, one in zip(outs, in_memory, strict=True):
        for stored in (open_saliency(out), save_saliency(one, tmp_path / "copy.ome.zarr")):
            assert stored.completeness == one.completeness
            assert (stored.completeness is not None) == (method.name == "integrated-gradients")
            assert (stored.mpp, stored.prediction.identity, stored.prediction.warnings) == (
                one.mpp, one.prediction.identity, one.prediction.warnings,
            )  # fmt: skip
            assert list(stored.maps) == list(one.maps)
            for name, saliency_map in one.maps.items():
                assert np.array_equal(stored.maps[name].values, saliency_map.values)
                assert (stored.maps[name].step, stored.maps[name].origin) == (saliency_map.step, saliency_map.origin)


def test_the_method_is_part_of_identity_and_notes(pixels: NDArray[np.uint8]) -> None:
    model, slide, keys = network(), as_slide(pixels), set()
    for text in (*TEXTS, "smoothgrad:samples=3,noise=0.2,seed=8"):
        method = ExplanationMethod.parse(text)
        run = prepare(model, slide, compute=Compute(method=method))
        prediction = run.explain()[0].prediction
        assert prediction.identity == identify(model, slide, method=method)
        assert prediction.identity.method == (None if method == GRADIENT else str(method))
        assert [method.described in note for note in prediction.warnings].count(True) == (method != GRADIENT)
        assert run.predict().identity == run.identity == identify(model, slide)
        assert Prediction.from_dict(prediction.to_dict()).identity == prediction.identity
        keys.add(prediction.identity.key)
    assert len(keys) == len(TEXTS) + 1
    assert "method" not in identify(model, slide).to_dict()


def test_even_background_is_skipped_as_given_to_the_network(pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on noise are all computed; on a path from glass those repeat that do on the image, and a hidden patch is no background."""
    computed: list[float] = []
    real = step_passes.run_step

    def counted(step: Any, image: Any, *rest: Any) -> Any:
        computed.append(float(image[0].std(dim=(2, 3)).max()))
        return real(step, image, *rest)

    monkeypatch.setattr(step_passes, "run_step", counted)
    even = np.full((160, 160, 3), (236, 233, 238), np.uint8)
    even[:30, :30] = pixels[:30, 110:140]
    counts = {}
    for text in ("smoothgrad:samples=1", "integrated-gradients:steps=1", "occlusion:patch=20"):
        method = ExplanationMethod.parse(text)
        run, image, reader = doubled(network("mean"), even, method, (40, 40))
        computed.clear()
        (actual,) = run.explain([0])
        counts[method.name] = len(computed), sum(spread > 0 for spread in computed)
        glass = reader.background.double().expand_as(image)
        if method.name == "smoothgrad":
            expected = by_noise(run.model.module, image, reader, method, 0)[1]
        elif method.name == "occlusion":
            expected = Occlusion(run.model.module).attribute(image, (3, 20, 20), (3, 20, 20), baselines=glass, target=0)[0, 0]
        else:
            expected = IntegratedGradients(run.model.module).attribute(image, glass, target=0, n_steps=1)[0].sum(0)
        assert close(actual.maps["signed"].values, expected.detach()) < 1e-6
    assert counts["smoothgrad"][1] > 16  # all steps of the noisy pass
    assert counts["integrated-gradients"][0] < 3 * 16
    assert counts["occlusion"][0] < 65 * 16 - 30


def test_progress_counts_all_passes_and_cancels_within_a_step(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    model = network()
    for method in (SMOOTH, INTEGRATED, CAM, OCCLUDED):
        run = prepare(model, pixels, compute=Compute(tile=(75, 210), method=method))
        steps: list[Step] = []
        run.explain([0, 1], report=steps.append)
        passes = passes_of(method, 2, run.inside)
        last = steps[-1]
        assert (last.done, last.total) == (2 * passes.all, 2 * passes.all)
        assert str(passes) in last.task
        assert method.title in last.task
        assert {step.total for step in steps} == {last.total}
        calls = []

        def report(step: Step, calls: list[int] = calls, until: int = last.total) -> None:
            calls.append(step.done)
            if step.done >= until - 1:
                raise Cancelled("enough")

        with pytest.raises(Cancelled):
            run.explain([0, 1], outs=[tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr"], report=report)
        assert calls.count(last.total - 1) == 1
        assert not list(tmp_path.iterdir())


def test_forecasts_say_passes_and_what_sums_take(pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "SAMPLE", (64, 64))
    model, seconds, peaks = network(), {}, {}
    for text in TEXTS:
        run = prepare(model, pixels, compute=Compute(tile=(64, 64), method=ExplanationMethod.parse(text)))
        ahead = run.forecast(1)
        seconds[text], peaks[text] = ahead.seconds, ahead.peak_bytes
        assert ("passes" in str(ahead)) == (text not in ("gradient", "grad-cam"))
        assert ahead.passes == passes_of(run.compute.method, 1, run.inside)
    assert seconds["grad-cam"] < seconds["gradient"] < seconds[TEXTS[1]] < seconds[TEXTS[2]]


def test_memory_is_that_of_one_pass_and_the_sums() -> None:
    """A budget bounds the growth of a run of many passes as of one; too little is refused by the sums."""
    from streamview.inference.methods import map_bytes

    assert map_bytes(GRADIENT, 100, 2, stored=False) == map_bytes(SMOOTH, 100, 2, stored=True) == 1600
    assert map_bytes(INTEGRATED, 100, 2, stored=True) == 2400
    assert map_bytes(GRADIENT, 100, 2, stored=True) == map_bytes(OCCLUDED, 100, 2, stored=True) == map_bytes(CAM, 100, 2, stored=False) == 0
    shape = np.broadcast_to(np.uint8(200), (30_000, 30_000, 3))
    model = network()
    limit = prepare(model, shape).plan  # the sums of 900 megapixels alone take 10 GB
    assert limit().peak_bytes > 0
    with pytest.raises(MemoryBudgetError):
        prepare(model, shape, compute=Compute(memory="4GB", method=INTEGRATED)).plan(1, stored=True)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: ExplanationMethod("lime"), "method 'lime' is unknown: expected gradient, smoothgrad"),  # type: ignore[arg-type]
    (lambda: ExplanationMethod("smoothgrad", samples=0), "samples 0: expected a whole number, 1 to"),
    (lambda: ExplanationMethod("smoothgrad", noise=0.0), "noise 0: expected a share"),
    (lambda: ExplanationMethod("smoothgrad", noise=math.nan), "noise nan: expected a share"),
    (lambda: ExplanationMethod("integrated-gradients", steps=0), "steps 0: expected a whole number"),
    (lambda: ExplanationMethod("integrated-gradients", baseline="blur"), "baseline 'blur': expected glass or black"),  # type: ignore[arg-type]
    (lambda: ExplanationMethod("occlusion", patch=0), "patch 0: expected"),
    (lambda: ExplanationMethod("occlusion", patch=32, stride=33), "stride 33: expected a whole number, 1 to the patch's 32 px"),
    (lambda: ExplanationMethod("occlusion", seed=4), "has no parameter seed; it has patch, stride"),
    (lambda: ExplanationMethod("grad-cam", samples=4), "has no parameter samples; it has none"),
    (lambda: ExplanationMethod("gradient", stride=4), "has no parameter stride"),
    (lambda: ExplanationMethod.parse("lime"), "method lime: expected gradient, smoothgrad"),
    (lambda: ExplanationMethod.parse("smoothgrad:steps=3"), "smoothgrad has no parameter 'steps'; it has samples, noise, seed"),
    (lambda: ExplanationMethod.parse("smoothgrad:samples=many"), "samples 'many': expected a whole number"),
    (lambda: ExplanationMethod.parse("smoothgrad:noise=much"), "noise 'much': expected a number"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_a_method_without_sense_is_refused(case: int) -> None:
    make, text = BAD[case]
    with pytest.raises(StreamviewError, match=text):
        make()


def test_a_method_is_read_as_it_is_written() -> None:
    for text in (*TEXTS, "occlusion:patch=128", "smoothgrad:noise=1e-3", *PARAMETERS):
        method = ExplanationMethod.parse(text)
        assert ExplanationMethod.parse(str(method)) == method
        assert (method.tag == "") == (text == "gradient")
    assert ExplanationMethod.parse("occlusion:patch=128").stride == 128
    assert len({ExplanationMethod("smoothgrad", samples=n).tag for n in range(1, 50)}) == 49


def test_what_does_not_fit_network_or_region_is_refused(pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    for use in (lambda run: run.explain(), lambda run: run.forecast(1), lambda run: run.plan(1)):
        with pytest.raises(ModelError, match="does not begin with one feature map"):
            use(prepare(make_model(Gated(2)), pixels, compute=Compute(method=CAM)))
        with pytest.raises(RegionError, match="a patch of 151 px is larger than the region, 210 x 150 px"):
            use(prepare(network(), pixels, compute=Compute(method=ExplanationMethod("occlusion", patch=151))))
        with pytest.raises(RegionError, match=r"2014 patches, each a forward pass .* at most 1024 .*occlusion:patch=(\d+)") as refusal:
            use(prepare(network(), pixels, compute=Compute(method=ExplanationMethod("occlusion", patch=4))))
    least = int(str(refusal.value).partition("patch=")[2].partition("occlusion:patch=")[2].partition(",")[0])
    assert math.prod(patch_counts(ExplanationMethod("occlusion", patch=least), (150, 210))) <= 1024
    assert math.prod(patch_counts(ExplanationMethod("occlusion", patch=least - 1), (150, 210))) > 1024
    prepare(make_model(Gated(2)), pixels, compute=Compute(method=CAM)).predict()


def test_maps_are_shown_and_labelled_by_their_method(pixels: NDArray[np.uint8]) -> None:
    from streamview.results.display import title_of

    titles = set()
    for text in TEXTS:
        actual = saliency(network(), pixels, compute=Compute(method=ExplanationMethod.parse(text)))
        preset = default_preset(actual)
        recipe = usual_recipe(actual)
        assert show(actual, recipe).levels
        title = title_of(actual, recipe.method)
        titles.add(title)
        assert ExplanationMethod.parse(text).title in title or text == "gradient"
        assert preset == ("evidence" if text in ("gradient", "grad-cam") else "detail")
        html = actual._repr_html_()
        assert title in html
        assert isinstance(actual._repr_png_(), bytes | io.BytesIO)
    assert len(titles) == len(TEXTS)


def test_the_run_of_a_gradient_is_as_it_was(pixels: NDArray[np.uint8]) -> None:
    model = network()
    plain, named = saliency(model, pixels), saliency(model, pixels, compute=Compute(method=ExplanationMethod("gradient")))
    assert plain.prediction.identity == named.prediction.identity
    assert plain.prediction.identity.method is None
    assert isinstance(plain, Saliency)
    assert isinstance(prepare(model, pixels), PreparedRun)
    assert all(np.array_equal(plain.maps[name].values, named.maps[name].values) for name in ("absolute", "signed", "evidence"))
