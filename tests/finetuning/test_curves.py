"""The picture of the losses shows what happened, and which epoch is kept."""

import pytest
from matplotlib.figure import Figure

from streamview.finetuning import Epoch, History
from streamview.finetuning.curves import DARK, LIGHT, draw_history


def history(losses, judged, per_epoch=2):
    epochs = [Epoch(0, 0.0, None, judged[0], None, 0.0)]
    epochs += [Epoch(i, 1e-4, sum(losses[2 * i - 2 : 2 * i]) / 2, loss, None, 1.0) for i, loss in enumerate(judged[1:], 1)]
    return History(tuple(losses), tuple(epochs), per_epoch)


def lines(shown, colours=LIGHT):
    figure = Figure()
    draw_history(figure, shown, colours)
    (axes,) = figure.axes
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}, axes


def test_curves_are_drawn_where_they_belong():
    found, axes = lines(history([4.0, 90.0, 1.0, 3.0], [5.0, 3.0, 4.0]))
    assert found["each step"] == [(0.25, 4.0), (0.75, 90.0), (1.25, 1.0), (1.75, 3.0)]
    assert found["training"] == [(0.5, 47.0), (1.5, 2.0)]
    assert found["validation"] == [(0, 5.0), (1, 3.0), (2, 4.0)]
    assert found["kept"] == [(1, 3.0)]
    assert axes.get_ylim() == (0, pytest.approx(1.25 * 47))


def test_a_run_without_validation_or_without_a_step_is_drawn_too():
    assert set(lines(history([1.0, 2.0], [None, None]))[0]) == {"each step", "training"}
    assert lines(History((), (), 3), DARK)[0] == {}
    assert history([1.0, 2.0], [None, None]).best == 1
    assert history([1.0, 2.0, 3.0, 4.0], [0.5, 0.2, 0.2]).best == 1
