"""The report: one page that needs nothing else and lets nothing else in, says what the job says, and takes no text of a file for markup."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from streamview.cli import main
from streamview.errors import Cancelled, StreamviewError
from streamview.export.report import render_results, write_report, write_results
from streamview.export.report.pictures import heat_png, jpeg, outline_path
from streamview.geometry import Region
from streamview.inspection.certificate import Certificate
from streamview.jobs import Job, RegionResult, StoredMap
from streamview.progress import Step
from streamview.results import RESEARCH_USE, Saliency, Target, save_saliency
from streamview.results.display import PRESETS, DisplayChoice
from streamview.slides import open_slide
from tests.support.slides import SyntheticSlide
from tests.test_exports import planted

HOSTILE = "<img src=x onerror=alert(1)>&\"'\x07.svs"
BUDGET = 25 * 2**20 / 20  # bytes of a slide's section
REGION = Region(300, 400, 1024, 1536)
VOID = {"img", "input", "meta"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text of each kind of element, and all of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.text, self._open = "", list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            self.inside.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.inside[tag][-1] += data
        if self._open[-1:] not in (["style"], ["script"]):
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for kind, attributes in self.elements if kind == tag]


def add(job: Job, name: str, source: Path, maps: Saliency, *, stored: bool, patient: str = "") -> None:
    """Add a slide's answer, with its maps if they are to be stored."""
    prediction = replace(maps.prediction, slide_name=name, positive=("lesion",), warnings=("The region is <small>.",))
    maps = replace(maps, prediction=prediction)
    entries: tuple[StoredMap, ...] = ()
    if stored:
        path = job.saliency_path(name, prediction.region)
        save_saliency(maps, path)
        entries = (StoredMap(path.relative_to(job.folder).as_posix(), maps.target),)
    job.add(RegionResult(prediction, "run-1", (0.5, 0.5), 0.75, entries, str(source)), patient_id=patient)


@pytest.fixture(scope="module")
def job(synthetic_slide: SyntheticSlide, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A slide with a hostile name and a map, one with no map, one whose file is gone, one that failed, a damaged record."""
    job = Job(tmp_path_factory.mktemp("report") / "job <1>")
    mask = synthetic_slide.lesion[REGION.y : REGION.y_stop : 8, REGION.x : REGION.x_stop : 8]
    mask[10:40, 20:50] = True
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(mask, slide, REGION, 8)
    add(job, HOSTILE, synthetic_slide.path, maps, stored=True, patient="P<7>")
    weak = replace(maps.prediction, logits=np.array([1, 0], np.float32))
    add(job, "no-map.svs", synthetic_slide.path, replace(maps, prediction=weak), stored=False)
    add(job, "gone.svs", synthetic_slide.path.parent / "gone.svs", maps, stored=True)
    job.fail("broken.svs", "broken.svs: truncated <here>", "run-1")
    (job.folder / "slides" / "damaged.svs.json").write_text("{")
    certificate = Certificate("demo", "ab" * 32, "random", 0, 1e-10, "2.0", "cpu", ())
    (job.folder / "certificates").mkdir()
    (job.folder / "certificates" / "a.json").write_text(json.dumps(certificate.to_dict()))
    (job.folder / "certificates" / "b.json").write_text("{")
    return job


@pytest.fixture(scope="module")
def written(job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    page, sidecar = write_report(job, tmp_path_factory.mktemp("written") / "r.html")
    return page, sidecar


@pytest.fixture(scope="module")
def page(written: tuple[Path, Path]) -> Page:
    return Page(written[0].read_text())


def test_the_page_says_what_the_job_says(page: Page) -> None:
    rows = [row for row in page.inside["tr"] if "svs" in row]
    for row in (
        "<img src=x onerror=alert(1)>&\"'\ufffd.svsP<7>Answeredlesion0.88175.0%1",
        "gone.svsAnsweredlesion0.88175.0%1",
        "no-map.svsAnswerednormal0.26975.0%1",
        "broken.svsFailedbroken.svs: truncated <here>",
        "damaged.svsFaileddamaged record",
    ):
        assert any(found.startswith(row) for found in rows), row
    for text in (
        RESEARCH_USE, "Report of job <1>", "Probability of lesion", "5 slides, 3 with an answer", "The region is <small>.",
        "x 400, y 300, 1536 x 1024 px, 0.768 x 0.512 mm", "Peak at", "mm2", "logits per unit of normalised input", "share of the cap",
        "Weights, SHA-256", "ab" * 32, "cd" * 32, "float32", "4 um/px", "worst relative error inf, tolerance 1e-10; pixels random",
        "its file is no longer where it was", "The slide's pixels are not shown",
    ):  # fmt: skip
        assert text in page.text, text
    drawings = [title for title in page.inside["title"] if "lesion" in title or "Overview" in title]
    assert [title.startswith("Overview of slide") for title in drawings].count(True) == 2
    assert "Tissue of the region under the map: Largest |gradient| (paper) for lesion" in drawings
    assert "The region, without its tissue under the map: Largest |gradient| (paper) for lesion" in drawings  # the slide that is gone
    pictures = [image["alt"] for image in page.of("img")]
    assert "Hotspot 1, without the map" in pictures
    assert "Hotspot 1, with the map" in pictures
    assert all(pictures)


def test_nothing_comes_from_elsewhere_and_nothing_may(written: tuple[Path, Path], page: Page) -> None:
    (policy,) = (meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))

    def name(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    (style,), (script,) = page.inside["style"], page.inside["script"]
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": name(style), "script-src": name(script), "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    text = written[0].read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?:|\b(?:src|href)=\"(?!data:|#)", text.replace('http-equiv="', "")) == []
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", text).replace(script, "")
    sources = [str(image["src"]) for image in page.of("img")] + [str(image["href"]) for image in page.of("image")]
    assert all(source.startswith(("data:image/jpeg;base64,", "data:image/png;base64,")) for source in sources)
    assert not any(key.startswith("on") or key == "style" for _, attributes in page.elements for key in attributes)
    assert len(page.inside["script"]) == 1


def test_links_labels_and_ids_fit_together(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(link["href"]).removeprefix("#") for link in page.of("a")} | {label["for"] for label in page.of("label")}
    targets |= {section["aria-labelledby"] for section in page.of("section") if "aria-labelledby" in section}
    assert targets <= set(ids)
    controls = {control["id"] for kind in ("input", "select") for control in page.of(kind)}
    assert controls == {label["for"] for label in page.of("label")}


def test_the_sidecar_has_the_numbers(written: tuple[Path, Path]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(written[1].read_text(), parse_constant=refuse)
    assert document["note"] == RESEARCH_USE
    slides = {slide["slide_id"]: slide for slide in document["slides"]}
    assert set(slides) == {HOSTILE, "broken.svs", "damaged.svs", "gone.svs", "no-map.svs"}
    assert (slides["broken.svs"]["status"], slides["broken.svs"]["prediction"]) == ("failed", None)
    first = slides[HOSTILE]
    assert first["prediction"]["probabilities"][1] == pytest.approx(0.881, abs=1e-3)
    (shown,) = first["maps"]
    assert shown["region"] == {"y": 300, "x": 400, "height": 1024, "width": 1536}
    masses = [spot["share_of_mass"] for spot in shown["hotspots"]]
    assert masses == sorted(masses, reverse=True)
    for spot in shown["hotspots"]:
        window, peak = spot["pictured"], spot["peak_at"]
        assert window["x"] <= peak["x"] <= window["x"] + window["width"]
        assert window["y"] <= peak["y"] <= window["y"] + window["height"]
    assert slides["no-map.svs"]["maps"] == []


def test_twenty_slides_fit_into_25_megabytes(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    """Many small spots over textured tissue."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((188, 276)), 1.5)
    noise = noise > np.percentile(noise, 75)
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(noise, slide, Region(0, 0, 1501, 2203), 8)
        maps.maps["evidence"] = replace(maps.maps["absolute"], method="evidence")
        (page, _) = write_results([maps], tmp_path / "a.html", slide)
    text = page.read_text()
    assert text.count('class="crops"') == 4
    assert len(text) < BUDGET


def test_pictures_keep_to_their_bytes() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 700, 3), np.uint8)
    assert len(jpeg(noise, 10**9).data) > 50_000 > len(jpeg(noise, 50_000).data)
    heat = heat_png(PRESETS["evidence"], rng.random((512, 700), np.float32), 50_000)
    assert len(heat.data) <= 50_000
    assert heat.shape == (128, 175)
    square = np.array([[0, 0], [0, 4], [4, 4], [4, 0], [0, 0]], float)
    assert outline_path([square, square / 100], 100) == ("M0 0l8 0 0 8 -8 0 0 -8", True)
    assert outline_path([square, square + 1], 30) == ("M0 0l8 0 0 8 -8 0 0 -8", False)


def test_maps_of_several_targets_share_one_picture(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    with open_slide(synthetic_slide.path) as slide:
        lesion = planted(np.eye(64, 96) > 0, slide, Region(0, 0, 512, 768), 8)
        lesion = replace(lesion, prediction=replace(lesion.prediction, positive=("lesion",)), slide=slide)
        normal = replace(lesion, target=Target("normal", 0))
        page = Page(render_results([normal, lesion, replace(lesion.prediction, warnings=())]))
    radios = [control for control in page.of("input") if control.get("type") == "radio"]
    assert [("checked" in radio) for radio in radios] == [True, False]
    legends = [part for part in page.of("div") if "data-number" in part]
    assert [part["class"] for part in legends] == ["legends", "legends off", "spots"]
    assert "under the map: Largest |gradient| (paper) for lesion, Largest" in page.text  # the class of interest first
    assert "Hotspots are of lesion" in page.text
    assert len(page.of("image")) == 4  # overview, tissue and two maps


def test_results_without_a_slide_or_with_another_one(synthetic_slide: SyntheticSlide, tmp_path: Path) -> None:
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(np.ones((64, 96), bool), slide, Region(0, 0, 512, 768), 8)
    alone = Page(render_results([maps]))
    assert (len(alone.of("image")), alone.of("img")) == (1, [])
    other = replace(maps, prediction=replace(maps.prediction, identity=replace(maps.prediction.identity, source="other")))
    with open_slide(synthetic_slide.path) as slide:
        assert "the slide given is another one" in Page(render_results([other], slide)).text
    closed = Page(render_results([replace(maps, slide=slide)]))
    assert "cannot be shown" in closed.text
    with pytest.raises(StreamviewError, match="there are no results to report"):
        render_results([])


def test_a_large_slide_without_small_levels_is_not_read_whole(synthetic_slide: SyntheticSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(np.ones((64, 96), bool), slide, Region(0, 0, 512, 768), 8)
        monkeypatch.setattr("streamview.export.report.drawing._MOST_READ", 1000)
        page = Page(render_results([maps], slide))
    assert "The slide as a whole is not shown: it has no small level" in page.text
    assert "Tissue of the region" in page.text


def test_a_regression_has_values(synthetic_slide: SyntheticSlide) -> None:
    with open_slide(synthetic_slide.path) as slide:
        answer = replace(planted(np.ones((8, 8), bool), slide, Region(0, 0, 64, 64), 8).prediction, task="regression", mpp=None)
    page = Page(render_results([answer]))
    assert "lesion2" in "".join(page.inside["tbody"])
    assert "mpp unknown" in page.text


def test_maps_that_are_damaged_leave_the_answer(job: Job, tmp_path: Path) -> None:
    copy = Job(shutil.copytree(job.folder, tmp_path / "job"))
    for path in (copy.folder / "saliency").glob("gone.svs/*/zarr.json"):
        path.write_text("{")
    page = Page(write_report(copy, slides=["gone.svs"])[0].read_text())
    assert "The maps cannot be shown:" in page.text
    assert "lesion (p = 0.881)" in page.text
    assert page.of("img") == page.of("image") == []


def test_a_report_is_replaced_and_no_other_file(job: Job, tmp_path: Path) -> None:
    path, sidecar = tmp_path / "review.html", tmp_path / "review.json"
    path.write_text("<html>mine</html>")
    with pytest.raises(StreamviewError, match="exists already and is not a report; remove it, or write to another file with -o"):
        write_report(job, path)
    path.unlink()
    sidecar.write_text("{}")
    with pytest.raises(StreamviewError, match=r"review\.json: exists already and is not a report"):
        write_report(job, path)
    assert (list(tmp_path.iterdir()), sidecar.read_text()) == ([sidecar], "{}")
    sidecar.unlink()
    write_report(job, path, slides=["no-map.svs"])
    before = path.read_bytes(), sidecar.read_bytes()

    def cancel(step: Step) -> None:
        if step.done == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        write_report(job, path, report=cancel)
    assert (path.read_bytes(), sidecar.read_bytes()) == before
    assert sorted(tmp_path.iterdir()) == [path, sidecar]
    write_report(job, path, slides=["broken.svs"])
    assert "no-map.svs" not in path.read_text()


def test_the_command_line(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(job.folder)
    assert main(["report", folder, "--slide", "gone.svs", "--display", "paper", "--blur", "0", "--threshold", "0.5"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"written: {folder}/review\.html \(\d+ KB\)\nwritten: {folder}/review\.json \(\d+ KB\)\n", said)
    shown = json.loads((job.folder / "review.json").read_text())["slides"][0]["maps"][0]
    assert (shown["display"]["blur_um"], shown["threshold"]) == (0.0, 0.5)
    (tmp_path / "file").write_text("")
    for arguments, message in [
        ([str(tmp_path / "none")], "is not a job folder"),
        ([folder, "--slide", "b.svs"], "has no slide b.svs, only"),
        ([folder, "--display", "evidence"], "no evidence map here"),
        ([folder, "--threshold", "3"], "a share of the cap, 0 to 1"),
        ([folder, "-o", str(tmp_path)], "is a folder, but a report is a file"),
        ([folder, "-o", str(tmp_path / "a.json")], "expected a name that ends in .html"),
        ([folder, "-o", str(tmp_path / "file" / "a.html")], "is a file, so nothing can be written in it"),
    ]:
        assert main(["report", *arguments]) == 1
        assert message in capsys.readouterr().err
    empty = tmp_path / "empty"
    (empty / "slides").mkdir(parents=True)
    assert main(["report", str(empty)]) == 1
    assert "has no slides to report; predict some with `streamview predict" in capsys.readouterr().err


def browse(page: Path, *options: str) -> tuple[str, str]:
    """Open a page in chromium; return the document as it then is, and what is logged."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--enable-logging=stderr"]
    command = [CHROMIUM, *flags, f"--user-data-dir={page.parent / 'chromium'}", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr


PROBE = """
window.broken = [];
document.addEventListener("securitypolicyviolation", (event) => window.broken.push(event.effectiveDirective));
window.addEventListener("load", () => {
  const names = () => [...document.querySelectorAll("#cohort tbody tr:not([hidden]) th")].map((cell) => cell.textContent.slice(0, 6));
  const column = [...document.querySelectorAll("#cohort thead th")].findIndex((head) => head.textContent.startsWith("Probability"));
  const head = document.querySelectorAll("#cohort thead th")[column];
  const said = [];
  for (let n = 0; n < 2; n += 1) {
    head.firstChild.click();
    said.push([head.getAttribute("aria-sort"), ...names()]);
  }
  const field = document.getElementById("filter-text");
  field.value = "GONE";
  field.dispatchEvent(new Event("input"));
  said.push([document.getElementById("filter-count").textContent, ...names()]);
  const slider = document.querySelector("[data-opacity]");
  slider.value = 80;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  said.push([slider.closest("section").querySelector(".heat").style.opacity, slider.nextElementSibling.value]);
  const shapes = [...document.querySelectorAll(".picture")].map((picture) => {
    const [box, view] = [picture.getBoundingClientRect(), picture.viewBox.baseVal];
    return (box.width / box.height) / (view.width / view.height);
  });
  document.title = JSON.stringify({ said, shapes, broken: window.broken, wide: document.documentElement.scrollWidth - window.innerWidth });
});
"""


@needs_chromium
def test_the_page_works_in_a_browser_and_keeps_to_its_policy(written: tuple[Path, Path], tmp_path: Path) -> None:
    text = written[0].read_text()
    probed = tmp_path / "probed.html"
    name = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed.write_text(text.replace("script-src ", f"script-src 'sha256-{name}' ").replace("<style>", f"<script>{PROBE}</script><style>"))
    document, log = browse(probed, "--window-size=320,800")
    found = re.search(r"<title>(.*?)</title>", document)
    assert found, log
    heard = json.loads(unescape(found[1]))
    assert heard["broken"] == []
    assert heard["wide"] <= 0
    assert heard["shapes"] == [pytest.approx(1, abs=0.02)] * 4
    ascending, descending, filtered, opacity = heard["said"]
    assert ascending == ["ascending", "no-map", *ascending[2:]]
    assert set(ascending[-2:]) == {"broken", "damage"}  # what has no value comes last either way
    assert descending == ["descending", *descending[1:3], "no-map", *ascending[-2:]]
    assert filtered == ["1 of 5 shown", "gone.s"]
    assert opacity == ["0.8", "80%"]


@needs_chromium
def test_a_browser_would_say_if_the_page_broke_its_policy(written: tuple[Path, Path], tmp_path: Path) -> None:
    for file, text, broken in (
        ("good.html", written[0].read_text(), False),
        ("bad.html", written[0].read_text().replace("</style>", " </style>"), True),
    ):
        (tmp_path / file).write_text(text)
        document, log = browse(tmp_path / file)
        assert "of 5 shown" in document
        assert ("Content Security Policy" in log) == broken, log


def test_the_display_of_the_user_is_taken(synthetic_slide: SyntheticSlide) -> None:
    with open_slide(synthetic_slide.path) as slide:
        maps = planted(np.ones((64, 96), bool), slide, Region(0, 0, 512, 768), 8)
        assert "blur 7 um" in render_results([maps], slide, display=DisplayChoice("detail", blur_um=7))
