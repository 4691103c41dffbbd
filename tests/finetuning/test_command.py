"""``streamview finetune`` as a user runs it: what it prints, writes and returns."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from streamview.labels.regions import labels_digest, read_labels
from tests.support.finetuning import picture


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Six tiled TIFFs of 128 px, by turns of either class of the demo network."""
    import tifffile

    folder = tmp_path_factory.mktemp("slides")
    lines = ["slide_id,label,patient_id,x,y,width,height,mpp"]
    for i in range(6):
        tifffile.imwrite(folder / f"s{i}.tif", picture(i, 160, 128), photometric="rgb", tile=(64, 64))
        lines.append(f"s{i},{('normal', 'lesion')[i % 2]},p{i},0,16,128,128,0.5")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def edited(table, tmp_path, old, new):
    """A table with something replaced, elsewhere."""
    path = tmp_path / "labels.csv"
    path.write_text(table.read_text().replace(old, new))
    return path


def test_a_network_is_tuned_opened_and_used(run, table, tmp_path):
    out = tmp_path / "tuned"
    how = ("-i", table, "-m", "demo", "-o", out, "--preset", "head", "--epochs", 2, "--validation", 0.34, "--force")
    status, said, complaints = run("finetune", *how)
    assert status == 0, complaints
    assert "labels, regions (patients): lesion 3 (3), normal 3 (3)" in said
    assert "forecast: 4 regions of 4 patients for training, 2 of 2 for validation; 130 weights are trained; up to 128 x 128 px" in said
    assert "the base: validation loss" in said
    assert "epoch 2 of 2: training loss" in said
    assert "(majority 0.500)" in said
    assert "always answering" in said
    record = json.loads((out / "finetuning.json").read_text())
    assert (record["settings"]["epochs"], record["settings"]["train"], record["finished"]) == (2, "head", True)
    assert record["note"] == "Research use only. Not for diagnosis."
    assert "s0" not in (out / "finetuning.json").read_text() + (out / "card.json").read_text()
    rows = (out / "regions.csv").read_text().splitlines()
    assert rows[0] == (
        "slide_id,patient_id,x,y,width,height,mpp,label,split,base_logit_normal,base_logit_lesion,tuned_logit_normal,tuned_logit_lesion"
    )
    assert [row.split(",")[8] for row in rows[1:]].count("validation") == 2
    with Image.open(out / "curves.png") as curves:
        assert curves.width > 500
    status, said, _ = run("predict", "-i", table.parent / "s0.tif", "-o", tmp_path / "job", "-m", out, "--mpp", 0.5)
    assert (status, "network: tuned on" in said) == (0, True)
    status, said, _ = run("evaluate", "-i", table, "-o", tmp_path / "evaluation", "-m", out)
    assert (status, "6 regions of 6 patients" in said) == (0, True)
    status, _, complaints = run("finetune", *how)
    assert status == 1
    assert "holds a finished fine-tuning; choose another folder, or start over with --restart" in complaints
    # its table can be trained with again, on the same split
    again = read_labels(out / "regions.csv", table.parent)
    assert labels_digest([replace(e, split="") for e in again]) == labels_digest(read_labels(table))
    assert [e.split for e in again].count("train") == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("s3,", "gone,", "slide 'gone' is not in"),
        ("lesion", "normal", "all 6 regions are labelled 'normal'; expected two or more different labels"),
        ("lesion", "tumour", "label 'tumour'; the network's classes are normal, lesion: "),
        ("mpp\n", "split\n", "line 2: split '0.5'; expected train, validation or nothing"),
        ("0,16,128,128", "0,64,128,128", "expected one inside level 0, which is 128 x 160 px"),
        (",0.5\n", ",\n", "micrometres per pixel are unknown"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(run, table, tmp_path, old, new, said):
    path = edited(table, tmp_path, old, new)
    status, _, complaints = run("finetune", "-i", path, "--slides", table.parent, "-m", "demo", "-o", tmp_path / "tuned", "--force")
    assert status == 1
    (line,) = [line for line in complaints.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "tuned").exists()


def test_few_patients_and_wrong_settings_are_refused(run, table, tmp_path):
    status, _, complaints = run("finetune", "-i", table, "-m", "demo", "-o", tmp_path / "tuned")
    assert status == 1
    assert (
        "error: patients: lesion has 3, normal has 3 (without patient_id a slide counts as one); expected 10 or more of each" in complaints
    )
    status, _, complaints = run("finetune", "-i", table, "-m", "demo", "-o", tmp_path / "tuned", "--learning-rate", -1)
    assert status == 1
    assert "error: learning rate -1.0: expected a number above 0, such as 1e-4" in complaints


def test_a_patient_on_both_sides_is_refused(run, table, tmp_path):
    lines = table.read_text().splitlines()
    lines = [lines[0] + ",split", *(f"{line},{('train', 'validation')[i % 2]}" for i, line in enumerate(lines[1:]))]
    (tmp_path / "labels.csv").write_text("\n".join(lines).replace(",p1,", ",p0,"))
    status, _, complaints = run(
        "finetune", "-i", tmp_path / "labels.csv", "--slides", table.parent, "-m", "demo", "-o", tmp_path / "tuned", "--force"
    )
    assert status == 1
    assert "error: patient 'p0' is in both splits, train and validation; put all regions of a patient on one side" in complaints
