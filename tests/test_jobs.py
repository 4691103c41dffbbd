"""The job folder: its table, its records, and what happens to them when slides fail."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamview.errors import JobWarning, StreamviewError
from streamview.geometry import Region
from streamview.jobs import Job, RegionResult, Run, StoredMap, new_run_id, region_id
from streamview.results import Target
from streamview.system.versions import versions
from tests.support.jobs import NORMAL, TUMOUR, answer

COLUMNS = (
    "slide_id,patient_id,label,region_id,level,x,y,width,height,mpp,width_um,tissue_covered,prediction,prob_normal,prob_tumour,"
    "logit_normal,logit_tumour,model_id,weights_sha256,run_id,status,error,maps,precision,"
    "aggregation,regions,policy,grid_mpp,mpp_source,padded,identity,source,warnings"
)


def rows(job: Job) -> list[dict[str, str]]:
    job.write_tables()
    with (job.folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_per_region_and_one_per_slide(tmp_path: Path) -> None:
    job = Job(tmp_path / "job")
    job.add(answer(logits=(0.0, 2.0)), patient_id="p1")
    job.add(answer(logits=(4.0, 0.0), x=5000))
    first, second, whole = rows(job)
    assert (job.folder / "predictions.csv").read_text().splitlines()[0] == COLUMNS
    assert [first["region_id"], second["region_id"], whole["region_id"]] == ["x0-y10-w4096-h2048", "x5000-y10-w4096-h2048", "aggregate"]
    assert (first["x"], first["y"], first["width"], first["height"], first["level"]) == ("0", "10", "4096", "2048", "0")
    assert (first["mpp"], first["width_um"], first["tissue_covered"]) == ("0.25", "1024", "0.75")
    assert (first["prediction"], second["prediction"], whole["prediction"]) == ("tumour", "normal", "normal")
    assert float(whole["logit_normal"]) == 2.0
    assert float(whole["prob_normal"]) == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert {row["patient_id"] for row in rows(job)} == {"p1"}
    assert whole["tissue_covered"] == "1"  # 0.75 twice, as regions that count do not overlap
    assert whole["aggregation"] == "mean of logits over 2 regions, unweighted"
    assert whole["regions"] == "x0-y10-w4096-h2048; x5000-y10-w4096-h2048"
    assert {row["status"] for row in rows(job)} == {"ok"}


def test_running_again_replaces_the_row_and_other_networks_stay(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.add(answer(logits=(0.0, 2.0)))
    job.add(answer(logits=(0.0, 2.0), weights="other"))
    job.add(replace(answer(logits=(0.0, 2.0)), run_id="run-2"))
    assert [(row["region_id"], row["weights_sha256"], row["run_id"]) for row in rows(job)] == [
        ("x0-y10-w4096-h2048", "other", "run-1"),
        ("aggregate", "other", "run-1"),
        ("x0-y10-w4096-h2048", "ab", "run-2"),
        ("aggregate", "ab", "run-2"),
    ]


def test_a_failed_slide_stays_as_a_row(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.add(answer("b.svs"))
    job.fail("a.svs", "unreadable tile\n at 3, 4", "run-2", patient_id="p2")
    failed, *good = rows(job)
    assert (failed["slide_id"], failed["patient_id"], failed["status"], failed["error"]) == (
        "a.svs",
        "p2",
        "failed",
        "unreadable tile at 3, 4",
    )
    assert failed["prediction"] == failed["prob_tumour"] == ""
    assert [row["slide_id"] for row in good] == ["b.svs", "b.svs"]
    assert "unreadable tile at 3, 4" in (tmp_path / "summary.md").read_text()
    job.add(answer("a.svs"))
    assert {row["status"] for row in rows(job)} == {"ok"}


def test_records_survive_the_disk(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.add(answer())
    (record,) = Job(tmp_path).slides()
    assert record.slide_id == "a.svs"
    assert record.regions[0].prediction.to_dict() == answer().prediction.to_dict()
    assert record.regions[0].mpp == (0.25, 0.25)
    assert record.regions[0].maps == answer().maps
    assert job.saliency_path("a.svs", Region(1, 2, 3, 4)) == tmp_path / "saliency" / "a.svs" / "x2-y1-w4-h3.ome.zarr"


def test_the_record_of_an_earlier_version_opens(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.add(answer())
    job.add(answer("b.svs"))
    for name, saliency in (("a.svs", "saliency/a.svs/r.ome.zarr"), ("b.svs", None)):
        path = tmp_path / "slides" / f"{name}.json"
        record = json.loads(path.read_text())
        del record["regions"][0]["maps"]
        record["regions"][0] |= {"saliency": saliency, "picture": saliency and "r.png"}
        path.write_text(json.dumps(record))
    first, second = Job(tmp_path).slides()
    assert first.regions[0].maps == (StoredMap("saliency/a.svs/r.ome.zarr", None, "r.png"),)
    assert second.regions[0].maps == ()
    job.add(answer("c.svs"))
    assert rows(job)[0]["maps"] == "saliency/a.svs/r.ome.zarr"


def test_every_map_is_named_and_those_of_other_targets_stay(tmp_path: Path) -> None:
    job, difference = Job(tmp_path), Target("tumour-normal", 1, 0)
    paths = {target: job.saliency_path("a.svs", Region(1, 2, 3, 4), target) for target in (None, NORMAL, TUMOUR, difference)}
    assert [path.name for path in paths.values()] == [
        "x2-y1-w4-h3.ome.zarr",
        "x2-y1-w4-h3-0-normal.ome.zarr",
        "x2-y1-w4-h3-1-tumour.ome.zarr",
        "x2-y1-w4-h3-1v0-tumour-normal.ome.zarr",
    ]

    def stored(*targets: Target | None, names: Target | None = None) -> RegionResult:
        for target in targets:
            paths[target].mkdir(parents=True, exist_ok=True)
        return replace(answer(), maps=tuple(StoredMap(paths[t].relative_to(tmp_path).as_posix(), t or names) for t in targets))

    job.add(stored(NORMAL, difference))
    assert rows(job)[0]["maps"] == "normal; tumour-normal"
    summary = (tmp_path / "summary.md").read_text()
    assert "- a.svs x0-y10-w4096-h2048: normal (p = 0.269), saliency/a.svs/x2-y1-w4-h3-0-normal.ome.zarr" in summary
    assert "tumour-normal (score = 1), saliency/" in summary
    job.add(stored(None, names=TUMOUR))
    assert rows(job)[0]["maps"] == "tumour; normal; tumour-normal"
    job.add(stored(None, names=NORMAL))  # in the place of the map of the tumour; and the newer one of normal counts
    assert job.slides()[0].regions[0].maps[0].path.endswith("h3.ome.zarr")
    assert rows(job)[0]["maps"] == "normal; tumour-normal"
    job.add(replace(answer(), maps=()))  # a prediction alone
    assert rows(job)[0]["maps"] == "normal; tumour-normal"
    paths[difference].rmdir()
    job.add(replace(answer(), maps=()))
    assert rows(job)[0]["maps"] == "normal"


def test_files_of_targets_do_not_collide(tmp_path: Path) -> None:
    job = Job(tmp_path)
    names = ["a/b", "a:b", "A/B", "../..", "", "ö" * 300, "x" * 300, "x" * 301, "a b"]
    targets = [Target(name, index) for index, name in enumerate(names)] + [Target("x-y", 1, 0), Target("x-y", 10, None)]
    paths = [job.saliency_path("a.svs", Region(0, 0, 8, 8), target) for target in targets]
    assert {path.parent for path in paths} == {tmp_path / "saliency" / "a.svs"}
    assert len({path.name.lower() for path in paths}) == len(targets)
    assert all(path.name.isascii() and len(path.name) < 100 for path in paths)
    pictures = {job.picture_path("a.svs", Region(0, 0, 8, 8), "paper", target) for target in [None, *targets]}
    assert len(pictures) == len(targets) + 1


def test_the_summary_says_untrained_and_research_use(tmp_path: Path) -> None:
    job = Job(tmp_path)
    result = answer()
    job.add(replace(result, prediction=replace(result.prediction, trained=False, warnings=("made at another mpp",))))
    job.write_tables()
    summary = (tmp_path / "summary.md").read_text()
    assert "Research use only" in summary
    assert "demo (untrained, random weights) | tumour (p = 0.731) | answer for the one region | 1 | 75.0%" in summary
    assert "- a.svs: made at another mpp" in summary


def test_the_run_record_names_versions_and_device(tmp_path: Path) -> None:
    run = Run(new_run_id(), ("streamview", "predict"), "cpu, 2 threads", "2026-11-21T09:00:00Z")
    job = Job(tmp_path)
    job.record_run(run)
    path = job.record_run(replace(run, seconds=3.5, answered=3, failed=("a.svs",)))
    kept = json.loads(path.read_text())
    assert kept["versions"] == versions()
    assert {"python", "torch", "numpy", "streamview"} <= set(kept["versions"])
    assert (kept["device"], kept["answered"], kept["seconds"], kept["failed"]) == ("cpu, 2 threads", 3, 3.5, ["a.svs"])
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == [f"{run.run_id}.json"]


DAMAGE = ["{", "", "[]", "null", '{"slide_id": "a.svs"}', '{"slide_id": 3, "regions": 4}', "\udcff\udcfe"]


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_record_is_named_and_blocks_nothing_else(tmp_path: Path, content: str) -> None:
    job, damaged = Job(tmp_path), tmp_path / "slides" / "a.svs.json"
    job.add(answer())
    job.add(answer("b.svs"))
    damaged.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.warns(JobWarning, match=r"a\.svs\.json: damaged record .* run this slide again"):
        assert [record.slide_id for record in job.slides()] == ["b.svs"]
    job.add(answer("c.svs"))
    assert [(row["slide_id"], row["status"]) for row in rows(job) if row["status"] != "ok"] == [("a.svs", "failed")]
    assert "a.svs: damaged record" in (tmp_path / "summary.md").read_text()
    job.add(answer())  # run again: the damaged one is kept beside
    assert {row["status"] for row in rows(job)} == {"ok"}
    assert damaged.with_name("a.svs.json.damaged").read_bytes() == content.encode(errors="surrogateescape")


def test_what_file_managers_leave_is_no_record(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.add(answer())
    (tmp_path / "slides" / "._a.svs.json").write_bytes(b"\0\5\x16\7")
    (tmp_path / "slides" / ".b.svs.json.1234.partial").write_text("{")
    assert [record.slide_id for record in job.slides()] == ["a.svs"]
    job.add(answer("b.svs"))
    assert {row["status"] for row in rows(job)} == {"ok"}


def test_a_file_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("")
    with pytest.raises(StreamviewError, match="choose another output"):
        Job(tmp_path / "job")


def test_region_ids_are_unique_names() -> None:
    assert region_id(Region(1, 2, 3, 4)) == "x2-y1-w4-h3"


def named(folder: Path, *, pixels: str, x: int = 0, logits: tuple[float, float] = (0.0, 1.0)) -> RegionResult:
    """An answer for a slide `a.svs` in some folder, with these pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    result = answer(x=x, logits=logits)
    identity = replace(result.prediction.identity, source=pixels)
    return replace(result, prediction=replace(result.prediction, identity=identity), source=str(folder / "a.svs"), maps=())


def test_two_slides_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    job = Job(tmp_path / "job")
    first, second = named(tmp_path / "one", pixels="p1"), named(tmp_path / "two", pixels="p2", x=5000, logits=(3.0, 0.0))
    ids = [job.add(first), job.add(second)]
    assert ids[0] == "a.svs"
    assert ids[1].startswith("a.svs~")
    assert [job.add(replace(result, run_id="again")) for result in (first, second)] == ids
    assert [(row["slide_id"], row["region_id"], row["prediction"]) for row in rows(job)] == [
        ("a.svs", "x0-y10-w4096-h2048", "tumour"),
        ("a.svs", "aggregate", "tumour"),
        (ids[1], "x5000-y10-w4096-h2048", "normal"),
        (ids[1], "aggregate", "normal"),
    ]
    assert job.saliency_path(ids[0], Region(0, 0, 8, 8)) != job.saliency_path(ids[1], Region(0, 0, 8, 8))
    # the same pixels elsewhere, as after moving the slide, and the same path by a link, are the same slide
    assert job.add(named(tmp_path / "three", pixels="p1")) == "a.svs"
    (tmp_path / "four").symlink_to(tmp_path / "two")
    assert job.slide_id("a.svs", str(tmp_path / "four" / "a.svs"), None) == ids[1]
    assert job.slide_id("a.svs", "https://host/a.svs", "p3") == job.slide_id("a.svs", "https://host/a.svs") != "a.svs"


def test_a_slide_that_is_replaced_makes_earlier_answers_superseded(tmp_path: Path) -> None:
    job, place = Job(tmp_path / "job"), tmp_path / "slides"
    job.add(named(place, pixels="old", logits=(5.0, 0.0)))
    assert job.maps_id("a.svs", "new") == "a.svs"
    folder = job.saliency_path("a.svs", Region(1, 2, 3, 4))
    folder.mkdir(parents=True)
    stored = StoredMap(folder.relative_to(job.folder).as_posix(), TUMOUR)
    job.add(replace(named(place, pixels="old", logits=(5.0, 0.0)), maps=(stored,)))
    assert job.maps_id("a.svs", "old") == "a.svs"
    assert job.maps_id("a.svs", "new") == "a.svs~new"  # the old maps are not overwritten
    assert job.add(named(place, pixels="new", x=5000)) == "a.svs"
    assert [(row["region_id"], row["status"], row["prediction"]) for row in rows(job)] == [
        ("x5000-y10-w4096-h2048", "ok", "tumour"),
        ("aggregate", "ok", "tumour"),
        ("x0-y10-w4096-h2048", "superseded", "normal"),
    ]
    assert "the slide was replaced by another" in rows(job)[-1]["error"]
    assert "## Superseded" in (job.folder / "summary.md").read_text()
    job.add(named(place, pixels="old", logits=(5.0, 0.0)))  # put back
    assert [row["status"] for row in rows(job)] == ["ok", "ok", "superseded"]
    assert rows(job)[0]["region_id"] == "x0-y10-w4096-h2048"


def test_an_answer_of_an_earlier_version_gives_way(tmp_path: Path) -> None:
    job, old = Job(tmp_path), answer()
    job.add(old)
    new = replace(old.prediction.identity, slide_mpp=(0.25, 0.25), slide_mpp_source="file", pixel_source="tiff", sampling=1)
    job.add(replace(old, prediction=replace(old.prediction, identity=new), maps=()))
    assert [row["status"] for row in rows(job)] == ["ok", "ok", "superseded"]
    assert rows(job)[-1]["error"] == "recomputed by a later version"
    other = replace(new, slide_mpp=(0.5, 0.5), slide_mpp_source="given")  # of the same grid mpp, as by --mpp
    job.add(replace(old, prediction=replace(old.prediction, identity=other), mpp=(0.5, 0.5), maps=()))
    assert [row["maps"] for row in rows(job) if row["mpp_source"] == "given"] == ["", ""]
    assert [row["region_id"] for row in rows(job)].count("aggregate") == 2


def test_a_region_or_a_slide_is_taken_out_with_its_maps(tmp_path: Path) -> None:
    job = Job(tmp_path)
    for x in (0, 5000):
        region = Region(10, x, 2048, 4096)
        path, picture = job.saliency_path("a.svs", region), job.picture_path("a.svs", region, "detail")
        path.mkdir(parents=True)
        picture.write_bytes(b"png")
        names = [entry.relative_to(tmp_path).as_posix() for entry in (path, picture)]
        job.add(replace(answer(x=x), maps=(StoredMap(names[0], TUMOUR, names[1]),)))
    job.add(answer("b.svs"))
    assert job.remove("a.svs", Region(10, 0, 2048, 4096)) == ["a.svs 0,10,4096,2048"]
    assert [entry.name for entry in sorted((tmp_path / "saliency/a.svs").iterdir())] == [picture.name, path.name]
    assert [row["region_id"] for row in rows(job) if row["slide_id"] == "a.svs"] == ["x5000-y10-w4096-h2048", "aggregate"]
    with pytest.raises(StreamviewError, match="has no region 1,2,3,4, only 5000,10,4096,2048"):
        job.remove("a.svs", Region(2, 1, 4, 3))
    with pytest.raises(StreamviewError, match=r"has no slide c\.svs, only a\.svs, b\.svs"):
        job.remove("c.svs")
    job.remove("a.svs")
    assert not (tmp_path / "saliency/a.svs").exists()
    assert {row["slide_id"] for row in rows(job)} == {"b.svs"}
    job.fail("gone.svs", "unreadable", "run")
    assert job.remove("gone.svs") == ["gone.svs"]
    (tmp_path / "slides/bad.svs.json").write_text("{")
    assert job.remove("bad.svs") == ["bad.svs"]
    assert [record.slide_id for record in job.slides()] == ["b.svs"]


def test_taking_out_never_reaches_outside_the_job(tmp_path: Path) -> None:
    job, outside = Job(tmp_path / "job"), tmp_path / "mine"
    outside.mkdir()
    job.add(
        replace(answer(), maps=(StoredMap("../mine", TUMOUR, "saliency/../../mine"), StoredMap(str(outside), NORMAL, "predictions.csv")))
    )
    job.remove("a.svs", Region(10, 0, 2048, 4096))
    assert outside.is_dir()
    assert (job.folder / "predictions.csv").is_file()


WRITER = """
import sys
sys.path[:0] = sys.argv[3].split(":")
from tests.support.jobs import answer
from streamview.jobs import Job
job = Job(sys.argv[1])
input()
for number in range(12):
    job.add(answer(x=5000 * (2 * number + int(sys.argv[2]))))
"""


def test_two_processes_on_one_slide_lose_nothing(tmp_path: Path) -> None:
    job, path = Job(tmp_path / "job"), ":".join(sys.path)
    command = [sys.executable, "-c", WRITER, str(job.folder)]
    processes = [subprocess.Popen([*command, str(number), path], stdin=subprocess.PIPE, text=True) for number in (0, 1)]
    for process in processes:  # started together
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    (record,) = job.slides()
    assert len(record.regions) == 24
    assert [row["status"] for row in rows(job)] == ["ok"] * 25
    assert "; ".join(sorted(row["region_id"] for row in rows(job)[:-1])) == "; ".join(sorted(rows(job)[-1]["regions"].split("; ")))


@pytest.mark.parametrize(
    "name", ["latin\udce9.tif", "ü" * 125 + ".svs", "x" * 250 + ".svs", "a\nb\t.svs", "a\\b.svs", 'a|b, "c".svs', "..."]
)
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    job = Job(tmp_path)
    assert job.add(replace(answer(name), source=f"/slides/{name}", maps=())) == name
    job.fail(name, "unreadable", "run", source=f"/slides/{name}")
    job.record_run(Run("r", ("predict", "-i", name), "cpu", {name: 1}, "now"))
    (record,) = job.slides()
    assert (record.slide_id, record.source) == (name, f"/slides/{name}")
    (row, *_) = rows(job)
    assert row["slide_id"] == name.encode(errors="backslashreplace").decode()
    paths = [job.saliency_path(name, Region(0, 0, 8, 8)).parent, job.certificate_path(f"{name}-x0-y0-w8-h8", "ab" * 32)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.name.encode()  # UTF-8
    assert len(summary_lines(tmp_path)) == 1


def summary_lines(job: Path) -> list[str]:
    """Rows of the summary's table."""
    return [line for line in (job / "summary.md").read_text().splitlines() if line.startswith("| ") and "| slide |" not in line]


CLASSES = ("all", "error", 'a,"b"', "line\nend", "prob_all", "=1+1", "a|b")


def test_classes_of_any_name(tmp_path: Path) -> None:
    job, result = Job(tmp_path), answer()
    logits = np.arange(len(CLASSES), dtype=np.float32)[::-1].copy()
    job.add(replace(result, prediction=replace(result.prediction, class_names=CLASSES, logits=logits), aggregation=None))
    region, whole = rows(job)
    for row in (region, whole):
        assert [float(row[f"logit_{name}"]) for name in CLASSES] == logits.tolist()
        assert row["prediction"] == "all"
        assert (row["status"], row["error"]) == ("ok", "")
    assert len(summary_lines(tmp_path)) == 1
