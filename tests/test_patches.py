"""Networks made for patches: an answer for each, as WSInfer's users know them, in tables, maps and the job."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from streamview_models import folder

from streamview.cli import main
from streamview.errors import Cancelled, MemoryBudgetError, ModelError, RegionError
from streamview.geometry import Region
from streamview.inference import patches as module
from streamview.inference.compute import Compute
from streamview.inference.patches import predict_patches
from streamview.jobs import Job
from streamview.networks import Model, load_model
from streamview.networks.cards import card_document, parse_card
from streamview.progress import Step
from streamview.results import Target, open_saliency

CONFIG = {
    "spec_version": "1.0",
    "architecture": "demo",
    "num_classes": 2,
    "class_names": ["normal", "lesion"],
    "patch_size_pixels": 64,
    "spacing_um_px": 0.5,
    "transform": [{"name": "ToTensor"}, {"name": "Normalize", "arguments": {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2]}}],
}
TISSUE = (slice(64, 320), slice(0, 256))  # of an image of 400 x 480 px


@pytest.fixture(scope="module")
def wsinfer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as WSInfer's zoo has them."""
    home = tmp_path_factory.mktemp("zoo") / "patchnet"
    home.mkdir()
    (home / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(folder("demo") / "weights.safetensors", home / "model.safetensors")
    return home


@pytest.fixture(scope="module")
def network(wsinfer: Path) -> Model:
    return load_model(wsinfer)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(5)
    image = np.full((400, 480, 3), 243, np.uint8)
    image[TISSUE] = rng.integers(90, 200, (*image[TISSUE].shape[:2], 3))
    return image


def test_each_patch_is_answered_as_an_image_of_its_own(network: Model, pixels: np.ndarray) -> None:
    found = predict_patches(network, pixels, mpp=0.5, every=True)
    assert (found.logits.shape, found.region, found.step) == ((6, 7, 2), Region(0, 0, 384, 448), (64.0, 64.0))
    assert found.computed.all()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.card.mean, network.card.std))
    for box, values in found.patches():
        crop = torch.from_numpy(pixels[box.y : box.y_stop, box.x : box.x_stop]).permute(2, 0, 1) / 255
        with torch.no_grad():
            logits = network.module(((crop - mean) / std)[None])[0]
        i, j = box.y // 64, box.x // 64
        np.testing.assert_allclose(found.logits[i, j], logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(values, logits.softmax(0), rtol=1e-4, atol=1e-5)
    mean_probability = found.values.reshape(-1, 2).astype(np.float64).mean(0)
    np.testing.assert_allclose(found.prediction.probabilities, mean_probability, rtol=1e-5)
    assert "mean of the probabilities of 42 patches of 64 px" in found.prediction.warnings[0]
    assert (found.identity.patch, type(found.identity).from_dict(found.identity.to_dict())) == (64, found.identity)
    assert replace(found.identity, patch=None).key != found.identity.key


def test_what_holds_no_tissue_is_absent_and_not_zero(network: Model, pixels: np.ndarray) -> None:
    found = predict_patches(network, pixels, mpp=0.5)
    expected = np.zeros((6, 7), np.bool_)
    expected[1:5, :4] = True
    assert np.array_equal(found.computed, expected)
    assert np.isnan(found.logits[~expected]).all()
    assert len(list(found.patches())) == 16
    with pytest.raises(RegionError, match=r"no patch of the region .* holds tissue"):
        predict_patches(network, pixels, Region(0, 320, 128, 128), mpp=0.5)


def test_the_grid_begins_with_the_region_and_ends_with_the_slide(network: Model, pixels: np.ndarray) -> None:
    found = predict_patches(network, pixels, Region(70, 10, 100, 65), mpp=0.5, every=True)
    assert (found.region, found.logits.shape[:2]) == (Region(70, 10, 128, 128), (2, 2))  # reaches over the region
    found = predict_patches(network, pixels, Region(300, 380, 100, 100), mpp=0.5, every=True)
    assert (found.region, found.logits.shape[:2]) == (Region(300, 380, 64, 64), (1, 1))  # the slide ends first
    with pytest.raises(RegionError, match="has no room for a patch of 64 level-0 px"):
        predict_patches(network, pixels, Region(350, 300, 50, 100), mpp=0.5)
    finer = predict_patches(network, pixels.repeat(2, 0).repeat(2, 1), mpp=0.25, every=True)
    assert finer.step == (128.0, 128.0)
    np.testing.assert_allclose(finer.logits, predict_patches(network, pixels, mpp=0.5, every=True).logits, rtol=1e-4, atol=1e-4)


def test_batches_are_of_what_memory_allows_and_change_nothing(network: Model, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict_patches(network, pixels, mpp=0.5)
    plans: list[module.PatchPlan] = []
    monkeypatch.setattr(module, "_MOST", 2)
    assert np.allclose(predict_patches(network, pixels, mpp=0.5, announce=plans.append).logits, whole.logits, atol=1e-5, equal_nan=True)
    assert (plans[0].count, plans[0].total, plans[0].batch) == (16, 42, 2)
    assert "16 patches of 64 px in batches of 2, 26 without tissue are left out: at most" in str(plans[0])
    monkeypatch.undo()

    sizes: list[int] = []

    class Scarce(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.device.type != "meta":
                sizes.append(len(images))
                if len(images) > 2:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return images.mean((2, 3))[:, :2]

    found = predict_patches(replace(network, module=Scarce()), pixels, mpp=0.5)
    assert sizes == [16, 8, 4, *[2] * 8]
    assert found.computed.sum() == 16
    with pytest.raises(MemoryBudgetError, match=r"a patch needs .*; give more"):
        predict_patches(network, pixels, mpp=0.5, compute=Compute(memory="1MB"))


def test_what_is_wrong_with_a_network_is_said(network: Model, pixels: np.ndarray) -> None:
    class Wrong(torch.nn.Module):
        def __init__(self, answer: torch.Tensor) -> None:
            super().__init__()
            self.answer = answer

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.answer.expand(len(images), -1)

    for answer, reason in (
        (torch.zeros(3), "expected"),
        (torch.full((2,), torch.nan), "NaN or infinity"),
        (torch.zeros(2, 2, 2), "cannot"),
    ):
        with pytest.raises(ModelError, match=reason):
            predict_patches(replace(network, module=Wrong(answer)), pixels, mpp=0.5)
    with pytest.raises(ModelError, match="states no patch_size_pixels"):
        predict_patches(replace(network, card=replace(network.card, patch_size_pixels=None)), pixels, mpp=0.5)

    def stop(step: Step) -> None:
        if step.done:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        predict_patches(network, pixels, mpp=0.5, report=stop)


def test_only_a_card_as_wsinfer_writes_it_is_for_patches() -> None:
    card = parse_card(CONFIG, name="a", file="a")
    assert card.answers == "patch"
    assert parse_card(card_document(card), name="a", file="a").answers == "patch"
    assert parse_card(CONFIG | {"streamview": {"input_size": [64, 4096]}}, name="a", file="a").answers == "region"
    assert parse_card(CONFIG | {"spacing_um_px": None}, name="a", file="a").answers == "region"
    assert parse_card(CONFIG | {"streamview": {"answers": "patch"}}, name="a", file="a").answers == "patch"
    assert load_model("demo").card.answers == "region"
    with pytest.raises(ModelError, match=r"answers is .*patch"):
        parse_card(CONFIG | {"spacing_um_px": None, "streamview": {"answers": "patch"}}, name="a", file="a")


def test_the_command_line(wsinfer: Path, pixels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, job = tmp_path / "a.ome.tif", tmp_path / "job"
    place = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256), metadata={"axes": "YXS", **place})
    command = ["predict", "-i", str(path), "-o", str(job), "-m", str(wsinfer)]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "answers: one for each patch of 32 x 32 um (64 px) with tissue (--per region: one for the whole region)" in printed.out
    assert "forecast: 16 patches of 64 px in batches of 16, 26 without tissue are left out" in printed.out
    assert "patches: 16 steps" in printed.err
    with (job / "patches/a.ome.tif/x0-y0-w448-h384.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["minx", "miny", "width", "height", "prob_normal", "prob_lesion"]
    assert [(row["minx"], row["miny"], row["width"], row["height"]) for row in rows[:2]] == [
        ("0", "64", "64", "64"),
        ("64", "64", "64", "64"),
    ]
    assert all(float(row["prob_normal"]) + float(row["prob_lesion"]) == pytest.approx(1, abs=1e-6) for row in rows)
    tiles = json.loads((job / "patches/a.ome.tif/x0-y0-w448-h384.geojson").read_text())["features"]
    assert len(tiles) == len(rows) == 16
    assert tiles[1]["geometry"]["coordinates"][0][:3] == [[64, 64], [128, 64], [128, 128]]
    assert tiles[1]["properties"]["measurements"]["prob_lesion"] == pytest.approx(float(rows[1]["prob_lesion"]), rel=1e-6)

    ((result,),) = (record.regions for record in Job(job).slides())
    assert [stored.target for stored in result.maps] == [Target("normal", 0), Target("lesion", 1)]
    stored = open_saliency(job / result.maps[1].path)
    values = stored.maps["patches"].values
    assert (values.shape, int(np.isnan(values).sum()), stored.mpp) == ((6, 7), 26, (0.5, 0.5))
    assert values[1, 1] == pytest.approx(float(rows[1]["prob_lesion"]), rel=1e-6)
    with Image.open(job / str(result.maps[1].picture)) as picture:
        left, top, width, height = map(int, picture.text["picture"].split(","))
        shown = np.asarray(picture)[top : top + height, left : left + width].astype(int)
    glass, patch = shown[10, -10], shown[height // 2, width // 4]
    assert np.abs(glass - 243).max() <= 2  # transparent where nothing was computed
    assert np.abs(patch - patch.mean()).max() > 2

    assert main(["export", str(job), "--format", "png", "geojson", "ome-tiff", "-o", str(tmp_path / "out")]) == 0
    names = {file.name for file in (tmp_path / "out").rglob("*.*")}
    assert {"x0-y0-w448-h384-patches-1-lesion-patches.png", "x0-y0-w448-h384-patches-1-lesion-patches.ome.tif"} <= names

    capsys.readouterr()
    assert main([*command, "--per", "region"]) == 0
    assert "answers: one for each patch" not in capsys.readouterr().out
    assert [result.prediction.identity.patch for result in Job(job).slides()[0].regions] == [64, None]
    assert main([*command, "--tile", "64,64"]) == 1
    assert "--per region" in capsys.readouterr().err
    assert main([*command[:-1], "camelyon17", "--untrained", "--per", "patch"]) == 1
    assert "states no patch_size_pixels" in capsys.readouterr().err
