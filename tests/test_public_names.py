"""The public names: each has an example that runs, and what notebooks show of slides and results is small and safe."""

import base64
import doctest
import html.parser
import io
import json
import pickle
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

import streamview
from streamview.geometry import Region
from streamview.results.display import PRESETS, default_preset, draw_map
from streamview.results.maps import Saliency, SaliencyMap
from streamview.results.prediction import RESEARCH_USE, Identity, Prediction, Target
from streamview.slides import as_slide, open_slide
from streamview.slides.slide import Level, SlideBase
from streamview.slides.synthetic import write_synthetic_slide
from streamview.slides.thumbnail import thumbnail

NAMES = sorted(set(streamview.__all__) - {"__version__"})
HOSTILE = '<script>alert("x")</script> & co.svs'


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    """The ``slide.svs`` of the examples, with a lesion at the right."""
    path = tmp_path_factory.mktemp("examples") / "slide.svs"
    write_synthetic_slide(path, size=(512, 768))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_every_public_name_runs(name, slide_file, tmp_path, monkeypatch):
    (tmp_path / "slide.svs").hardlink_to(slide_file)
    monkeypatch.chdir(tmp_path)
    text = getattr(streamview, name).__doc__
    assert "    Examples\n    --------\n    >>> " in text
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    printed = io.StringIO()
    results = doctest.DocTestRunner(verbose=False).run(test, out=printed.write)
    assert results.failed == 0, printed.getvalue()


def test_the_old_name_for_pyramids_gives_what_open_slide_gives(slide_file, tmp_path):
    with open_slide(slide_file) as slide:
        streamview.build_pyramid(slide, tmp_path / "a.ome.zarr").close()
    with streamview.open_slide(tmp_path / "a.ome.zarr") as new, streamview.open_pyramid(tmp_path / "a.ome.zarr") as old:
        assert (type(new), new.identity, new.levels) == (type(old), old.identity, old.levels)


def prediction(task="class", names=("lesion", "normal"), **changes):
    values = {
        "slide_name": "a.svs",
        "region": Region(0, 0, 64, 96),
        "shape": (64, 96),
        "mpp": (0.5, 0.5),
        "task": task,
        "class_names": names,
        "logits": np.linspace(2, -1, len(names), dtype=np.float32),
        "identity": Identity("w", "c", "s", Region(0, 0, 64, 96), (0.5, 0.5), "float32"),
        "model_name": "demo",
        "trained": True,
    }
    return Prediction(**values | changes)


def saliency(values, **changes):
    placed = SaliencyMap("absolute", np.asarray(values, np.float32), (1.0, 1.0), (0.0, 0.0))
    return Saliency(prediction(**changes), Target("lesion", 0), (1.0, 1.0, 1.0), (255, 255, 255), {"absolute": placed})


class Elements(html.parser.HTMLParser):
    """Names of the elements, sources of the images, and the text of a piece of HTML, of which every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.names, self.sources, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(text):
    elements = Elements(text)
    assert elements.open == []
    assert set(elements.names) <= {"div", "strong", "table", "tr", "th", "td", "img"}
    kinds = ("data:image/png;base64,", "data:image/jpeg;base64,", "data:image/svg+xml;base64,")
    assert all(source.startswith(kinds) for source in elements.sources)
    return elements


def test_the_dictionary_of_a_prediction_is_its_record():
    answer = prediction()
    values = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert Prediction.from_dict(values).to_dict() == answer.to_dict() == values
    assert (values["label"], values["note"], len(values["identity"]["key"])) == ("lesion", RESEARCH_USE, 64)
    documented = Prediction.to_dict.__doc__
    assert [key for key in values if f"``{key}``" not in documented] == []


def test_a_prediction_in_a_notebook_is_a_table_with_the_likeliest_class_first():
    shown = read(prediction(logits=np.array([-1, 2], np.float32), trained=False, warnings=("The region is small.",))._repr_html_())
    assert shown.text.index("normal2") < shown.text.index("lesion-1")
    for text in ("answernormal", "0.953", "0.047", "untrained", "The region is small.", RESEARCH_USE):
        assert text in shown.text


def test_probabilities_are_drawn_as_bars_that_sites_show_which_strip_styles():
    shown = read(prediction(logits=np.array([0, np.log(3)], np.float32))._repr_html_())
    drawings = [base64.b64decode(source.partition(",")[2]).decode() for source in shown.sources]
    widths = [[float(rect.get("width")) for rect in ElementTree.fromstring(drawing)] for drawing in drawings]
    assert widths == [[120, 90], [120, 30]]
    assert read(prediction(task="regression", names=("share",))._repr_html_()).sources == []


def test_of_many_classes_ten_are_shown():
    shown = read(prediction(names=tuple(f"class {n}" for n in range(1000)))._repr_html_())
    assert "class 9" in shown.text
    assert "class 10" not in shown.text
    assert "... and 990 more" in shown.text


def test_a_regression_has_values_and_no_probability():
    shown = read(prediction(task="regression", names=("share",))._repr_html_())
    assert "share2" in shown.text
    assert "probability" not in shown.text
    assert "answer" not in shown.text


def test_names_from_files_are_escaped():
    answer = prediction(slide_name=HOSTILE, names=("<b>", "normal"), model_name="<i>", warnings=("<u>",))
    shown = read(answer._repr_html_())
    assert all(text in shown.text for text in (HOSTILE, "<b>", "<i>", "<u>"))
    assert HOSTILE in read(saliency(np.ones((64, 96)), slide_name=HOSTILE)._repr_html_()).text

    class Hostile(SlideBase):
        reader = "<script>"

        def read(self, region, out=None):
            raise AssertionError

    slide = Hostile(HOSTILE, (Level((10**5, 10**5), (1.0, 1.0)),), (None, "unknown"), "s")
    text = read(slide._repr_html_()).text
    assert HOSTILE in text
    assert "reader<script>" in text
    assert slide._repr_png_() is None  # nothing small to read


def test_a_slide_in_a_notebook_is_its_facts_and_a_thumbnail(slide_file):
    with open_slide(slide_file) as slide:
        shown, picture = read(slide._repr_html_()), Image.open(io.BytesIO(slide._repr_png_()))
        assert len(slide._repr_html_()) < 2**16
    assert picture.size == (256, 171)
    assert len(shown.sources) == 1
    for text in ("slide.svs", "768 x 512 px, 0.384 x 0.256 mm", "0.5 um/px (aperio.MPP)"):
        assert text in shown.text
    assert slide_file.parent.name not in shown.text


def test_a_closed_slide_still_shows_its_facts(slide_file):
    with open_slide(slide_file, mpp=0.25) as slide:
        pass
    shown = read(slide._repr_html_())
    assert (shown.sources, slide._repr_png_()) == ([], None)
    assert "0.25 um/px" in shown.text
    assert "no thumbnail" in shown.text
    assert slide_file.parent.name not in shown.text


def test_an_array_is_shown_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(as_slide(pixels)._repr_png_())))
    assert np.array_equal(picture, pixels)


def test_a_map_is_drawn_by_its_default_recipe():
    values = np.zeros((64, 96))
    values[10:30, 40:60] = 1
    result = saliency(values)
    picture = np.asarray(Image.open(io.BytesIO(result._repr_png_())))
    assert np.array_equal(picture, draw_map(result))
    assert picture.shape == (128, 192, 3)
    assert (picture[40, 100] != 255).any()  # the middle of what is bright
    shown = read(result._repr_html_())
    assert default_preset(result) == "paper"
    assert f"blurred by {PRESETS['paper'].blur_um:g} um" in shown.text
    assert "absolute 96 x 64 px" in shown.text


def test_a_map_lies_over_its_slide_while_that_is_open(slide_file):
    with open_slide(slide_file) as slide:
        result = streamview.saliency(streamview.load_model("demo"), slide, target="lesion")
        assert result.slide is slide
        picture = np.asarray(Image.open(io.BytesIO(result._repr_png_())))
        assert picture.shape == (341, 512, 3)
        assert np.abs(picture - thumbnail(slide, result.prediction.region, (341, 512)).astype(int)).mean() < 20  # mostly tissue
        shown = read(result._repr_html_())
        assert [source[:15] for source in shown.sources] == ["data:image/jpeg", "data:image/svg+"]
        legend = ElementTree.fromstring(base64.b64decode(shown.sources[1].partition(",")[2]))
        assert re.search(r"outline at 0\.151 = [\d.]+ logits$", "".join(legend.itertext()))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(result._repr_png_()))), draw_map(result))  # closed: the map alone
    assert len(read(result._repr_html_()).sources) == 1
    again = pickle.loads(pickle.dumps(result))
    assert again.slide is None
    assert np.array_equal(again.maps["absolute"].values, result.maps["absolute"].values)


def test_a_map_that_shows_nothing_says_why():
    result = saliency(np.zeros((64, 96)))
    assert (draw_map(result) == 255).all()
    assert "zero everywhere" in read(result._repr_html_()).text


def test_a_large_map_becomes_a_small_picture():
    assert max(draw_map(saliency(np.random.default_rng(0).random((3000, 2000)))).shape) <= 512
