"""The benchmark's arithmetic, its tables and its picture, and one case of it run for real."""

from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.contestants import NETWORKS, build_network, documented, tilings, units
from benchmarks.peers import CONTESTANTS, LARGE, cases, compare, contestants, extrapolate, measure, parse, predict, read
from benchmarks.report import SECTIONS, draw, markdown, page, series, share, table
from benchmarks.worker import Case, as_row

CASE = Case("resnet18", 2048, "saliency")
RESULTS = Path(__file__).parents[1] / "benchmarks/results.jsonl"
PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"


def rows(case=CASE):
    figures = {
        "conventional": {"seconds": 10.0, "peak": 4 * 2**30, "flops": 100, "growth": 3 * 2**30},
        "conventional NCHW": {"seconds": 12.0, "peak": 4 * 2**30, "flops": 100, "error": 0.1, "wrong": 0.02},
        "lightstream 7/1280": {"seconds": 20.0, "peak": 2**31, "flops": 300, "error": 0.3, "wrong": 0.04},
        "lightstream 7/1008": {"seconds": 30.0, "peak": 2**30, "flops": 400},
        "streamview recomputed": {"seconds": 9.0, "peak": 2**29, "flops": 150, "error": 1e-6, "wrong": 0.0},
        "streamview kept": {"seconds": 8.0, "peak": 2**30, "flops": 100, "error": 1e-6, "wrong": 0.0},
        "streamview equal": {"seconds": 8.0, "peak": 2**31, "flops": 100, "error": 1e-6, "wrong": 0.0, "than": "lightstream 7/1280"},
        "checkpoint": {"note": "does not fit", "needs": 40 * 2**30},
    }
    return [{**as_row(name, case), **found} for name, found in figures.items()]


def test_the_short_set_and_the_full_one():
    assert (parse([]).networks, parse([]).sizes) == (["camelyon17-2048", "resnet18"], [2048])
    full = parse(["--full"])
    assert (full.networks, full.sizes, full.tilings) == (list(NETWORKS), [512, 1024, 2048, 4096, *LARGE], 3)
    found = cases(["resnet18"], [1024, 4096, 8192], ["forward", "saliency"], ["float32", "float64"], "cpu")
    assert found == [
        Case("resnet18", 1024, "forward"),
        Case("resnet18", 1024, "saliency"),
        Case("resnet18", 1024, "saliency", "float64"),
        Case("resnet18", 4096, "forward"),
        Case("resnet18", 4096, "saliency"),
        Case("resnet18", 8192, "saliency"),
    ]


def test_tilings_cover_the_image_with_the_fewest_pixels():
    assert tilings("resnet18", 2048) == [(7, 1280), (7, 1008), (7, 880)]
    assert tilings("camelyon17-2048", 2048)[0] == (4, 1104)
    assert tilings("convnext_tiny", 2048) == []
    assert documented("resnet18", 2048) == []
    assert documented("resnet18", 4096) == [(9, 2880)]


def test_who_runs():
    alone = ["streamview recomputed", "streamview kept"]
    both = ["conventional", "conventional NCHW"]
    assert contestants(CASE, CONTESTANTS, 1) == [*both, "checkpoint", "offload", "lightstream 7/1280", *alone]
    assert contestants(Case("resnet18", 2048, "forward"), CONTESTANTS, 1) == [*both, "checkpoint", "lightstream 7/1280", *alone]
    assert contestants(Case("unet", 2048, "training"), CONTESTANTS, 3) == [*both, "offload", *alone]
    assert contestants(Case("resnet18", 8192, "saliency"), CONTESTANTS, 3) == alone
    assert contestants(Case("resnet18", 1024, "saliency", "float64"), CONTESTANTS, 1) == [
        "conventional",
        "lightstream 7/768",
        "streamview recomputed",
    ]
    assert contestants(Case("resnet18", 4096, "forward"), ["lightstream"], 3) == [
        "lightstream 7/2304",
        "lightstream 7/1696",
        "lightstream 7/1392",
        "lightstream 9/2880",
    ]


@pytest.mark.parametrize("name", ["camelyon17-2048", "resnet18", "resnet50", "convnext_tiny", "efficientnet_b0"])
def test_the_units_are_the_network(name):
    torch.manual_seed(0)
    network = build_network(name)
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        expected = network(image)
        assert torch.equal(torch.nn.Sequential(*units(network))(image), expected)
    parts = [weight for part in units(network) for weight in part.parameters()]
    assert [*map(id, parts)] == [*map(id, network.parameters())]


def test_errors_are_relative_to_each_tensor_and_counted_by_pixel():
    expected = {"logits": torch.tensor([[4.0, 1.0]]), "image": torch.ones(1, 3, 2, 2)}
    found = {"logits": torch.tensor([[4.0, 1.0]]), "image": expected["image"].clone()}
    assert compare(found, expected) == (0, 0)
    found["image"][0, 1, 0, 0] = found["image"][0, 2, 0, 0] = 1.5
    assert compare(found, expected) == (0.5, 0.25)


def test_what_does_not_fit_is_known_from_a_smaller_image():
    assert predict("conventional", Case("resnet18", 4096, "saliency"), rows()) == 13 * 2**30
    assert predict("streamview kept", Case("resnet18", 4096, "saliency"), rows()) == 0
    known = [{**as_row("streamview recomputed", CASE), "peak": 5, "growth": 4}]
    assert predict("streamview recomputed", Case("resnet18", 4096, "saliency"), known) == 17
    assert predict("conventional", Case("resnet18", 1024, "saliency"), []) == 0


def test_what_takes_too_long_is_extrapolated_by_the_area():
    known = [{**as_row("conventional", CASE), "seconds": 10.0, "wall": 6.0, "peak": 5, "growth": 4, "flops": 3}]
    found = extrapolate("conventional", Case("resnet18", 4096, "saliency"), known)
    assert found == {"seconds": 40.0, "wall": 24.0, "peak": 17, "flops": 12, "extrapolated": 2048}
    assert extrapolate("checkpoint", Case("resnet18", 4096, "saliency"), known) is None
    assert extrapolate("conventional", Case("resnet34", 4096, "saliency"), known) is None
    lines = table([{**as_row("conventional", Case("resnet18", 4096, "saliency")), **found, "peak": 2**30}]).splitlines()
    assert "| ~40.0 " in lines[-1]
    assert "| ~1.00 " in lines[-1]


def test_conventional_is_the_faster_layout():
    swapped = [{**row, "seconds": 5.0} if row["contestant"] == "conventional NCHW" else row for row in rows()]
    ratios = SECTIONS["against conventional"](swapped).splitlines()[2]
    assert "1.80, 1.60" in ratios
    assert series(swapped, "conventional", "seconds") == [(2048, 5.0)]


def test_tables():
    lines = table(rows()).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0] == ["`resnet18`", "2048", "saliency", "conventional, channels last", "10.0", "1.00", "1.000", "4.00", "", ""]
    assert cells[2][3:] == ["lightstream, tile 1280 (7 units)", "20.0", "2.00", "3.000", "2.00", "3e-01", "4 %"]
    assert cells[-1][4:] == ["does not fit: needs 40 GB", "", "", "", "", ""]
    against = SECTIONS["against lightstream"](rows()).splitlines()
    assert [cell.strip() for cell in against[2].split("|")[4:-1]] == ["1280", "2.00, 2.00 GB", "20.0, 8.0 s", "**2.5**", "4 %, 0, 2 %"]
    ratios = SECTIONS["against conventional"](rows()).splitlines()[2]
    assert [cell.strip() for cell in ratios.split("|")[1:-1]] == ["`resnet18`", "2048", "", "0.90, 0.80", "", "", "1.500, 1.000", ""]
    exact = SECTIONS["exactness"](rows(Case("resnet18", 1024, "saliency", "float64"))).splitlines()
    assert len(exact) == 2 + 5


def test_parts_of_the_tables():
    assert [share(wrong) for wrong in (None, 0.0, 0.0453, 0.00002)] == ["", "0", "4.5 %", "0.002 %"]
    assert markdown(["a", "b"], [["long", "c"]]) == "| a    | b |\n| ---- | - |\n| long | c |"
    assert series(rows(), "lightstream", "seconds") == [(2048, 20.0)]


def test_a_page_without_its_places_is_refused():
    with pytest.raises(ValueError, match="0 places for the table 'against lightstream'"):
        page("nothing", on("a machine"))


def on(machine, case=CASE):
    """The rows of a case as a machine of this name measured them."""
    return [{**row, "machine": machine} for row in rows(case)]


def test_other_machines_have_tables_of_their_own():
    alone, both = (
        page(PAGE.read_text(), results) for results in (on("one"), [*on("one"), *on("another", Case("resnet34", 1024, "training"))])
    )
    assert "Measured on one." in both
    assert both.split("<!-- other machines -->")[0] == alone.split("<!-- other machines -->")[0]
    added = both.split("<!-- other machines -->")[1].split("<!-- end -->")[0]
    assert "Measured on another." in added
    assert added.count("`resnet34`") == 2  # against conventional autograd, and against lightstream
    assert "resnet18" not in added


def test_what_another_machine_measured_is_measured_again_here(monkeypatch):
    calls = []
    monkeypatch.setattr(peers, "measure", lambda case, names, equal, repeat, known, longest: calls.append((case, known)) or rows(case)[:1])
    options = parse(["--networks", "resnet18", "--sizes", "1024", "2048", "--passes", "saliency", "--contestants", "conventional"])
    here = peers.describe_machine("cpu")
    measured_here = [row for new in peers.run(options, [*on("another"), *on(here, Case("resnet18", 1024, "saliency"))]) for row in new]
    assert [case for case, _ in calls] == [CASE]
    assert {(row["size"], row["machine"]) for row in calls[0][1]} >= {(1024, here)}
    assert all(row["machine"] == here for row in [*calls[0][1], *measured_here])


def test_the_page_shows_the_results_it_comes_with():
    text = PAGE.read_text()
    assert "Measured on" in text
    assert page(text, read(RESULTS)) == text


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    small, large = (rows(Case("camelyon17-2048", size, "training")) for size in (1024, 2048))
    draw([*small, *large], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_case_is_measured():
    small = Case("convnext_tiny", 128, "saliency")  # no 3 x 3 kernels, whose operations depend on the processor
    found = {row["contestant"]: row for row in measure(small, ["conventional", "streamview recomputed"], equal=False, repeat=2, known=[])}
    whole, streamed = found["conventional"], found["streamview recomputed"]
    assert 0 < whole["seconds"] < 60
    assert whole["peak"] > whole["growth"] > 0
    assert streamed["flops"] == pytest.approx(1.5 * whole["flops"], rel=0.01)  # nothing kept: forward once more
    assert streamed["error"] < 0.1
    assert streamed["against"] == "conventional"
