"""Layers without a window: what they hold, where they lie, and what the reader opens."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from napari.components import ViewerModel
from napari.layers import Layer
from npe2 import PluginManifest
from streamview_napari.canvas.layers import SlideLevel, job_layers, mask_layer, saliency_layers, slide_layer
from streamview_napari.reader import get_reader
from streamview_napari.records import expect_map
from streamview_napari.sample import synthetic_slide
from streamview_napari.view import add_layers, check

from streamview.errors import StreamviewError
from streamview.geometry import Region
from streamview.jobs import Job, RegionResult, StoredMap
from streamview.results import Identity, Prediction, Saliency, SaliencyMap, Target, save_saliency
from streamview.slides import Slide, as_slide, open_slide
from streamview.slides.pyramid import build_pyramid
from streamview.slides.synthetic import write_synthetic_slide

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20", "ignore::DeprecationWarning:napari")
REGION = Region(256, 384, 512, 768)


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "planted.svs"
    write_synthetic_slide(path, size=(1024, 1536))
    return path


def make_saliency(slide: Slide, *, mpp: tuple[float, float] | None = (1.0, 1.0)) -> Saliency:
    """Maps of REGION on a grid of two level-0 pixels, evidence on one of 32, each with a bright spot centred at level-0 (511.5, 767.5)."""
    identity = Identity("ab", "cd", slide.identity, REGION, mpp, "float32")
    prediction = Prediction(
        slide.name, REGION, (256, 384), mpp, "class", ("normal", "lesion"), np.array([0, 2], np.float32), identity, "demo", True
    )
    rows, columns = np.mgrid[:256, :384]
    # Grid pixel i is centred at 256.5 + 2 i (rows) and 384.5 + 2 i (columns).
    fine = np.exp(-((256.5 + 2 * rows - 511.5) ** 2 + (384.5 + 2 * columns - 767.5) ** 2) / 2 / 30**2).astype(np.float32)
    coarse = fine.reshape(16, 16, 24, 16).mean((1, 3))
    maps: dict[Any, SaliencyMap] = {
        "absolute": SaliencyMap("absolute", fine, (2.0, 2.0), (256.5, 384.5)),
        "signed": SaliencyMap("signed", fine, (2.0, 2.0), (256.5, 384.5)),
        "evidence": SaliencyMap("evidence", coarse, (32.0, 32.0), (271.5, 399.5)),
    }
    return Saliency(prediction, Target("lesion", 1), (0.2, 0.2, 0.2), (255, 255, 255), maps)


@pytest.fixture
def job(slide_path: Path, tmp_path: Path) -> Path:
    job = Job(tmp_path / "job")
    with open_slide(slide_path) as slide:
        saliency = make_saliency(slide)
    path = job.saliency_path("planted.svs", REGION)
    save_saliency(saliency, path)
    job.add(RegionResult(saliency.prediction, "run", maps=(StoredMap(str(path.relative_to(job.folder))),), source=str(slide_path)))
    job.write_tables()
    return job.folder


def model(layers: list[Any]) -> ViewerModel:
    viewer = ViewerModel()
    for data, options, kind in layers:
        viewer.add_layer(Layer.create(data, options, kind))
    return viewer


def peak_in_world(layer: Any) -> np.ndarray:
    """World position of the centre of mass of the finest level."""
    values = np.asarray(layer.data[0] if layer.multiscale else layer.data, np.float64)
    centre = [float((values * index).sum() / values.sum()) for index in np.indices(values.shape)]
    return np.array(layer.data_to_world(centre))


def test_the_manifest_is_valid_and_its_functions_exist() -> None:
    manifest = PluginManifest.from_distribution("streamview")
    manifest.validate_imports()
    assert manifest.name == "streamview"


def test_a_job_shows_the_slide_with_its_maps_in_place(job: Path) -> None:
    viewer = model(job_layers(job))
    slide, *maps = viewer.layers
    assert [layer.name for layer in viewer.layers] == [
        "planted.svs",
        "Largest |gradient| (paper): lesion",
        "Gradient x input (detail): lesion",
        "Class evidence (extent): lesion",
    ]
    assert [layer.visible for layer in maps] == [False, False, True]
    assert {str(unit) for layer in viewer.layers for unit in layer.units} == {"micrometer"}
    assert {layer.axis_labels for layer in viewer.layers} == {("y", "x")}
    # The spot's centre through the slide's own placement (0.5 um/px) is where every map must have it.
    world = np.array(slide.data_to_world((511.5, 767.5)))
    np.testing.assert_allclose(world, (511.5 * 0.5, 767.5 * 0.5))
    for layer in maps[1:]:
        np.testing.assert_allclose(peak_in_world(layer), world, atol=0.1)
        assert layer.blending == "translucent_no_depth"
        assert layer.opacity == pytest.approx(0.45)
        record = expect_map(layer)
        assert zarr.open_group(str(record.saliency.path), mode="r").attrs["streamview"]["target"] == "lesion"
        assert len(record.saliency.prediction.identity.key) == 64
        assert record.cap > 0


def test_of_several_targets_the_predicted_class_is_on_top(job: Path, slide_path: Path) -> None:
    folder = Job(job)
    with open_slide(slide_path) as slide:
        saliency = make_saliency(slide)
    targets = [Target("lesion-normal", 1, 0), Target("lesion", 1), Target("normal", 0)]
    stored = [folder.saliency_path("planted.svs", REGION, target) for target in targets]
    for path, target in zip(stored, targets, strict=True):
        save_saliency(replace(saliency, target=target), path)
    maps = tuple(StoredMap(str(path.relative_to(job)), target) for path, target in zip(stored, targets, strict=True))
    shutil.rmtree(folder.saliency_path("planted.svs", REGION))
    folder.add(RegionResult(saliency.prediction, "run", maps=maps, source=str(slide_path)))
    folder.write_tables()
    layers = model(job_layers(job)).layers
    assert [layer.name.split(": ")[1] for layer in layers[1:]] == ["lesion"] * 3
    assert [layer.name for layer in layers[1:] if layer.visible] == ["Class evidence (extent): lesion"]
    siblings = expect_map(layers["Class evidence (extent): lesion"]).siblings  # without layers until they are chosen
    assert [sibling.target.name for sibling in siblings] == ["lesion-normal", "normal"]
    shown = siblings[0]
    assert (shown.target.name, shown.target_probability, shown.target_score) == ("lesion-normal", None, 2.0)


def test_map_layers_fade_to_nothing_at_zero(slide_path: Path) -> None:
    with open_slide(slide_path) as slide:
        _, options, _ = saliency_layers(make_saliency(slide))[-1]
    colours = options["colormap"].map(np.array([0.0, 0.14, 0.16, 1.0]))  # from the threshold, 15% of the cap
    np.testing.assert_allclose(colours[:, 3], [0, 0, 0.55 + 0.45 * 0.16, 1], atol=0.01)
    np.testing.assert_allclose(colours[3, :3] * 255, (0xD7, 0xFF, 0x3E), atol=1)


def test_without_mpp_all_layers_are_in_pixels(slide_path: Path) -> None:
    with open_slide(slide_path) as slide:
        plain = as_slide(slide.read(Region(0, 0, 1024, 1536)))
    viewer = model(
        [slide_layer(plain), *saliency_layers(make_saliency(plain, mpp=None)), mask_layer(np.ones((32, 48), bool), "m", None, (32, 32))]
    )
    assert {str(unit) for layer in viewer.layers for unit in layer.units} == {"pixel"}
    np.testing.assert_allclose(viewer.layers[-1].data_to_world((0, 0)), (15.5, 15.5))
    np.testing.assert_allclose(viewer.layers[1].extent.world, viewer.layers[2].extent.world, atol=8)


def test_a_slide_without_coarse_levels_gets_them(slide_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2100, 5000, 3)).astype(np.uint8)
    (levels, options, _) = slide_layer(as_slide(pixels, mpp=0.25))
    assert [level.shape for level in levels] == [(2100, 5000, 3), (1050, 2500, 3), (525, 1250, 3)]
    assert options["scale"] == (0.25, 0.25)
    means = pixels[8:16, 40:60].reshape(4, 2, 10, 2, 3).mean((1, 3))
    np.testing.assert_allclose(levels[1][4:8, 20:30], means, atol=1.01)  # rounded once along each axis
    np.testing.assert_array_equal(levels[0][5:9:2, 7, ::-1], pixels[5:9:2, 7, ::-1])
    np.testing.assert_array_equal(levels[0][..., 1][:4], pixels[:4, :, 1])


def test_slide_levels_are_lazy(slide_path: Path) -> None:
    reads: list[Region] = []

    class Watched:
        def __init__(self, slide: Slide) -> None:
            self._slide = slide

        def __getattr__(self, name: str) -> Any:
            return getattr(self._slide, name)

        def read(self, region: Region) -> np.ndarray:
            reads.append(region)
            return self._slide.read(region)

    with open_slide(slide_path) as slide:
        levels, _, _ = slide_layer(Watched(slide))  # type: ignore[arg-type]
        assert reads == []
        np.testing.assert_array_equal(levels[0][10:20, 30:50], slide.read(Region(10, 30, 10, 20)))
    assert reads == [Region(10, 30, 10, 20)]


def test_the_reader_opens_slides_pyramids_maps_and_jobs(slide_path: Path, job: Path, tmp_path: Path) -> None:
    with open_slide(slide_path) as slide:
        build_pyramid(slide, tmp_path / "p.ome.zarr")
        saliency = save_saliency(make_saliency(slide), tmp_path / "s.ome.zarr")
    expected = {slide_path: 1, tmp_path / "p.ome.zarr": 1, tmp_path / "s.ome.zarr": 3, job: 4}
    for path, count in expected.items():
        reader = get_reader(str(path))
        assert reader is not None
        assert len(model(reader(str(path))).layers) == count
    assert saliency.prediction.slide_name == "planted.svs"


OPENABLE = (
    "rgba.tif",
    "palette.tif",
    "no suffix",
    "named.ndpi",
    "v04.ome.zarr",
    "yxc.zarr",
    "a.ome.zarr.zip",
    "parent.zarr",
    "memory://a.zarr",
)


@pytest.mark.parametrize("name", OPENABLE)
def test_the_reader_opens_what_open_slide_opens(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    path, tiles = str(tmp_path / name), {"tile": (32, 32), "metadata": None}
    if name == "rgba.tif":
        alpha = np.full((70, 90, 1), 255, np.uint8)
        tifffile.imwrite(path, np.concatenate([pixels, alpha], 2), photometric="rgb", extrasamples=["assocalpha"], **tiles)
    elif name == "palette.tif":
        grey = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 3, 0)
        pixels = np.repeat(pixels[..., :1], 3, 2)
        tifffile.imwrite(path, pixels[..., 0], photometric="palette", colormap=grey, **tiles)
    elif "zarr" not in name:
        tifffile.imwrite(path, pixels, photometric="rgb", **tiles)
    else:
        axes = "yxc" if name == "yxc.zarr" else "cyx"
        if "://" in name:
            pytest.importorskip("fsspec")
            path = f"memory://{tmp_path.name}/a.zarr"
        store: Any = zarr.storage.FsspecStore.from_url(path) if "://" in path else path
        if name.endswith("zip"):
            store = zarr.storage.ZipStore(path, mode="w")
        scale = {"type": "scale", "scale": [1.0, 1.0, 1.0]}
        image = {"axes": [{"name": axis} for axis in axes], "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
        old = name.startswith("v04")
        attributes: Any = {"multiscales": [image]} if old else {"ome": {"version": "0.5", "multiscales": [image]}}
        inside = "0" if "parent" in name else ""
        group = zarr.create_group(store, zarr_format=2 if old else 3, path=inside, attributes=attributes)
        values = pixels if axes == "yxc" else pixels.transpose(2, 0, 1)
        group.create_array("0", shape=values.shape, chunks=values.shape, dtype="uint8")[...] = values
        if "parent" in name:
            zarr.open_group(store, mode="a", zarr_format=3)
        if name.endswith("zip"):
            store.close()
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(Region(0, 0, 70, 90)), pixels)
    reader = get_reader(path)
    assert reader is not None
    check(path)
    ((levels, options, kind),) = reader(path)
    assert kind == "image"
    np.testing.assert_array_equal(np.asarray(levels[0]), pixels)
    assert options["metadata"]["streamview"].path == path
    options["metadata"]["streamview"].source.close()


def test_the_reader_leaves_everything_else_alone(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tif").write_bytes(b"II*\0 and then nothing")
    (tmp_path / "odd.zarr").mkdir()
    (tmp_path / "odd.zarr" / "zarr.json").write_text('{"attributes": []}')
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((64, 64), np.uint16))
    for name in ("text.txt", "empty", "broken.tif", "odd.zarr", "grey.tif", "missing.png"):
        assert get_reader(str(tmp_path / name)) is None
        with pytest.raises(StreamviewError, match=r"no such file|nothing to show"):
            check(str(tmp_path / name))
    assert get_reader([str(tmp_path / "a.svs"), str(tmp_path / "b.svs")]) is None


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((4, 70, 90), np.uint8, {"metadata": {"axes": "CYX"}, "ome": True}),
        ((4, 70, 90), np.uint8, {}),
        ((70, 90), np.uint8, {}),
        ((70, 90), np.uint16, {}),
    ],
)
def test_a_tiled_tiff_of_other_channels_gets_the_help_of_info(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from streamview.cli import main

    path = tmp_path / "channels.tif"
    tifffile.imwrite(path, np.zeros(shape, dtype), photometric="minisblack", tile=(32, 32), **options)
    reader = get_reader(str(path))
    assert reader is not None
    with pytest.raises(
        StreamviewError, match=r"channels? of \d+ bit .*expected 8-bit RGB \(brightfield\); (streamview convert|export)"
    ) as error:
        reader(str(path))
    assert main(["info", str(path)]) == 1
    assert str(error.value) in " ".join(capsys.readouterr().err.split())


def test_deciding_loads_neither_torch_nor_zarr(slide_path: Path, job: Path) -> None:
    code = f"from streamview_napari.reader import get_reader; assert get_reader({str(job)!r}) and get_reader({str(slide_path)!r})"
    code += "; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "zarr", "napari", "qtpy"} & set(loaded)


def test_a_job_whose_slide_moved_still_shows_its_maps(job: Path, slide_path: Path, tmp_path: Path) -> None:
    record = next((job / "slides").iterdir())
    record.write_text(record.read_text().replace(str(slide_path), str(tmp_path / "gone.svs")))
    assert len(job_layers(job)) == 3
    with pytest.raises(StreamviewError, match=r"no result to show for other\.svs"):
        job_layers(job, "other.svs")


def test_the_caption_follows_what_is_visible(job: Path) -> None:
    viewer = ViewerModel()
    add_layers(viewer, str(job))
    assert viewer.canvas.overlays.scale_bar.visible
    text = viewer.canvas.overlays.text
    assert text.text.split("\n") == [
        "planted.svs | demo: lesion 88.1%",
        "Class evidence (extent): lesion",
        f"100% = {expect_map(viewer.layers[-1]).cap:.3g} | blur 6 µm (6 px)",
        "shown above 15% | research use only",
    ]
    viewer.layers[-1].visible = False
    viewer.layers[-2].visible = True
    _, what, how, shown = text.text.split("\n")
    assert (what, how.partition(" | ")[2], shown) == (
        "Gradient x input (detail): lesion",
        "blur 3 µm (3 px)",
        "shown above 15% | research use only",
    )
    assert [layer.colorbar.visible for layer in viewer.layers[1:]] == [False, True, False]


def test_the_sample_is_a_slide_with_its_lesion() -> None:
    slide, mask = model(synthetic_slide()).layers
    assert slide.data[0].shape[:2] == mask.data.shape == (2048, 2048)
    np.testing.assert_allclose(slide.data_to_world((100, 200, 0)[:2]), mask.data_to_world((100, 200)))
    lesion = mask.data.astype(bool)
    assert 0 < lesion.mean() < 0.5


def test_errors_of_a_broken_slide_are_named(tmp_path: Path) -> None:
    (tmp_path / "fake.svs").write_text("not a slide")
    reader = get_reader(str(tmp_path / "fake.svs"))
    assert reader is not None
    with pytest.raises(StreamviewError, match=r"fake\.svs"):
        reader(str(tmp_path / "fake.svs"))


def test_a_slide_level_reads_whole(slide_path: Path) -> None:
    with open_slide(slide_path) as slide:
        level = SlideLevel(slide, len(slide.levels) - 1)
        assert np.asarray(level).shape == level.shape
