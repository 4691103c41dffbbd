"""Results: identities, probabilities, and maps that survive the disk exactly or not at all."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamview.errors import StreamviewError
from streamview.files import atomic
from streamview.geometry import Region
from streamview.results import Identity, MapWriter, Prediction, Saliency, SaliencyMap, Target, open_saliency, save_saliency

IDENTITY = Identity("ab" * 32, "cd" * 32, "slide-hash", Region(100, 60, 1400, 1040), (0.5, 0.5), "float32")


def make_prediction(
    task: str = "class", logits: tuple[float, ...] = (0.25, 2.5), shape: tuple[int, int] = (700, 520), **changes: object
) -> Prediction:
    values: dict[str, object] = {
        "slide_name": "a.svs",
        "region": IDENTITY.region,
        "shape": shape,
        "mpp": (0.5, 0.5),
        "task": task,
        "class_names": ("normal", "tumour", "other")[: len(logits)],
        "logits": np.array(logits, np.float32),
        "identity": IDENTITY,
        "model_name": "demo",
        "trained": True,
        "warnings": ("region is larger than the training regions",),
    }
    return Prediction(**(values | changes))  # type: ignore[arg-type]


def make_saliency(shape: tuple[int, int] = (700, 520), *, evidence: bool = True, **changes: object) -> Saliency:
    rng = np.random.default_rng(0)
    signed = rng.normal(size=shape).astype(np.float32)
    step, origin = (2.0, 2.0), (100.5, 60.5)
    maps = {"absolute": SaliencyMap("absolute", abs(signed), step, origin), "signed": SaliencyMap("signed", signed, step, origin)}
    if evidence:
        coarse = rng.normal(size=(shape[0] // 8, shape[1] // 8)).astype(np.float32)
        maps["evidence"] = SaliencyMap("evidence", coarse, (16.0, 16.0), (107.5, 67.5))
    return Saliency(make_prediction(shape=shape, **changes), Target("tumour", 1), (0.2, 0.21, 0.22), (244, 243, 245), maps)  # type: ignore[arg-type]


def test_the_identity_changes_with_every_field() -> None:
    others = [
        Identity("00", IDENTITY.card_sha256, IDENTITY.source, IDENTITY.region, IDENTITY.mpp, IDENTITY.precision),
        Identity(IDENTITY.weights_sha256, "00", IDENTITY.source, IDENTITY.region, IDENTITY.mpp, IDENTITY.precision),
        Identity(IDENTITY.weights_sha256, IDENTITY.card_sha256, "other", IDENTITY.region, IDENTITY.mpp, IDENTITY.precision),
        Identity(IDENTITY.weights_sha256, IDENTITY.card_sha256, IDENTITY.source, Region(0, 0, 1, 1), IDENTITY.mpp, IDENTITY.precision),
        Identity(IDENTITY.weights_sha256, IDENTITY.card_sha256, IDENTITY.source, IDENTITY.region, None, IDENTITY.precision),
        Identity(IDENTITY.weights_sha256, IDENTITY.card_sha256, IDENTITY.source, IDENTITY.region, IDENTITY.mpp, "float64"),
    ]
    assert len({IDENTITY.key, *(other.key for other in others)}) == 7
    assert Identity.from_dict(json.loads(json.dumps(IDENTITY.to_dict()))).key == IDENTITY.key


def test_probabilities_by_task() -> None:
    softmax = make_prediction("class", (1.0, 3.0, 1000.0)).probabilities
    assert softmax is not None
    assert softmax.dtype == np.float32
    np.testing.assert_allclose(softmax, [0, 0, 1], atol=1e-7)
    np.testing.assert_allclose(make_prediction("class", (0.0, np.log(3.0))).probabilities, [0.25, 0.75], rtol=1e-6)
    sigmoid = make_prediction("multilabel", (-1000.0, 0.0, np.log(3.0)))
    np.testing.assert_allclose(sigmoid.probabilities, [0, 0.5, 0.75], atol=1e-7)
    assert sigmoid.label == "tumour; other"
    regression = make_prediction("regression", (1.5,))
    assert regression.probabilities is None
    assert regression.label is None
    assert make_prediction("class", (1.0, 3.0)).label == "tumour"


def test_a_prediction_survives_json() -> None:
    prediction = make_prediction(logits=(0.1, 1 / 3))
    again = Prediction.from_dict(json.loads(json.dumps(prediction.to_dict())))
    assert again.logits.tolist() == prediction.logits.tolist()
    assert again.to_dict() == prediction.to_dict()


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_rows_in_any_adjoining_pieces_are_kept_exactly(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    height, width = data.draw(st.integers(1, 1300), "height"), data.draw(st.integers(1, 40), "width")
    rng = np.random.default_rng(height)
    rows = rng.normal(size=(2, height, width)).astype(np.float32)
    start = stop = data.draw(st.integers(0, height - 1), "first row")
    path = tmp_path_factory.mktemp("rows") / "r.ome.zarr"
    with MapWriter(path, (height, width), step=(1.0, 1.0), origin=(0.0, 0.0)) as writer:
        while start > 0 or stop < height:
            upwards = start > 0 and (stop == height or data.draw(st.booleans()))
            n = data.draw(st.integers(1, start if upwards else height - stop))
            y = start - n if upwards else stop
            writer.write(y, rows[:, y : y + n])
            start, stop = min(start, y), max(stop, y + n)
        saved = writer.finish(make_prediction(shape=(height, width)), target=Target("normal", 0), std=(1.0,), glass=(255, 255, 255))
    np.testing.assert_array_equal(saved.maps["absolute"].values, rows[0])
    np.testing.assert_array_equal(saved.maps["signed"].values, rows[1])


def test_levels_are_exact_block_means_down_to_512() -> None:
    from streamview.results.maps import halve

    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_array_equal(halve(values), [[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]])


def test_saving_and_opening_gives_the_same_saliency(tmp_path: Path) -> None:
    saliency = make_saliency((1100, 1537))
    saved = save_saliency(saliency, tmp_path / "job" / "r.ome.zarr")
    again = open_saliency(tmp_path / "job" / "r.ome.zarr")
    for opened in (saved, again):
        assert opened.prediction.to_dict() == saliency.prediction.to_dict()
        assert (opened.target, opened.std, opened.glass) == (saliency.target, saliency.std, saliency.glass)
        assert list(opened.maps) == ["absolute", "signed", "evidence"]
        assert opened.mpp == (0.25, 0.25)
        for method, kept in saliency.maps.items():
            np.testing.assert_array_equal(opened.maps[method].values, kept.values)
            assert (opened.maps[method].step, opened.maps[method].origin) == (kept.step, kept.origin)
    signed = again.maps["signed"]
    assert [level.shape for level in signed.levels] == [(1100, 1537), (550, 769), (275, 385)]
    for finer, coarser in zip(signed.levels[:-1], signed.levels[1:], strict=True):
        np.testing.assert_allclose(coarser[10, 10], np.asarray(finer)[20:22, 20:22].mean(), rtol=1e-5)
        edge = np.asarray(finer)[:2, -1] if finer.shape[1] % 2 else np.asarray(finer)[:2, -2:]
        np.testing.assert_allclose(coarser[0, -1], edge.mean(), rtol=1e-5)
    assert [entry.name for entry in (tmp_path / "job").iterdir()] == ["r.ome.zarr"]


def test_a_difference_keeps_both_of_its_classes_and_has_no_probability(tmp_path: Path) -> None:
    made = replace(make_saliency(logits=(0.25, 2.5)), target=Target("tumour-normal", 1, 0))
    saved = save_saliency(made, tmp_path / "r.ome.zarr")
    assert saved.target == made.target
    assert (saved.target_score, saved.target_probability) == (2.25, None)
    assert saved.prediction.answer_for(saved.target) == "score = 2.25"
    assert saved.prediction.answer_for(Target("tumour", 1)) == "p = 0.905"
    assert make_prediction("regression", (0.5, -3.0)).answer_for(Target("tumour", 1)) == "score = -3"


def test_only_a_complete_result_takes_its_place(tmp_path: Path) -> None:
    with MapWriter(tmp_path / "r.ome.zarr", (8, 8), step=(1.0, 1.0), origin=(0.0, 0.0)) as writer:
        with pytest.raises(ValueError, match="only a completed result"):
            writer.place()
        writer.write(0, np.zeros((2, 8, 8), np.float32))
        writer.complete(make_prediction(shape=(8, 8)), target=Target("normal", 0), std=(1.0,), glass=(255, 255, 255))
        assert not (tmp_path / "r.ome.zarr").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mpp", [(0.5, 0.6), None])
def test_the_files_are_valid_ome_zarr_placed_on_the_slide(tmp_path: Path, mpp: tuple[float, float] | None) -> None:
    import yaozarrs
    from ome_zarr_models.v05.image import Image

    path = tmp_path / "r.ome.zarr"
    save_saliency(make_saliency(mpp=mpp, shape=(700, 520)), path)
    for group in (path, path / "evidence"):
        yaozarrs.validate_zarr_store(str(group))
        image = Image.from_zarr(zarr.open_group(group, mode="r"))
        axes = image.ome_attributes.multiscales[0].axes
        assert [axis.name for axis in axes] == ["c", "y", "x"]
        assert [axis.unit for axis in axes[1:]] == ([None, None] if mpp is None else ["micrometer"] * 2)
    datasets = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]["datasets"]
    # One pixel of the grid is two of level 0; the second level's pixel centre lies half a grid pixel further.
    my, mx = (1.0, 1.0) if mpp is None else (mpp[0] / 2, mpp[1] / 2)
    scale, translation = (transform for transform in datasets[1]["coordinateTransformations"])
    np.testing.assert_allclose(scale["scale"], [1, 4 * my, 4 * mx])
    np.testing.assert_allclose(translation["translation"], [0, 101.5 * my, 61.5 * mx])


def test_a_failed_run_leaves_the_finished_result_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.ome.zarr"
    first = save_saliency(make_saliency(), path)

    def interrupted() -> None:
        with MapWriter(path, (700, 520), step=(1.0, 1.0), origin=(0.0, 0.0)) as writer:
            writer.write(0, np.zeros((2, 600, 520), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.ome.zarr"]
    np.testing.assert_array_equal(open_saliency(path).maps["signed"].values, first.maps["signed"].values)


def test_a_result_that_cannot_take_its_place_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.ome.zarr"
    save_saliency(make_saliency(evidence=False), path)
    rename = os.rename

    def refuse_the_new(source: Path, target: Path) -> None:
        if target == path and not source.joinpath("0", "c").exists():
            raise OSError(errno.EIO, "gone")
        rename(source, target)

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    monkeypatch.setattr(os, "rename", refuse_the_new)
    with pytest.raises(StreamviewError, match="gone"):
        atomic.replace(fresh, path)
    assert "signed" in open_saliency(path).maps


def test_a_new_result_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "r.ome.zarr"
    save_saliency(make_saliency((700, 520)), path)
    save_saliency(make_saliency((64, 40), evidence=False), path)
    assert open_saliency(path).maps["absolute"].values.shape == (64, 40)
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.ome.zarr"]


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with MapWriter(tmp_path / "r.ome.zarr", (100, 50), step=(1.0, 1.0), origin=(0.0, 0.0)) as writer:
        writer.write(40, np.zeros((2, 10, 50), np.float32))
        for y, shape in [(60, (2, 10, 50)), (45, (2, 10, 50)), (50, (1, 10, 50)), (50, (2, 10, 49)), (50, (2, 51, 50))]:
            with pytest.raises(ValueError, match="rows"):
                writer.write(y, np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=r"40\.\.50 of 0\.\.100"):
            writer.finish(make_prediction(), target=Target("normal", 0), std=(1.0,), glass=(255, 255, 255))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "choose another output folder")])
def test_a_full_or_forbidden_disk_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
    path = tmp_path / "r.ome.zarr"
    save_saliency(make_saliency(evidence=False), path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(zarr.Array, "__setitem__", refuse)
    with pytest.raises(StreamviewError, match=remedy):
        save_saliency(make_saliency(), path)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.ome.zarr"]
    assert "evidence" not in open_saliency(path).maps


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    def peak(height: int) -> int:
        rows = np.zeros((2, 64, 512), np.float32)
        tracemalloc.start()
        with MapWriter(tmp_path / f"{height}.ome.zarr", (height, 512), step=(1.0, 1.0), origin=(0.0, 0.0)) as writer:
            for y in range(height - 64, -1, -64):
                rows[:] = y + 1
                writer.write(y, rows)
            writer.finish(make_prediction(shape=(height, 512)), target=Target("normal", 0), std=(1.0,), glass=(255, 255, 255))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return memory

    peak(512)  # what is allocated once
    assert peak(8192) < 1.3 * peak(2048)


@pytest.mark.parametrize("content", ["nothing", "file", "empty", "foreign", "newer", "damaged"])
def test_what_is_not_a_saliency_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.ome.zarr"
    if content == "file":
        path.write_text("hello")
    elif content == "empty":
        path.mkdir()
    elif content == "foreign":
        zarr.open_group(path, mode="w").create_array("0", shape=(3, 4, 4), dtype="u1")
    elif content in ("newer", "damaged"):
        save_saliency(make_saliency(), path)
        root = dict(zarr.open_group(path, mode="r").attrs["streamview"])
        root["format" if content == "newer" else "prediction"] = 99
        zarr.open_group(path, mode="a").attrs["streamview"] = root
    with pytest.raises(StreamviewError, match=r"r\.ome\.zarr: .*(streamview saliency|newer streamview)"):
        open_saliency(path)


def test_replacing_a_file_keeps_the_old_content_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    atomic.write_text(path, "first\n")

    def fail() -> None:
        with atomic.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"first\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("task", "logits", "positive", "usual"),
    [
        ("class", (3.0, 1.0, 2.0), (), "normal"),
        ("class", (3.0, 1.0, 2.0), ("tumour",), "tumour"),
        ("class", (3.0, 1.0, 2.0), ("tumour", "other"), "other"),
        ("multilabel", (-1.0, -3.0, -2.0), ("tumour",), "tumour"),
        ("multilabel", (-3.0, -1.0, -2.0), (), "tumour"),
        ("regression", (-3.0, -1.0), (), "normal"),
    ],
)
def test_the_class_of_interest_is_explained_unless_the_card_names_none(
    task: str, logits: tuple[float, ...], positive: tuple[str, ...], usual: str
) -> None:
    prediction = make_prediction(task, logits, positive=positive)
    assert prediction.usual_target == Target(usual, prediction.class_names.index(usual))
    again = Prediction.from_dict(json.loads(json.dumps(prediction.to_dict())))
    assert (again.positive, again.usual_target) == (positive, prediction.usual_target)
    targets = [*(Target(name, index) for index, name in enumerate(prediction.class_names)), Target("normal-tumour", 0, 1)]
    interest = [prediction.is_of_interest(target) for target in targets]
    assert interest == [not positive or prediction.class_names[target.index] in positive for target in targets]


def test_a_record_of_an_earlier_version_names_no_class_of_interest() -> None:
    values = make_prediction(positive=("tumour",)).to_dict()
    del values["positive"]
    assert Prediction.from_dict(values).positive == ()


@pytest.mark.parametrize(
    ("task", "logits", "answer"),
    [
        ("class", (0.0, 2.0), "tumour (p = 0.881)"),
        ("multilabel", (1.0, 2.0), "normal; tumour"),
        ("multilabel", (-1.0, -2.0), "none of the classes"),
        ("regression", (0.5,), "normal = 0.5"),
    ],
)
def test_the_answer_in_one_line(task: str, logits: tuple[float, ...], answer: str) -> None:
    assert make_prediction(task, logits).answer == answer
