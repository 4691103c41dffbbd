"""The values of a map: one type, in memory and on disk, that numpy takes for an array, and of which only what is asked for is read."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import streamview
from streamview.results import Plane, open_saliency
from streamview.results.difference import difference

VALUES = np.random.default_rng(0).normal(size=(1200, 7)).astype(np.float32)


class Counted:
    """Counts the pixels that are read."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values, self.read, self.shape = values, 0, values.shape

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        assert all(isinstance(part, slice) and part.step in (None, 1) for part in key)
        part = self.values[key]
        self.read += part.size
        return part


@pytest.fixture(params=["memory", "lazy"])
def plane(request: pytest.FixtureRequest) -> Plane:
    return Plane(VALUES if request.param == "memory" else Counted(VALUES))


def test_it_has_what_an_array_has(plane: Plane) -> None:
    for name in ("shape", "dtype", "ndim", "size", "nbytes"):
        assert getattr(plane, name) == getattr(VALUES, name)
    assert len(plane) == len(VALUES)
    assert np.array_equal(np.stack(list(plane)), VALUES)
    for name in ("max", "min", "sum", "mean", "std", "argmax", "any"):
        assert getattr(plane, name)() == getattr(VALUES, name)() == getattr(np, name)(plane)
    assert np.array_equal(plane.max(axis=0), VALUES.max(axis=0))
    assert np.array_equal(plane.T, VALUES.T)
    assert plane.astype(np.float64).dtype == np.float64
    assert np.percentile(plane, 90) == np.percentile(VALUES, 90)
    assert plane.tolist() == VALUES.tolist()
    assert not hasattr(plane, "compute")
    with pytest.raises(ValueError, match="ambiguous"):
        bool(plane)


def test_operators_and_functions_take_it(plane: Plane) -> None:
    assert np.array_equal(2 * plane - plane / 4, 2 * VALUES - VALUES / 4)
    assert np.array_equal(VALUES + plane, 2 * VALUES)
    assert np.array_equal(plane > 0, VALUES > 0)
    assert (plane == VALUES).all()
    assert np.array_equal(abs(plane), np.abs(plane))
    assert np.array_equal(np.where(plane > 0, plane, 0), np.where(VALUES > 0, VALUES, 0))
    assert np.array_equal(np.maximum.accumulate(plane, axis=0), np.maximum.accumulate(VALUES, axis=0))
    assert np.concatenate([plane, VALUES]).shape == (2400, 7)
    np.testing.assert_array_equal(plane, VALUES)


def test_it_is_read_only(plane: Plane) -> None:
    before = VALUES.copy()
    with pytest.raises(TypeError):
        plane[0, 0] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        plane += 1
    with pytest.raises(TypeError):
        np.add(VALUES, 1, out=plane)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="read-only"):
        plane[:5][:] = 1
    mine = np.array(plane)
    mine += 1
    assert np.array_equal(VALUES, before)


def test_copies_as_the_protocol_says() -> None:
    assert np.shares_memory(np.asarray(Plane(VALUES)), VALUES)
    assert not np.shares_memory(np.array(Plane(VALUES)), VALUES)
    assert np.asarray(Plane(VALUES), np.float16).dtype == np.float16
    with pytest.raises(ValueError, match="read lazily"):
        np.asarray(Plane(Counted(VALUES)), copy=False)
    for again in (pickle.loads(pickle.dumps(Plane(VALUES))), copy.deepcopy(Plane(VALUES))):
        assert np.array_equal(again, VALUES)


index = st.one_of(st.integers(-7, 6), st.slices(7), st.slices(1200), st.just(Ellipsis), st.integers(-7, 6).map(np.int64))


@given(st.one_of(index, st.tuples(index), st.tuples(index, index).filter(lambda pair: pair != (..., ...))))
def test_any_basic_index_is_that_of_the_array(key: Any) -> None:
    assert np.array_equal(Plane(Counted(VALUES))[key], VALUES[key])
    assert np.shape(Plane(VALUES)[key]) == VALUES[key].shape


def test_other_indices_and_mistakes_are_those_of_the_array(plane: Plane) -> None:
    for key in ([3, 1], (np.array([0, 2]), 1), VALUES > 0, (None, 3), np.arange(1200) % 2 == 0):
        assert np.array_equal(plane[key], VALUES[key])
    for wrong in (1200, (0, 7), (0, 0, 0), "lesion", 1.5):
        with pytest.raises(IndexError):
            plane[wrong]


def test_only_what_is_asked_for_is_read() -> None:
    source = Counted(VALUES)
    plane = Plane(source)
    plane[5], plane[-3:, ::-2], plane[9:5], hasattr(plane, "compute"), repr(plane)
    assert source.read == 7 + 3 * 7
    source.read = 0
    largest = max(strip.max() for _, strip in plane.strips(100))
    assert (largest, source.read) == (VALUES.max(), VALUES.size)
    assert [(y, strip.shape) for y, strip in plane.strips(500)] == [(0, (500, 7)), (500, (500, 7)), (1000, (200, 7))]


def test_maps_in_memory_on_disk_and_subtracted_are_of_one_type(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 80, 3), np.uint8)
    network = streamview.load_model("demo")
    held = streamview.saliency(network, pixels, None, "lesion", mpp=0.5)
    stored = streamview.saliency(network, pixels, None, "lesion", mpp=0.5, out=tmp_path / "a.ome.zarr")
    for method, saliency_map in held.maps.items():
        for other in (stored, open_saliency(tmp_path / "a.ome.zarr")):
            assert type(saliency_map.values) is type(other.maps[method].values) is Plane
            assert np.array_equal(saliency_map.values, other.maps[method].values)
            assert saliency_map.values.max() == other.maps[method].values.max()
        assert type(difference(held, stored).maps[method].values) is Plane
        assert not difference(held, stored).maps[method].values.any()
