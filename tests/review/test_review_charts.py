"""Charts show every reader, mark the harmed ones, and draw no interval where there is none."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from streamview.evaluation.drawing import BLUE, RED, write_chart
from streamview.review.reads import Read
from streamview.review.statistics import compare_modalities, measure_change, pool_changes
from streamview.review.statistics.charts import change_size, draw_change, draw_lines, lines_size


def study(cases=30, readers=6):
    rng = np.random.default_rng(0)
    truth = {f"c{n:02d}": "abc"[n % 3] for n in range(cases)}
    reads = []
    for reader in range(readers):
        for case, name in truth.items():
            for modality, right in (("unaided", 0.6), ("aided", 0.2 if reader == 1 else 0.85)):
                reads.append(Read(f"reader-{reader}", case, modality, name if rng.random() < right else "abc"[rng.integers(3)]))
    return reads, truth


def texts(figure):
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def lines(figure, colour):
    return [line for line in figure.axes[0].get_lines() if line.get_color() == colour]


def test_every_reader_has_a_line_and_harmed_ones_are_marked():
    result = compare_modalities(*study(), measure="accuracy")
    figure = Figure(figsize=lines_size(result))
    draw_lines(figure, result, "demo")
    assert result.harmed
    assert len(figure.axes[0].get_lines()) == 7
    assert len(lines(figure, RED)) == len(result.harmed)
    assert all(line.get_marker() == "v" for line in lines(figure, RED))
    assert len(figure.axes[0].collections) == 2
    assert lines(figure, BLUE)[0].get_ydata() == pytest.approx([result.unaided.value, result.aided.value])
    assert all(f"reader-{n}" in texts(figure) for n in range(6))
    assert f"lower with the network ({len(result.harmed)})" in texts(figure)
    assert "95 % intervals, for other readers and cases" in texts(figure)


def test_names_are_apart_and_within_the_axes(tmp_path):
    result = compare_modalities(*study(readers=24), measure="accuracy")
    figure = Figure(figsize=lines_size(result), dpi=100)
    draw_lines(figure, result)
    figure.savefig(tmp_path / "a.png")
    low, high = figure.axes[0].get_ylim()
    places = sorted(text.xyann[1] for text in figure.axes[0].texts)
    assert min(np.diff(places)) >= 0.11 * (high - low) / (figure.get_figheight() - 2.1)
    assert low <= places[0] + 1e-9


def test_without_an_interval_the_reason_is_shown():
    result = compare_modalities(*study(cases=8), measure="accuracy")
    figure = Figure(figsize=lines_size(result))
    draw_lines(figure, result)
    assert "no interval: fewer than 10 cases" in texts(figure)
    assert "95 %" not in texts(figure)
    assert len(figure.axes[0].collections) == 0


def test_the_change_matrix_shows_its_counts(tmp_path):
    reads, truth = study()
    changes = measure_change(reads, truth, dict.fromkeys(truth, "a"))
    figure = Figure(figsize=change_size(changes[0]))
    draw_change(figure, changes[0])
    shown = texts(figure)
    assert f"{changes[0].helped} became right, {changes[0].harmed} became wrong (McNemar" in shown
    assert all(str(count) in shown for row in changes[0].matrix for count in row)
    total = pool_changes(changes)
    path = write_chart(tmp_path / "change.png", lambda page: draw_change(page, total, "demo"), change_size(total))
    with Image.open(path) as picture:
        assert picture.size[0] == round(change_size(total)[0] * 150)
