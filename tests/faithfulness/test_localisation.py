"""Pointing game, energy and average precision of a map, against sums done by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from streamview.faithfulness.localisation import average_precision, localise

LESION = np.zeros((4, 5), np.bool_)
LESION[1:3, 1:3] = True


def test_energy_and_pointing_of_a_small_map() -> None:
    values = np.zeros((4, 5))
    values[1, 1], values[0, 0], values[3, 3] = 3.0, 1.0, -50.0  # what is negative does not count
    measured = localise(values, LESION)
    assert (measured.pointing, measured.energy, measured.area) == (True, 0.75, 0.2)
    assert measured.ratio == pytest.approx(3.75)
    values[0, 0] = 4.0
    assert not localise(values, LESION).pointing


def test_a_flat_map_has_the_energy_of_the_area() -> None:
    measured = localise(np.full((4, 5), 2.0), LESION)
    assert measured.ratio == pytest.approx(1.0)
    assert measured.precision == pytest.approx(measured.area)


def test_an_empty_map_points_nowhere() -> None:
    measured = localise(np.full((4, 5), -1.0), LESION)
    assert not measured.pointing
    assert np.isnan(measured.energy)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_scikit_learn(seed) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 9, (20, 30)), rng.random((20, 30)) < 0.2  # with ties
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth.ravel(), scores.ravel()))


@pytest.mark.parametrize("lesion", [np.zeros((4, 5), np.bool_), np.ones((4, 5), np.bool_), np.ones((2, 2), np.bool_)])
def test_what_cannot_be_compared_is_refused(lesion) -> None:
    with pytest.raises(ValueError, match="expected equal shapes, and a part of it"):
        localise(np.ones((4, 5)), lesion)
