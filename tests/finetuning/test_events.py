"""The history in TensorBoard's event files: every step and epoch once, also of a run that resumes."""

import sys

import pytest

from streamview.errors import Cancelled, TrainingError
from streamview.finetuning.events import event_writer
from tests.support.interrupted import SETTINGS, run


def read_events(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_step_and_epoch_is_recorded(tmp_path) -> None:
    with event_writer(tmp_path / "events") as watch:
        result = run(tmp_path / "tuned", watch=watch)
    events, history = read_events(tmp_path / "events"), result.history
    assert events["loss/training"] == [(number, pytest.approx(loss)) for number, loss in enumerate(history.losses, 1)]
    validated = [(epoch.number * history.per_epoch, pytest.approx(epoch.validation_loss)) for epoch in history.epochs]
    assert events["loss/validation"] == validated
    assert events["learning rate"] == [(e.number * history.per_epoch, pytest.approx(e.learning_rate)) for e in history.epochs[1:]]
    assert events["validation/accuracy"][-1] == (6 * history.per_epoch, pytest.approx(history.epochs[-1].validation.accuracy.value))
    assert len(history.epochs) == SETTINGS.epochs + 1


def test_a_run_that_resumes_adds_to_what_is_there(tmp_path) -> None:
    def stop_after(watch, steps):
        def stopping(history):
            watch(history)
            if len(history.losses) == steps:
                raise Cancelled("stopped by the test")

        return stopping

    with event_writer(tmp_path / "events") as watch, pytest.raises(Cancelled):
        run(tmp_path / "tuned", watch=stop_after(watch, 7))
    with event_writer(tmp_path / "events") as watch:
        result = run(tmp_path / "tuned", watch=watch)
    steps = [step for step, _ in read_events(tmp_path / "events")["loss/training"]]
    assert steps == list(range(1, len(result.history.losses) + 1))


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"pip install 'streamview\[tensorboard\]'"), event_writer(tmp_path):
        pass
