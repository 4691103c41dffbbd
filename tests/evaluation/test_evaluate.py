"""Regions answered in the order they were given, each as `predict` answers it, and files that say the same as the figures."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Page
from matplotlib.text import Text
from PIL import Image
from torch import nn

import streamview.labels.regions
from streamview.cli import main
from streamview.errors import Cancelled, LabelError, RegionError, SlideError, StreamviewError
from streamview.evaluation import Metrics, evaluate, measure, write_evaluation
from streamview.evaluation.charts import chart_size, draw_confusion, draw_reliability, draw_scatter, write_chart
from streamview.geometry import Region
from streamview.inference.compute import Compute
from streamview.labels.regions import Example, read_labels
from streamview.networks import Model, load_card
from streamview.results import RESEARCH_USE
from streamview.slides.synthetic import write_synthetic_slide


def network(task="class", count=2) -> Model:
    """The mean of red, green ... as logits: what it answers can be computed by hand."""
    convolution = nn.Conv2d(3, count, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(4 * torch.eye(3).repeat(2, 1)[:count, :, None, None])
    module = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten()).requires_grad_(False).eval()
    names = ("red", "green", "blue", "more")[:count]
    card = replace(load_card("demo"), name="mean", task=task, class_names=names, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Model(module, card, "0" * 64)


def slide(seed) -> np.ndarray:
    """Squares of 64 px, each of one colour, 4 down and 5 across."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return colours.repeat(64, 0).repeat(64, 1)


def squares(label_of, slides=(1, 2, 3)) -> list[Example]:
    """Regions that go to and fro between slides."""
    pictures = {seed: slide(seed) for seed in slides}
    found = []
    for y in range(0, 256, 64):
        for x in range(0, 320, 64):
            for seed, pixels in pictures.items():
                region = Region(y, x, 64, 64)
                found.append(Example(pixels, label_of(pixels[y, x]), region, f"patient {seed}", f"slide {seed}", 0.5))
    return found


def brighter(colour) -> str:
    """Red or green, and in one of four places the wrong one."""
    right = "red" if colour[0] > colour[1] else "green"
    return right if colour[2] % 4 else {"red": "green", "green": "red"}[right]


def test_every_region_gets_its_own_answer_in_the_order_given():
    examples = squares(brighter)
    found = evaluate(network(), examples, resamples=100, seed=1)
    expected = [4 * (example.source[example.region.y, example.region.x, :2] / 255) for example in examples]
    assert [row.example for row in found.rows] == examples
    np.testing.assert_allclose([row.prediction.logits for row in found.rows], expected, rtol=1e-5)
    truth = [("red", "green").index(example.label) for example in examples]
    logits = np.stack([row.prediction.logits for row in found.rows])
    by_hand = measure(logits, truth, [example.patient for example in examples], network().card, resamples=100, seed=1)
    assert repr(found.metrics) == repr(by_hand)
    assert 0.6 < found.metrics.accuracy.value < 0.9
    assert found.metrics.patients == 3
    assert any("rest on 3 patients" in warning for warning in found.warnings)


def test_a_slide_is_opened_once_to_be_told_apart_and_once_to_be_read(tmp_path, monkeypatch):
    write_synthetic_slide(tmp_path / "a.svs", size=(512, 512), seed=1)
    write_synthetic_slide(tmp_path / "b.svs", size=(512, 512), seed=2)
    rows = [f"{name},normal,{x},0,256,256" for x in (0, 256) for name in "ab"]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,label,x,y,width,height", *rows]))
    opened, original = [], streamview.labels.regions.open_slide
    monkeypatch.setattr(streamview.labels.regions, "open_slide", lambda path, mpp: opened.append(path) or original(path, mpp))
    found = evaluate(streamview.load_model("demo"), read_labels(tmp_path / "labels.csv"), resamples=0)
    assert [path.stem for path in opened] == ["a", "b"] * 2
    assert [row.prediction.slide_name for row in found.rows] == ["a.svs", "b.svs"] * 2


def test_a_region_that_fails_is_named_or_left_out(tmp_path):
    examples = squares(brighter, (1,))
    outside = replace(examples[0], region=Region(200, 0, 64, 64))
    missing = Example(tmp_path / "gone.svs", "red", slide_id="gone")
    with pytest.raises(RegionError, match="slide 1 at 0,200,64,64"):
        evaluate(network(), [outside, *examples])
    with pytest.raises(SlideError, match="gone"):
        evaluate(network(), [*examples, missing])
    found = evaluate(network(), [outside, *examples, missing], skip_errors=True, resamples=0)
    assert found.failed == (found.rows[0], found.rows[-1])
    assert "slide 1 at 0,200,64,64" in found.rows[0].error
    assert repr(found.metrics) == repr(evaluate(network(), examples, resamples=0).metrics)
    assert str(found).endswith("2 of 22 regions failed")
    none = evaluate(network(), [missing], skip_errors=True)
    assert (none.metrics, str(none).splitlines()[0]) == (None, "no region was answered")


def test_labels_that_are_no_classes_are_refused_before_anything_is_read(tmp_path):
    gone = Example(tmp_path / "gone.svs", "purple")
    with pytest.raises(LabelError, match="purple"):
        evaluate(network(), [gone])
    with pytest.raises(LabelError, match="expected one or more"):
        evaluate(network(), [])


def test_one_progress_runs_over_all_regions_and_ends_once():
    steps = []
    evaluate(network(), squares(brighter, (1,)), compute=Compute(tile=(32, 32)), report=steps.append, resamples=0)
    assert {(step.task, step.total) for step in steps} == {("evaluation", 2000)}
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert done.count(2000) == 1
    assert len(done) >= 20 * 4  # each step of the engine


@pytest.mark.parametrize("at", [1, 7, 40])
def test_it_can_be_cancelled_at_every_step_of_the_engine(at):
    told = []

    def report(step):
        told.append(step)
        if len(told) == at:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        evaluate(network(), squares(brighter, (1,)), compute=Compute(tile=(32, 32)), report=report)
    assert len(told) == at


def test_the_files_say_what_was_measured(tmp_path):
    examples = squares(brighter)
    found = evaluate(network(), [*examples, replace(examples[0], region=Region(250, 0, 64, 64))], skip_errors=True, resamples=100)
    paths = write_evaluation(found, tmp_path / "out")
    assert [path.name for path in paths] == ["regions.csv", "confusion.png", "reliability.png", "summary.md", "metrics.json"]
    assert sorted(tmp_path.joinpath("out").iterdir()) == sorted(paths)
    document = json.loads(paths[-1].read_text())
    assert repr(Metrics.from_dict(document["metrics"])) == repr(found.metrics)
    assert (document["note"], document["regions"], document["failed"]) == (RESEARCH_USE, 61, 1)
    assert document["model"]["weights_sha256"] == "0" * 64
    assert document["labels_sha256"] == found.labels_sha256
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, example in zip(rows[:-1], examples, strict=True):
        assert (row["slide_id"], row["patient_id"], row["label"], row["mpp"]) == (example.name, example.patient, example.label, "0.5")
        assert Region(*(int(row[key]) for key in ("y", "x", "height", "width"))) == example.region
        logits = np.array([float(row["logit_red"]), float(row["logit_green"])])
        assert row["prediction"] == ("red", "green")[logits.argmax()]
        assert float(row["prob_red"]) == pytest.approx(1 / (1 + np.exp(logits[1] - logits[0])), rel=1e-5)
    assert (rows[-1]["status"], rows[-1]["prediction"], rows[-1]["y"]) == ("failed", "", "250")
    right = sum(row["label"] == row["prediction"] for row in rows[:-1])
    summary = paths[3].read_text()
    assert RESEARCH_USE in summary
    assert f"| accuracy | {right / 60:#.3g} (" in summary
    assert "always answering" in summary
    assert "## Failed" in summary
    for path in paths[1:3]:
        with Image.open(path) as image:
            assert min(image.size) > 500
            assert image.text["Description"] == RESEARCH_USE


def test_an_evaluation_takes_the_place_of_the_last(tmp_path):
    write_evaluation(evaluate(network(), squares(brighter, (1,)), resamples=0), tmp_path)
    values = squares(lambda colour: f"{colour[0] / 64};{colour[1] / 64 + colour[2] / 100}", (1,))
    paths = write_evaluation(evaluate(network("regression"), values, resamples=50), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert "scatter.png" in {path.name for path in paths}
    found = Metrics.from_dict(json.loads((tmp_path / "metrics.json").read_text())["metrics"])
    assert found.outputs[0].spearman.value == pytest.approx(1)
    assert 0 < found.outputs[1].spearman.value < 1
    several = squares(lambda colour: ";".join(n for n, v in zip(("red", "green", "blue"), colour, strict=True) if v > 128), (1,))
    paths = write_evaluation(evaluate(network("multilabel", 3), several, resamples=50), tmp_path)
    assert sorted(path.name for path in paths) == ["metrics.json", "regions.csv", "reliability.png", "summary.md"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_model_or_a_file_is_never_written_over(tmp_path):
    found = evaluate(network(), squares(brighter, (1,)), resamples=0)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(StreamviewError, match="folder of a model"):
        write_evaluation(found, tmp_path)
    with pytest.raises(StreamviewError, match="is a file"):
        write_evaluation(found, tmp_path / "card.json")
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]


def drawn(draw, metrics, what) -> list[Text]:
    page = Page(figsize=chart_size(metrics, what))
    draw(page, metrics)
    page.draw_without_rendering()
    return page.findobj(Text)


def joined(texts) -> str:
    return "\n".join(text.get_text() for text in texts)


@pytest.mark.parametrize("count", [2, 9, 24])
def test_pictures_state_counts_baseline_and_interval(count):
    rng = np.random.default_rng(count)
    targets = rng.integers(0, count, 300)
    card = replace(load_card("demo"), class_names=tuple(f"a rather long name of class {n}" for n in range(count)))
    found = measure(rng.normal(size=(300, count)) + 2 * np.eye(count)[targets], targets, [f"p{n // 6}" for n in range(300)], card)
    texts = drawn(draw_confusion, found, "confusion")
    cells = {text.get_position(): int(text.get_text()) for text in texts if text.get_text().isdecimal()}
    assert cells == {(column, row): times for row, counts in enumerate(found.confusion) for column, times in enumerate(counts)}
    everything = joined(texts)
    assert RESEARCH_USE in everything
    assert f"accuracy {found.accuracy}; always answering" in everything
    assert "300 regions of 50 patients (95 % intervals, resampled by patient)" in everything
    everything = joined(drawn(draw_reliability, found, "reliability"))
    assert RESEARCH_USE in everything
    assert all(str(entry.count) in everything for entry in found.reliability if entry.count)


def test_a_scatter_of_values_that_are_all_the_same_can_be_drawn():
    card = replace(load_card("demo"), task="regression")
    truth, values = np.full((4, 2), 2.0), np.full((4, 2), 2.0)
    found = measure(values, truth, list("abcd"), card)
    everything = joined(drawn(partial(draw_scatter, truth=truth, values=values), found, "scatter"))
    assert "Spearman's rho undefined" in everything
    assert RESEARCH_USE in everything


def test_a_picture_that_fails_leaves_nothing(tmp_path):
    def draw(page):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_chart(tmp_path / "a.png", draw, (3, 3))
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_loaded_by_a_picture_alone_and_pyplot_never(tmp_path):
    code = (
        "import sys; from streamview.evaluation.charts import write_chart; before = 'matplotlib' in sys.modules; "
        f"write_chart({str(tmp_path / 'a.png')!r}, lambda page: page.text(0.5, 0.5, 'a'), (2, 2)); "
        "print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "True", "False"]


def test_the_command_prints_and_writes_and_says_by_its_status_whether_a_region_failed(tmp_path, capsys):
    named = []
    for seed, name in enumerate("abc", 4):
        lesion = write_synthetic_slide(tmp_path / f"{name}.svs", size=(256, 768), seed=seed)
        labels = ["lesion" if lesion[:, x : x + 256].mean() > 0.3 else "normal" for x in (0, 256, 512)]
        named += [f"{name},{label},p{name},{x},0,256,256" for x, label in zip((0, 256, 512), labels, strict=True)]
    labels = tmp_path / "labels.csv"
    head = "slide_id,label,patient_id,x,y,width,height"
    labels.write_text("\n".join([head, *named]))
    ask = ["evaluate", "-i", str(labels), "-m", "demo", "-o", str(tmp_path / "out"), "--resamples", "200"]
    assert main(ask) == 0
    said = capsys.readouterr()
    for part in ("labels: 9 regions on 3 slides of 3 patients", "forecast for a at", "always answering", "written: ", "took "):
        assert part in said.out
    assert "rest on 3 patients" in said.err
    assert (tmp_path / "out/metrics.json").is_file()

    labels.write_text("\n".join([head, *named, "a,normal,pa,700,0,256,256"]))
    other = [str(tmp_path / "other") if word == str(tmp_path / "out") else word for word in ask]
    assert main(other) == 1
    assert "a at 700,0,256,256" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main([*other, "--skip-errors"]) == 1
    assert "error: " in capsys.readouterr().err
    assert (tmp_path / "other/summary.md").is_file()
    with pytest.raises(SystemExit):
        main([*other, "--resamples", "-1"])
