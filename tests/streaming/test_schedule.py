"""The schedule: integers that must partition every value exactly and never promise what does not exist."""

import ast
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from streamview.streaming import schedule
from streamview.streaming.schedule import Window, schedule_axis

windows = st.builds(Window, st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(-2, 5), st.integers(-2, 5), st.booleans())


def reads(window: Window, o: int) -> range:
    """Positions, padding included, that output o reads."""
    start = o * window.stride - window.before
    return range(start, start + window.extent, window.dilation)


@given(windows, st.integers(1, 40))
def test_window_agrees_with_its_definition(window: Window, n: int) -> None:
    size = window.size(n)
    assume(size > 0)
    for p in range(n + 1):
        count = window.frontier(p, n)
        assert 0 <= count <= size
        if p < n:
            assert all(reads(window, o)[-1] < p for o in range(count))
            assert count == size or reads(window, count)[-1] >= p
    for o in range(size):
        first = window.first(o, n)
        later = [i for later in range(o, size) for i in reads(window, later) if 0 <= i < n]
        assert first <= min(later, default=n)
    for o0 in range(size):
        for o1 in range(o0 + 1, min(o0 + 4, size) + 1):
            i0, i1, before, after = window.need(o0, o1, n)
            start, stop = reads(window, o0)[0], reads(window, o1 - 1)[-1] + 1
            assert 0 <= i0 <= i1 <= n
            assert min(before, after) >= 0
            assert before + (i1 - i0) + after == stop - start
            assert all(i0 <= i < i1 for i in range(max(start, 0), min(stop, n)))


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(1, 2), st.integers(0, 2), st.booleans())
def test_size_is_that_of_torch(n: int, kernel: int, stride: int, dilation: int, padding: int, ceil: bool) -> None:
    assume(padding <= kernel // 2)
    window = Window(kernel, stride, dilation, padding, padding, ceil)
    try:
        expected = F.max_pool1d(torch.zeros(1, 1, n), kernel, stride, padding, dilation, ceil).shape[-1]
    except RuntimeError:
        assert window.size(n) <= 0
        return
    assert window.size(n) == expected


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Window], list[tuple[int, ...]], int]:
    n = draw(st.integers(5, 60))
    sizes, found, inputs = [n], [], []
    for _ in range(draw(st.integers(1, 8))):
        source = draw(st.integers(max(0, len(sizes) - 3), len(sizes) - 1))
        twins = [i for i, size in enumerate(sizes) if size == sizes[source]]
        if len(twins) > 1 and draw(st.booleans()):
            window, sources = Window(), tuple(draw(st.lists(st.sampled_from(twins), min_size=2, max_size=3)))
        else:
            window, sources = draw(windows), (source,)
        size = window.size(sizes[source])
        if size <= 0:
            continue
        found.append(window)
        inputs.append(sources)
        sizes.append(size)
    assume(found)
    return found, inputs, n


@given(graphs(), st.integers(1, 70), st.data())
def test_steps_partition_every_value(graph: tuple[list[Window], list[tuple[int, ...]], int], step: int, data: st.DataObject) -> None:
    found, inputs, n = graph
    granules = [1, *(data.draw(st.integers(1, 5)) for _ in found)]
    plan = schedule_axis(found, inputs, [n], step, granules)
    for value, size in enumerate(plan.sizes):
        produced, kept = plan.produced[value], plan.kept[value]
        assert produced[0] == 0
        assert produced[-1] == size
        assert kept[-1] == size
        assert all(a <= b for a, b in itertools.pairwise(produced))
        assert all(a <= b for a, b in itertools.pairwise(kept))
        assert all(k <= p for k, p in zip(kept, produced, strict=True))
    for t in range(plan.steps):
        for index, (window, sources) in enumerate(zip(found, inputs, strict=True)):
            o0, o1 = plan.new(index + 1, t)
            if o0 == o1:
                continue
            for source in sources:
                i0, i1, *_ = window.need(o0, o1, plan.sizes[source])
                k, p = plan.block(source, t)
                assert i0 == i1 or k <= i0 <= i1 <= p


def test_the_schedule_knows_no_torch() -> None:
    tree = ast.parse(Path(schedule.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "torch" not in names | modules
