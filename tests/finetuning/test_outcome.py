"""A tuned network is handed over with what is known of it: on what it was tuned, and a warning where it is of no use."""

import json
from dataclasses import replace

import pytest
import safetensors
import torch

from streamview.cli import main
from streamview.errors import Cancelled, LabelError, TrainingError
from streamview.finetuning import Settings, finetune
from streamview.finetuning.checkpoint import write_tensors
from streamview.geometry import Region
from streamview.inference.explain import predict
from streamview.labels.regions import Example
from streamview.networks import load_model
from streamview.networks.cards import card_document, parse_card
from tests.support.finetuning import model_of, separable, small_network
from tests.support.interrupted import SETTINGS

HEAD = Settings(train="head", epochs=2, batch=4, learning_rate=0.05, flips=False, jitter=0)


def base(**ours):
    torch.manual_seed(0)
    model = model_of(small_network(dropout=0.1))
    document = card_document(model.card)
    document["streamview"] |= {"use": "Trained on synthetic pictures alone: it knows nothing of real tissue.", **ours}
    return replace(model, card=parse_card(document, name="sample", file="card"), file="base.safetensors", file_sha256="f" * 64)


def divided(wrong=False):
    """Eight regions that train and four that validate, these with the other label where that is wanted."""
    swapped = {"a": "b", "b": "a"} if wrong else {"a": "a", "b": "b"}
    return [
        replace(e, split="validation" if i >= 8 else "train", label=swapped[e.label] if i >= 8 else e.label)
        for i, e in enumerate(separable(12))
    ]


def test_a_network_worse_than_one_answer_for_all_is_handed_over_with_a_warning(tmp_path):
    out = tmp_path / "tuned"
    before = base()
    # a base that is right on what trains, so wrong on all that validates
    trained = finetune(before, separable(12), replace(HEAD, epochs=20, validation=0.0), force=True).model
    result = finetune(replace(before, module=trained.module), divided(wrong=True), HEAD, out=out, force=True)
    assert result.after.accuracy.value < result.after.baseline
    said = "On its 4 validation regions this network is of no use: accuracy "
    assert any(said in warning and "worse than always answering" in warning for warning in result.warnings)
    assert result.model.notes == result.warnings
    card = json.loads((out / "card.json").read_text())["streamview"]
    assert said in card["warning"]
    assert json.loads((out / "finetuning.json").read_text())["warnings"] == list(result.warnings)
    opened = load_model("tests.support.finetuning:tiny", weights=out / "weights.safetensors", card=out / "card.json")
    assert any(said in note for note in opened.notes)
    assert any(said in warning for warning in predict(opened, separable(1)[0].source).warnings)
    # a network tuned from it does not keep what was said of it
    again = finetune(opened, divided(), replace(HEAD, epochs=20), force=True)
    assert again.after.accuracy.value == 1.0
    assert again.warnings == again.model.notes == ()
    assert again.model.card.warning is None


def test_the_card_says_what_it_was_tuned_on(tmp_path):
    result = finetune(base(licence="MIT"), divided(), HEAD, out=tmp_path / "tuned", force=True)
    use = json.loads((tmp_path / "tuned" / "card.json").read_text())["streamview"]["use"]
    assert result.model.card.use == use
    assert "real tissue" not in use
    assert use.startswith("Research use only. Not for diagnosis. Fine-tuned from sample on 8 regions of 8 patients, labelled a, b; ")
    assert result.model.card.licence == "MIT"
    record = json.loads((tmp_path / "tuned" / "finetuning.json").read_text())["base"]
    assert (record["file"], record["file_sha256"]) == ("base.safetensors", "f" * 64)


def test_nothing_validated_is_said():
    result = finetune(base(), separable(12), replace(HEAD, validation=0.0), force=True)
    assert result.warnings == ("It was not validated on any region: the weights are those after epoch 2, and their quality is unknown.",)
    assert "their quality is unknown" in (result.model.card.warning or "")


def test_one_slide_under_two_patients_does_not_train():
    first, *rest = separable(12)
    copied = Example(first.source.copy(), first.label, Region(0, 0, 32, 32), "another", "copy")
    with pytest.raises(LabelError, match=r"\(s0\) and example 13 \(copy\) are of one slide, but of patient 'p0' and patient 'another'"):
        finetune(base(), [first, *rest, copied], HEAD, force=True)
    sides = [replace(e, split="train" if i % 2 else "validation", patient="") for i, e in enumerate([first, *rest])]
    sides.append(replace(copied, patient="", split="train"))
    with pytest.raises(LabelError, match="'s0' is in both splits"):
        finetune(base(), sides, HEAD, force=True)


def old_checkpoint(folder, model):
    """What the version before wrote: the base by its file."""
    steps = []

    def report(step):
        steps.append(step)
        if len(steps) == 60:
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        finetune(model, separable(12), SETTINGS, out=folder, force=True, tile=(32, 32), report=report)
    path = folder / "training.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    said = json.loads(metadata["training"])
    said["making"]["base"] = "f" * 64
    write_tensors(path, tensors, {"format": "1", "training": json.dumps(said)})


def test_a_run_of_an_earlier_version_goes_on_or_says_why_not(tmp_path):
    model = base()
    old_checkpoint(tmp_path / "tuned", model)
    with pytest.raises(TrainingError, match=r"was started by an earlier version with the weights file of sha256 ffffffffffff, not "):
        finetune(replace(model, file_sha256="0" * 64), separable(12), SETTINGS, out=tmp_path / "tuned", force=True, tile=(32, 32))
    told = []
    finetune(model, separable(12), SETTINGS, out=tmp_path / "tuned", force=True, tile=(32, 32), tell=told.append)
    assert any("resuming after" in text for text in told)


def test_the_command_warns(tmp_path, capsys):
    import tifffile

    rows = ["slide_id,label,mpp,split"]
    for i, example in enumerate(divided()):
        tifffile.imwrite(tmp_path / f"s{i}.tif", example.source, photometric="rgb", tile=(64, 64))
        rows.append(f"s{i},{'normal' if i < 8 and i % 2 else 'lesion'},0.5,{example.split}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    how = ["--preset", "head", "--epochs", "1", "--learning-rate", "1e-9", "--force", "--untrained"]
    assert main(["finetune", "-i", str(tmp_path / "labels.csv"), "-m", "demo", "-o", str(tmp_path / "tuned"), *how]) == 0
    complaints = capsys.readouterr().err
    warnings = json.loads((tmp_path / "tuned" / "finetuning.json").read_text())["warnings"]
    assert warnings
    assert all(f"warning: {warning}" in complaints for warning in warnings)
