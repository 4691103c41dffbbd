"""The schedule: integers that must partition every value exactly and never promise what does not exist."""

import ast
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from streamview.streaming import schedule
from streamview.streaming.schedule import Axis, Spread, Table, Window, schedule_axis

windows = st.builds(Window, st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(-2, 5), st.integers(-2, 5), st.booleans())


spreads = st.builds(Spread, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(-3, 4))


@st.composite
def tables(draw: st.DrawFn, n: int) -> Table:
    """Every output reads any few neighbouring inputs, in no order."""
    low = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2 * n))
    high = [min(i + draw(st.integers(0, 3)), n - 1) for i in low]
    return Table.of(low, high, 1.0, 0.0)


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


def check_definition(axis: Axis, n: int, wanted: list[list[int]]) -> None:
    """Compare a geometry with the inputs that each output reads."""
    size = axis.size(n)
    assert size == len(wanted)
    for p in range(n + 1):
        count = axis.frontier(p, n)
        assert 0 <= count <= size
        assert all(i < p for o in range(count) for i in wanted[o])
    assert axis.frontier(n, n) == size
    for o in range(size + 1):
        assert 0 <= axis.first(o, n) <= min([i for later in wanted[o:] for i in later], default=n)
    for o0 in range(size):
        for o1 in range(o0 + 1, size + 1):
            i0, i1, before, after = axis.need(o0, o1, n)
            assert 0 <= i0 <= i1 <= n
            assert before == after == 0
            assert all(i0 <= i < i1 for o in range(o0, o1) for i in wanted[o])
            assert i0 == i1 or axis.first(o0, n) <= i0


@given(spreads, st.integers(1, 12))
def test_spread_agrees_with_its_definition(spread: Spread, n: int) -> None:
    size = spread.size(n)
    assume(size > 0)
    starts = [i * spread.stride - spread.before for i in range(n)]
    wanted = [[i for i, start in enumerate(starts) if start <= o < start + spread.extent] for o in range(size)]
    check_definition(spread, n, wanted)
    # nothing is kept or awaited in vain, but for outputs between two inputs
    for p in range(1, n):
        count = spread.frontier(p, n)
        assert count == size or any(i >= p for found in wanted[count : count + spread.stride] for i in found) or not any(wanted[count:])
    for o in range(size):
        later = [i for found in wanted[o:] for i in found]
        assert not later or spread.first(o, n) == min(later) or spread.extent < spread.stride


@given(st.data(), st.integers(1, 12))
def test_table_agrees_with_its_definition(data: st.DataObject, n: int) -> None:
    low = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=14))
    high = [min(i + data.draw(st.integers(0, 3)), n - 1) for i in low]
    table = Table.of(low, high, 1.0, 0.0)
    check_definition(table, n, [list(range(a, b + 1)) for a, b in zip(low, high, strict=True)])


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(0, 3))
def test_size_of_a_spread_is_that_of_torch(n: int, kernel: int, stride: int, dilation: int, padding: int, extra: int) -> None:
    spread = Spread(kernel, stride, dilation, padding, padding - extra)
    assume(extra < max(stride, dilation))
    try:
        x = torch.zeros(1, 1, n, requires_grad=True)
        made = F.conv_transpose1d(x, torch.ones(1, 1, kernel), None, stride, padding, extra, 1, dilation)
    except RuntimeError:
        assert spread.size(n) <= 0
        return
    assert spread.size(n) == made.shape[-1]
    for o in range(made.shape[-1]):
        (read,) = torch.autograd.grad(made[0, 0, o], x, retain_graph=True)
        i0, i1, *_ = spread.need(o, o + 1, n)
        assert all(i0 <= i < i1 for i in read[0, 0].nonzero().flatten().tolist())


Graph = tuple[list[Axis], list[tuple[int, ...]], list[int]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Operations of all geometries on up to three sources."""
    sources = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    sizes, found, inputs = [*sources], [], []
    for _ in range(draw(st.integers(1, 8))):
        source = draw(st.integers(max(0, len(sizes) - 3), len(sizes) - 1))
        twins = [i for i, size in enumerate(sizes) if size == sizes[source]]
        if len(twins) > 1 and draw(st.booleans()):
            axis, read = Window(), tuple(draw(st.lists(st.sampled_from(twins), min_size=2, max_size=3)))
        else:
            axis, read = draw(st.one_of(windows, spreads, tables(sizes[source]))), (source,)
        size = axis.size(sizes[source])
        if not 0 < size <= 200:
            continue
        found.append(axis)
        inputs.append(read)
        sizes.append(size)
    assume(found)
    return found, inputs, sources


@given(graphs(), st.integers(1, 70), st.data())
def test_steps_partition_every_value(graph: Graph, step: int, data: st.DataObject) -> None:
    found, inputs, sources = graph
    granules = [*(1 for _ in sources), *(data.draw(st.integers(1, 5)) for _ in found)]
    plan = schedule_axis(found, inputs, sources, step, granules)
    assert plan.steps == -(-max(sources) // step)
    for value, size in enumerate(plan.sizes):
        produced, kept = plan.produced[value], plan.kept[value]
        assert produced[0] == 0
        assert produced[-1] == size
        assert kept[-1] == size
        assert all(a <= b for a, b in itertools.pairwise(produced))
        assert all(a <= b for a, b in itertools.pairwise(kept))
        assert all(k <= p for k, p in zip(kept, produced, strict=True))
    for t in range(plan.steps):
        for index, (axis, read) in enumerate(zip(found, inputs, strict=True)):
            o0, o1 = plan.new(len(sources) + index, t)
            if o0 == o1:
                continue
            for source in read:
                i0, i1, *_ = axis.need(o0, o1, plan.sizes[source])
                k, p = plan.block(source, t)
                assert i0 == i1 or k <= i0 <= i1 <= p


def test_the_schedule_knows_no_torch() -> None:
    tree = ast.parse(Path(schedule.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "torch" not in names | modules
