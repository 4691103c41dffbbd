"""What the panel asks of fine-tuning and says of it, without a window."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from streamview_napari.requests.comparison import compare, describe_result, measured
from streamview_napari.requests.controls import Count, Folder
from streamview_napari.requests.finetuning import (
    PARTS,
    TITLES,
    FinetuningRequest,
    TuningControls,
    command,
    describe_end,
    describe_forecast,
    describe_heads,
    describe_training,
    find_obstacle,
    forecast_finetuning,
    is_begun,
    is_unfinished,
    needs_new_head,
    propose_folder,
    values_of,
)
from streamview_napari.tasks import yield_to_window

from streamview.cli.finetune import _settings
from streamview.cli.parser import build_parser
from streamview.errors import LabelError, TrainingError
from streamview.evaluation import measure
from streamview.finetuning import PRESETS, Compared, Epoch, History, Settings
from streamview.geometry import Region
from streamview.labels.regions import Example
from streamview.networks import load_card
from streamview.networks.cards import ModelCard
from streamview.progress import Step
from streamview.slides.synthetic import write_synthetic_slide

DEMO = load_card("demo")
LABELS = tuple(Example(f"/slides/{n}.svs", "lesion" if n % 2 else "normal", Region(0, 0, 64, 64)) for n in range(24))


def request(**changes: Any) -> FinetuningRequest:
    loaded: Any = SimpleNamespace(spec="demo", model=SimpleNamespace(card=DEMO))
    return replace(FinetuningRequest(loaded, LABELS, PRESETS["careful"], Path("/out/my tuned")), **changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_controls_say_what_the_preset_says(preset: Any) -> None:
    controls = TuningControls(preset=preset, folder=Folder(Path("/out")), **values_of(preset))
    assert controls.settings() == PRESETS[preset]
    assert set(TITLES) == set(PRESETS)
    assert controls.train in PARTS
    assert replace(controls, epochs=Count(3)).settings() == replace(PRESETS[preset], epochs=3)


def test_controls_outside_their_range_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"validation 0\.8: expected"):
        TuningControls(preset="head", folder=Folder(Path("/out")), **values_of("head") | {"validation": 0.8})


HOW = st.builds(
    Settings, train=st.sampled_from(list(PARTS)), learning_rate=st.floats(1e-6, 1.0), weight_decay=st.floats(0, 0.1),
    batch=st.integers(1, 64), epochs=st.integers(1, 200), patience=st.integers(0, 20), validation=st.floats(0, 0.5),
    optimiser=st.sampled_from(["adam", "sgd"]), class_weights=st.booleans(), jitter=st.floats(0, 0.5),
)  # fmt: skip


@examples(deadline=None, max_examples=40)
@given(HOW, st.sampled_from(list(PRESETS)), st.booleans(), st.booleans(), st.sampled_from([None, "2GB"]))
def test_the_command_line_does_what_the_panel_does(how: Settings, preset: str, force: bool, restart: bool, memory: str | None) -> None:
    how = replace(how, flips=PRESETS[preset].flips)  # the command line can switch it off, not on
    words = shlex.split(command(request(settings=how, force=force, restart=restart, memory=memory), Path("/my labels.csv"), preset))
    assert words[0] == "streamview"
    options = build_parser().parse_args(words[1:])
    assert _settings(options) == how
    assert (options.labels, options.model, options.output) == ("/my labels.csv", "demo", "/out/my tuned")
    assert (options.force, options.restart, options.memory, options.new_head, options.untrained) == (force, restart, memory, False, False)


def test_networks_of_files_and_random_ones_on_the_command_line() -> None:
    card = replace(DEMO, trained=False)
    loaded: Any = SimpleNamespace(spec="/nets/mine/card.json", model=SimpleNamespace(card=card))
    said = command(request(loaded=loaded, new_head=True, device="cpu"), Path("l.csv"), "careful")
    assert "-m /nets/mine -o" in said
    assert said.endswith("--device cpu --new-head --untrained")


def test_new_heads_and_obstacles() -> None:
    assert not needs_new_head(LABELS, DEMO)
    assert not needs_new_head((), DEMO)
    odd = (*LABELS, Example("/slides/a.svs", "odd"))
    assert needs_new_head(odd, DEMO)
    assert describe_heads(odd, DEMO).startswith("New head for lesion, normal, odd: the network's own")
    both = (Example("/a.svs", "lesion;normal"), Example("/b.svs", ""))
    assert not needs_new_head(both, replace(DEMO, task="multilabel"))
    assert not needs_new_head((Example("/a.svs", "0.3"),), replace(DEMO, task="regression"))
    assert find_obstacle(LABELS, DEMO) is None
    assert find_obstacle(LABELS[:10], DEMO) == "patients: lesion has 5, normal has 5"
    assert find_obstacle((), DEMO) is None


def test_folders_are_free_or_go_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert propose_folder(None, home, "demo") == home / "demo-tuned"
    first = propose_folder(tmp_path / "labels.csv", home, "My Net")
    assert first == tmp_path / "my-net-tuned"
    first.mkdir()
    assert not is_begun(first)
    assert propose_folder(tmp_path / "labels.csv", home, "My Net") == tmp_path / "my-net-tuned-2"
    (first / "training.safetensors").touch()
    assert is_unfinished(first)
    assert is_begun(first)
    assert propose_folder(tmp_path / "labels.csv", home, "My Net") == first
    assert propose_folder(tmp_path / "labels.csv", home, "my-net-tuned") == first


def test_progress_and_the_end_in_words(tmp_path: Path) -> None:
    history = History((1.0, 0.9, 0.8), (Epoch(0, 0, None, 1, None, 0), Epoch(1, 1e-4, 0.95, 0.9, None, 5)), 2)
    step = Step("fine-tuning", 30, 120, 10.0)
    assert describe_training(step, None, 50) == "Fine-tuning, 25% · 30 s left for all epochs"
    assert describe_training(step, history, 50) == "Epoch 2 of 50, step 2 of 2 · 30 s left for all epochs"
    assert describe_training(Step("fine-tuning", 0, 0, 0), None, 50) == "Fine-tuning, 0%"
    assert describe_end(None, tmp_path) == "Stopped. The base is unchanged, and nothing is kept."
    (tmp_path / "training.safetensors").touch()
    assert "after 1 epoch, 3 steps. The base is unchanged" in describe_end(history, tmp_path)


def result(card: ModelCard, rows: list[tuple[str, list[float], list[float]]], best: int = 1, warnings: Any = ()) -> Any:
    compared = tuple(Compared(Example("/s/a.svs", label, Region(0, 0, 9, 9)), tuple(b), tuple(a)) for label, b, a in rows)
    return SimpleNamespace(model=SimpleNamespace(card=card), rows=compared, best=best, warnings=warnings)


def test_answers_before_and_after() -> None:
    found = result(DEMO, [("lesion", [2.0, 0.0], [0.0, 2.0]), ("normal", [2.0, 0.0], [0.0, 0.1]), ("normal", [1.0, 0.0], [9.0, 0.0])])
    rows = compare(found)
    assert [(row.truth, row.before, row.after, row.became) for row in rows] == [
        ("lesion", "normal 88%", "lesion 88%", "right"),
        ("normal", "normal 88%", "lesion 52%", "wrong"),
        ("normal", "normal 73%", "normal 100%", ""),
    ]
    said = describe_result(found, rows, Path("/out"))
    assert "Epoch 1 is kept, in out." in said
    assert "Of 3 validation regions 2 were right before, 2 are now." in said
    assert "Research use only" in said
    assert "⚠ of no use" in describe_result(result(DEMO, [], warnings=("of no use",)), [], Path("/out"))
    assert "The base did best" in describe_result(result(DEMO, [], 0), [], Path("/out"))
    several = compare(result(replace(DEMO, task="multilabel"), [("normal;lesion", [1.0, -1.0], [1.0, 1.0]), ("", [-1, -1], [-1, -1])]))
    assert [(row.before, row.after, row.became) for row in several] == [
        ("normal 73%", "normal 73%, lesion 73%", "right"), ("none", "none", ""),
    ]  # fmt: skip
    (value,) = compare(result(replace(DEMO, task="regression"), [("1;2", [0.5, 1.0], [1.0, 2.0])]))
    assert (value.before, value.after, value.became) == ("0.5, 1", "1, 2", "")


def test_figures_stand_beside_what_no_network_reaches() -> None:
    truth = np.array([0, 0, 0, 1])
    good, bad = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]]), np.array([[0.0, 1], [1, 0], [1, 0], [1, 0]])
    before, after = (measure(logits, truth, list("abcd"), DEMO, resamples=0) for logits in (bad, good))
    found = {row.name: (row.before, row.after, row.baseline) for row in measured(before, after)}
    assert found["Accuracy"] == ("0.50", "1.00", "0.75")
    assert found["Balanced"] == ("0.33", "1.00", "0.50")
    assert found["AUC lesion"][1:] == ("1.00", "0.50")
    assert found["Loss"][2] == ""
    assert measured(None, after) == []
    card = replace(DEMO, task="regression", class_names=("score",))
    values = np.array([[1.0], [2.0], [3.0], [5.0]])
    near = measure(values + 0.1, values, list("abcd"), card, resamples=0)
    rows = {row.name: (row.after, row.baseline) for row in measured(near, near)}
    assert rows["Error score"] == ("0.10", "1.25")


def test_the_forecast_in_words(tmp_path: Path) -> None:
    from streamview_napari.requests.models import load

    paths = [tmp_path / f"{n}.svs" for n in range(4)]
    for seed, path in enumerate(paths):
        write_synthetic_slide(path, size=(128, 128), mpp=0.5, seed=seed)
    labels = tuple(Example(str(path), label, Region(0, 0, 128, 64)) for path in paths for label in ("normal",)) + tuple(
        Example(str(path), "lesion", Region(0, 64, 128, 64)) for path in paths
    )
    tuning = request(loaded=load("demo", untrained=False), labels=labels, settings=replace(PRESETS["all"], validation=0.25), device="cpu")
    with pytest.raises(LabelError, match="force=True"):
        forecast_finetuning(tuning)
    text = describe_forecast(forecast_finetuning(replace(tuning, force=True)))
    assert text.endswith("6 regions (3 patients) train, 2 (1) validate")
    assert "for all epochs, an epoch " in text
    assert "peak memory" in text


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_the_thread_that_trains_and_its_children_yield_to_the_window() -> None:
    here, found = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), []

    def note() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def work() -> None:
        yield_to_window()
        note()
        child = threading.Thread(target=note)
        child.start()
        child.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    note()
    assert found == [max(10, here), max(10, here), here]


def test_torch_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys; from streamview_napari.requests import comparison, finetuning, labels; print('torch' in sys.modules)"
    path = os.pathsep.join(found for found in sys.path if found)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True)
    assert done.stdout.strip() == "False"
