"""Regions that a network does not know carry a warning; those that it does know carry none."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from streamview_models.demo.train import stain_statistics

from streamview.cli import main
from streamview.errors import ModelError
from streamview.export.job import export_job
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.inference.explain import predict, saliency
from streamview.jobs import Job
from streamview.networks import Model, load_model
from streamview.networks.cards import ModelCard, Stain, card_document, parse_card
from streamview.networks.suitability import Overview, unsuitable
from streamview.slides import open_slide
from streamview.slides.synthetic import synthetic_region
from tests.support.slides import SyntheticSlide

DARK, GLASS, STAIN = "The region is dark", "The region holds only glass", "The stain is not like the H&E"
HE_WITHOUT_STATISTICS = Stain("H&E")


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model("demo")


def he(seed: int = 500) -> np.ndarray:
    return synthetic_region(256, 256, seed=seed, lesion_share=0.0)[0]


def immunohistochemistry(brown: float = 0.2) -> np.ndarray:
    """Blue counterstain everywhere but on glass, with brown nuclei."""
    rng = np.random.default_rng(0)
    amount = rng.uniform(0.1, 0.4, (256, 256, 1)) * (np.arange(256)[:, None, None] > 40)
    density = amount * np.array([0.8, 0.45, 0.3])
    spots = rng.random((256, 256, 1)) < brown
    return (240 * 10.0 ** -np.where(spots & (amount > 0), [0.35, 0.6, 0.9], density)).astype(np.uint8)


def fluorescence() -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 12, (256, 256, 3), np.uint8)
    image[100:130, 80:120, 2] = 255
    return image


def warned(image: np.ndarray, card: ModelCard, side_mm: float = 0.2) -> tuple[str, ...]:
    return unsuitable(image.reshape(-1, 3), card, side_mm**2)


@pytest.mark.parametrize("stain", [None, HE_WITHOUT_STATISTICS, "the demo's"])
def test_each_kind_of_region_is_told(demo: Model, stain: Stain | str | None) -> None:
    card = demo.card if isinstance(stain, str) else replace(demo.card, stain=stain)
    assert warned(he(), card) == ()
    (said,) = warned(fluorescence(), card)
    assert said.startswith(DARK)
    (said,) = warned(np.full((256, 256, 3), 242, np.uint8), card)
    assert said.startswith(GLASS)
    noisy = np.random.default_rng(0).normal(238, 3, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    assert warned(noisy, card)[0].startswith(GLASS)
    grey = np.repeat(he().mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    for image in (immunohistochemistry(), immunohistochemistry(0.02), grey):
        assert [text.startswith(STAIN) for text in warned(image, card)] == ([] if stain is None else [True])


@pytest.mark.parametrize("colour", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_fluorescence_of_any_colour_and_density_is_told(demo: Model, colour: tuple[int, int, int], share: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 12, (256, 256, 3)).astype(float)
    stained = rng.random((256, 256, 1)) < share
    image += stained * np.array(colour) * rng.uniform(80, 255, (256, 256, 1))
    for stain in (None, HE_WITHOUT_STATISTICS, demo.card.stain):
        (said,) = warned(image.clip(0, 255).astype(np.uint8), replace(demo.card, stain=stain)) or ("",)
        if share < 0.9 or sum(colour) == 1:
            assert said.startswith(DARK)
        elif stain is not None:
            assert said.startswith(STAIN)  # grey all over, on no background


def test_a_network_for_fluorescence_is_told_of_bright_glass(demo: Model) -> None:
    card = replace(demo.card, stain=Stain("fluorescence"))
    assert warned(he(), card) == ("The region is bright, where fluorescence on a dark ground is expected: the answer means nothing there.",)


def test_networks_for_other_stains_are_left_alone(demo: Model) -> None:
    assert warned(fluorescence(), replace(demo.card, stain=Stain("fluorescence"))) == ()
    assert warned(immunohistochemistry(), replace(demo.card, stain=Stain("IHC"))) == ()
    image = immunohistochemistry()
    from streamview.networks.suitability import tissue_density

    mean = tissue_density(image.reshape(-1, 3)).mean(0)
    own = replace(demo.card, stain=Stain("Ki-67", tuple(mean), (0.005, 0.005, 0.005)))
    assert warned(image, own) == ()
    assert warned(he(), own)[0].startswith("The stain is not like the Ki-67")
    pale = replace(demo.card, stain=Stain("H&E", (0.6, 1.0, 0.55), (0.02, 0.02, 0.02)))
    assert "much paler" in warned(he(), pale)[0]


def test_a_speck_of_tissue_on_a_large_slide_is_tissue(demo: Model) -> None:
    image = np.full((256, 256, 3), 242, np.uint8)
    image[:10, :10] = he()[100:110, 100:110].min(axis=(0, 1))
    assert warned(image, replace(demo.card, stain=None), side_mm=20) == ()
    assert warned(image, replace(demo.card, stain=None), side_mm=0.5)[0].startswith(GLASS)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_overview_does_not_depend_on_the_pieces(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 1600)), data.draw(st.integers(1, 700))
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    whole, parts = Overview((height, width)), Overview((height, width))
    whole.add(image, (0, height), (0, width))
    padded = np.zeros((height + 50, width + 50, 3), np.uint8)
    padded[:height, :width] = image
    rows, cols = data.draw(st.integers(1, height + 50)), data.draw(st.integers(1, width + 50))
    for y in range(0, height + 50, rows):
        for x in range(0, width + 50, cols):
            part = padded[y : y + rows, x : x + cols]
            parts.add(part, (y, y + part.shape[0]), (x, x + part.shape[1]))
    step = -(-max(height, width) // 256)
    np.testing.assert_array_equal(whole.pixels, image[::step, ::step].reshape(-1, 3))
    np.testing.assert_array_equal(parts.pixels, whole.pixels)


def read_description(path: Path) -> str:
    with tifffile.TiffFile(path) as tiff:
        return str(tiff.ome_metadata)


def test_a_warning_stays_with_the_result_on_every_shell(demo: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, job = tmp_path / "dapi.tif", tmp_path / "job"
    tifffile.imwrite(path, fluorescence(), tile=(64, 64), photometric="rgb")
    with open_slide(path, 0.5) as slide:
        assert predict(demo, slide).warnings[-1].startswith(DARK)
        # the region is padded, and read in pieces of any size
        again = predict(demo, slide, pad_to=320, compute=Compute(tile=(64, 96)))
        assert again.warnings[-1].startswith(DARK)
        assert saliency(demo, slide).prediction.warnings[-1].startswith(DARK)
    assert main(["saliency", "-i", str(path), "-o", str(job), "-m", "demo", "--mpp", "0.5"]) == 0
    assert f"warning: {DARK}" in capsys.readouterr().err
    (record,) = Job(job).slides()
    assert record.regions[0].prediction.warnings[-1].startswith(DARK)
    assert f"dapi.tif: {DARK}" in (job / "summary.md").read_text()
    with (job / "predictions.csv").open(newline="") as file:
        assert all(DARK in row["warnings"] for row in csv.DictReader(file))
    written = export_job(Job(job), ("geojson", "ome-tiff"), out=tmp_path / "out")
    for exported in written:
        text = read_description(exported) if exported.suffix == ".tif" else exported.read_text()
        assert DARK in str(text), exported.name


def test_real_and_synthetic_tissue_is_not_warned_of(demo: Model, shared_data: Path) -> None:
    paths = sorted((shared_data / "camelyon16_tiles").glob("*/*.png"))[::8]
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        assert warned(image, demo.card, 0.06) == warned(image, replace(demo.card, stain=HE_WITHOUT_STATISTICS), 0.06) == ()
    for seed in range(6):
        assert warned(he(900 + seed), demo.card) == ()
    for name, expected in (("CMU-1-Small-Region.svs", None), ("OS-1-detail.ome.tif", None), ("OS-2-ndpi.ome.tif", STAIN)):
        with open_slide(shared_data / "slides" / name) as slide:
            image = slide.read(Region(0, 0, *slide.shape))[::9, ::9]
        for card in (demo.card, replace(demo.card, stain=HE_WITHOUT_STATISTICS)):
            said = warned(image, card, 0.5)
            assert said == () if expected is None else said[0].startswith(expected), name


@pytest.mark.slow
def test_whole_real_slides(demo: Model, shared_data: Path) -> None:
    said = {}
    for name in ("CMU-1-Small-Region.svs", "OS-1-detail.ome.tif", "OS-2-ndpi.ome.tif", "test3-DAPI-2-387.ndpi"):
        with open_slide(shared_data / "slides" / name) as slide:
            said[name] = predict(demo, slide).warnings
    assert said["CMU-1-Small-Region.svs"] == said["OS-1-detail.ome.tif"] == ()
    assert said["OS-2-ndpi.ome.tif"][0].startswith(STAIN)
    assert said["test3-DAPI-2-387.ndpi"][0].startswith(DARK)


def test_the_demo_card_states_its_training_data(demo: Model) -> None:
    stain = demo.card.stain
    assert stain is not None
    assert stain.od_mean is not None
    measured = stain_statistics(4, 0)
    np.testing.assert_allclose(measured["od_mean"], stain.od_mean, atol=0.03)
    document = card_document(demo.card)
    assert parse_card(document, name="demo", file="card.json").stain == stain


@pytest.mark.parametrize(
    "stain",
    [
        "H&E",
        {},
        {"name": ""},
        {"name": "H&E", "od_mean": [0.1, 0.2, 0.1]},
        {"name": "H&E", "od_mean": [0.1, 0.2], "od_std": [1, 1, 1]},
        {"name": "H&E", "od_mean": [0, 0, 0], "od_std": [1, 1, 1]},
        {"name": "H&E", "colour": 1},
    ],
)
def test_a_wrong_stain_on_a_card_is_named(demo: Model, stain: object) -> None:
    document = card_document(demo.card)
    document["streamview"]["stain"] = stain
    with pytest.raises(ModelError, match=r"card\.json: streamview\.stain"):
        parse_card(document, name="demo", file="card.json")


def test_a_slide_at_another_scale_says_so_in_the_job(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    command = ["-i", str(synthetic_slide.path), "-o", str(tmp_path), "-m", "demo", "--region", "600,300,320,320"]
    assert main(["saliency", *command]) == 0
    assert main(["predict", *command, "--mpp", "0.25"]) == 0
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["region_id"], row["mpp"], row["mpp_source"], bool(row["maps"])) for row in rows if row["region_id"] != "aggregate"] == [
        ("x600-y300-w320-h320", "0.5", "file", True),
        ("x600-y300-w320-h320", "0.25", "given", False),
    ]
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert "its file states 0.5" in rows[-1]["warnings"]
