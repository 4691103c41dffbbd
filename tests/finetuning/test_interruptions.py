"""Fine-tuning that is stopped, killed or out of disk loses nothing: it goes on to the same weights, and the base never changes."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from streamview.errors import Cancelled, StreamviewError, TrainingError
from streamview.files import atomic
from streamview.finetuning import Settings, finetune
from streamview.networks import load_model
from tests.support.finetuning import model_of, separable, small_network
from tests.support.interrupted import SETTINGS, run


def digest(module: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in module.state_dict().values())).hexdigest()


def stopping_after(count):
    """A report that cancels at a certain call, and the list of calls."""
    calls = []

    def report(step):
        calls.append(step)
        if len(calls) == count:
            raise Cancelled("stopped by the test")

    return report, calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that nothing interrupts, and how often it reported."""
    out = tmp_path_factory.mktemp("whole") / "tuned"
    report, calls = stopping_after(-1)
    run(out, report=report)
    return (out / "weights.safetensors").read_bytes(), len(calls)


@pytest.mark.slow
def test_stopped_again_and_again_it_comes_to_the_same_weights(whole, tmp_path):
    weights, calls = whole
    out, draw, stops = tmp_path / "tuned", random.Random(3), 0
    while True:
        report, seen = stopping_after(draw.randrange(2, calls // 3))
        try:
            result = run(out, report=report)
        except Cancelled:
            stops += 1
            assert seen
            continue
        break
    assert stops >= 3
    assert (out / "weights.safetensors").read_bytes() == weights
    assert sorted(path.name for path in out.iterdir()) == [
        "card.json",
        "curves.png",
        "finetuning.json",
        "regions.csv",
        "weights.safetensors",
    ]
    assert len(result.history.losses) == result.history.per_epoch * SETTINGS.epochs


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 5])
def test_killed_it_comes_to_the_same_weights(whole, kills, tmp_path):
    """By signal 9, at moments drawn anew each time."""
    draw, out = random.Random(), tmp_path / "tuned"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start():
        command = [sys.executable, "-m", "tests.support.interrupted", out]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    for _ in range(kills):
        with start() as process:
            for _ in range(draw.randrange(3, 7)):
                assert process.stdout.readline()
            time.sleep(draw.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        # at any moment the folder is a model
        assert load_model("tests.support.finetuning:tiny_normed", weights=out / "weights.safetensors", card=out / "card.json").card.trained
    with start() as process:
        lines = process.stdout.readlines()
    assert process.returncode == 0
    assert int(lines[0]) >= kills, "it began anew"
    assert (out / "weights.safetensors").read_bytes() == whole[0]


def load_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


def test_stopping_leaves_the_base_as_it_was():
    model = model_of(small_network(norm=True))
    before = digest(model.module), [p.requires_grad for p in model.module.parameters()], model.module.training
    report, _ = stopping_after(40)
    with pytest.raises(Cancelled):
        finetune(model, separable(6), SETTINGS, force=True, tile=(32, 32), report=report)
    assert (digest(model.module), [p.requires_grad for p in model.module.parameters()], model.module.training) == before
    assert all(p.grad is None for p in model.module.parameters())


def test_it_can_be_stopped_within_one_step_of_the_engine():
    """Every step of both passes of every region reports, and the units add up."""
    report, steps = stopping_after(-1)
    settings = replace(SETTINGS, epochs=1, batch=1, flips=False)
    finetune(model_of(small_network()), separable(6, side=128), settings, force=True, tile=(32, 128), report=report)
    # 4 of 6 train: 2 x 4 steps forward and in reverse; 2 validate twice in 4 steps, and in the beginning nothing is done
    assert len(steps) == 1 + 4 * 8 + 2 * 2 * 4
    assert steps[-1].done == steps[-1].total


def test_another_run_is_not_gone_on_with(tmp_path):
    report, _ = stopping_after(150)
    with pytest.raises(Cancelled):
        run(tmp_path / "tuned", report=report)
    model = model_of(small_network(norm=True, dropout=0.3))
    with pytest.raises(TrainingError, match=r"with other inputs: other labels; other slides; seed 0, now 1\. Use the same inputs"):
        finetune(model, separable(14), replace(SETTINGS, seed=1), out=tmp_path / "tuned", force=True, tile=(32, 32))
    finetune(model, separable(14), replace(SETTINGS, epochs=1), out=tmp_path / "tuned", force=True, tile=(32, 32), restart=True)
    with pytest.raises(TrainingError, match="holds a finished fine-tuning"):
        finetune(model, separable(14), replace(SETTINGS, epochs=1), out=tmp_path / "tuned", force=True, tile=(32, 32))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TrainingError, match=r"holds thesis.txt and is not an unfinished fine-tuning"):
        run(tmp_path, restart=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_base_is_never_written_over(tmp_path):
    run(tmp_path / "tuned")
    base = load_model(
        "tests.support.finetuning:tiny_normed", weights=tmp_path / "tuned" / "weights.safetensors", card=tmp_path / "tuned" / "card.json"
    )
    before = (tmp_path / "tuned" / "weights.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="is the base itself, which is never changed; choose another folder"):
        finetune(base, separable(12), SETTINGS, out=tmp_path / "tuned", force=True, tile=(32, 32), restart=True)
    assert (tmp_path / "tuned" / "weights.safetensors").read_bytes() == before


def test_a_path_that_cannot_be_a_folder_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="file: is a file, but a tuned network is a folder"):
        run(tmp_path / "file")
    with pytest.raises(StreamviewError, match=r"tuned: cannot be written \(Not a directory\)"):
        run(tmp_path / "file" / "tuned")


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    tmp_path.joinpath("tuned").mkdir()
    with FileLock(tmp_path / "tuned" / ".lock"), pytest.raises(TrainingError, match="another process is training into it"):
        run(tmp_path / "tuned")


def test_a_full_disk_keeps_the_checkpoint_before_it(whole, tmp_path, monkeypatch):
    out = tmp_path / "tuned"
    renamed = []

    def full(temporary, path):
        renamed.append(path.name)
        if renamed.count("training.safetensors") == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.replace(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "replace", full)
        with pytest.raises(StreamviewError, match="the disk is full"), atomic.disk_errors(out):
            run(out)
    assert not list(out.glob(".*.partial"))
    run(out)
    assert (out / "weights.safetensors").read_bytes() == whole[0]


def test_a_damaged_checkpoint_is_named(tmp_path):
    report, _ = stopping_after(150)
    with pytest.raises(Cancelled):
        run(tmp_path / "tuned", report=report)
    path = tmp_path / "tuned" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"training.safetensors: damaged .*start over with restart=True"):
        run(tmp_path / "tuned")


@pytest.mark.parametrize("part", ["head", "all"])
def test_a_loss_that_is_not_finite_ends_it_and_keeps_the_best(part, tmp_path):
    torch.manual_seed(0)
    module = small_network()
    settings = Settings(train=part, learning_rate=1e38, optimiser="sgd", epochs=9, patience=0, batch=1, flips=False, jitter=0)
    with pytest.raises(TrainingError, match=r"epoch 1: .*(loss|gradient|answer).*a lower learning rate"):
        finetune(model_of(module), separable(6), settings, out=tmp_path / "tuned", force=True, tile=(32, 32))
    kept = load_weights(tmp_path / "tuned")
    assert all(kept[name].equal(tensor) for name, tensor in module.state_dict().items())


def test_a_base_that_answers_nonsense_is_said_and_leaves_nothing(tmp_path):
    module = small_network()
    module[-1].bias.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the base: the answer for s\d is \[nan, nan\]; use other weights"):
        finetune(model_of(module), separable(6), SETTINGS, out=tmp_path / "tuned", force=True, tile=(32, 32))
    assert not (tmp_path / "tuned").exists()


def test_the_folder_opens_as_the_network_that_was_returned(tmp_path, monkeypatch):
    result = run(tmp_path / "tuned")
    weights, card = tmp_path / "tuned" / "weights.safetensors", tmp_path / "tuned" / "card.json"
    opened = load_model("tests.support.finetuning:tiny_normed", weights=weights, card=card)
    assert opened.sha256 == result.model.sha256
    assert (opened.card.name, opened.card.trained, opened.card.class_names) == ("tuned", True, ("a", "b"))
    assert opened.card.input_size == (64, 64)
    assert "fine-tuned (all) on 8 regions of 8 patients, validated on 4 of 4" in (opened.card.split or "")
    assert digest(opened.module) == digest(result.model.module)
    assert result.after.accuracy.value >= 0.5
