"""Curves, similarities and squares, against sums done by hand and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from skimage.metrics import structural_similarity as of_skimage

from streamview.errors import StreamviewError
from streamview.faithfulness import Settings
from streamview.faithfulness.curves import area_under, beats, normalise, ranking, step_counts
from streamview.faithfulness.grid import Squares, average, cell_side, patch_side
from streamview.faithfulness.similarity import rank_correlation, relative_change, structural_similarity
from streamview.geometry import Region
from streamview.results import Plane, SaliencyMap

RNG = np.random.default_rng(0)


def test_the_area_under_a_curve_that_was_computed_by_hand() -> None:
    # normalised: 1, 0.5, 0.25, 0; areas of the trapezoids: 0.5 * 0.75 + 0.25 * 0.375 + 0.25 * 0.125
    values = normalise([10.0, 6.0, 4.0, 2.0], full=10.0, empty=2.0)
    assert values == (1.0, 0.5, 0.25, 0.0)
    assert area_under([0.0, 0.5, 0.75, 1.0], values) == 0.5 * 0.75 + 0.25 * 0.375 + 0.25 * 0.125


def test_a_score_that_tissue_lowers_is_normalised_so_that_erasing_what_speaks_for_it_still_lowers_the_curve() -> None:
    assert normalise([-4.0, -6.0, 0.0], full=-4.0, empty=0.0) == (-1.0, -1.5, 0.0)
    assert normalise([3.0, 5.0, 3.0], full=3.0, empty=3.0) is None


@pytest.mark.parametrize(("count", "steps", "counts"), [(10, 5, (0, 2, 4, 6, 8, 10)), (4, 10, (0, 1, 2, 3, 4)), (7, 2, (0, 4, 7))])
def test_steps_end_with_all_patches_and_are_no_more_than_they(count, steps, counts) -> None:
    assert step_counts(count, steps) == counts


def test_patches_are_ranked_from_the_highest_and_equal_ones_at_random() -> None:
    values = np.array([[3.0, 1.0, 9.0], [1.0, 1.0, -2.0]])
    counted = np.array([[True, True, False], [True, True, True]])
    orders = {tuple(ranking(values, counted, seed).tolist()) for seed in range(30)}
    assert {order[0] for order in orders} == {0}
    assert {order[-1] for order in orders} == {5}
    assert {order[1:4] for order in orders} == {(1, 3, 4), (1, 4, 3), (3, 1, 4), (3, 4, 1), (4, 1, 3), (4, 3, 1)}


@pytest.mark.parametrize(("area", "lower", "count", "passed"), [(0.1, True, 5, True), (0.35, True, 3, False), (0.9, False, 5, True)])
def test_a_ranking_passes_where_it_beats_the_share(area, lower, count, passed) -> None:
    assert beats(area, [0.2, 0.3, 0.4, 0.5, 0.6], 0.95, lower=lower) == (count, passed)
    assert beats(0.25, [0.2, 0.3, 0.4, 0.5, 0.6], 0.95, lower=True) == (4, False)
    assert beats(0.2, [0.2] * 20, 0.95, lower=True) == (0, False)  # equal is not better
    assert beats(0.2, [0.3] * 19 + [0.1], 0.95, lower=True) == (19, True)


def test_rank_correlation_is_that_of_scipy_with_ties() -> None:
    a, b = RNG.integers(0, 5, (2, 20, 30))
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(a, np.zeros_like(a)) == 0.0


def test_structural_similarity_is_that_of_scikit_image_where_nothing_is_capped() -> None:
    a = np.ones((40, 50)) * np.linspace(0.1, 1, 50)
    b = a[:, ::-1].copy()
    assert structural_similarity(a, a, np.ones(a.shape, bool)) == pytest.approx(1.0)
    inside = np.zeros(a.shape, bool)
    inside[5:-5, 5:-5] = True
    from streamview.faithfulness import similarity

    x, y = (similarity._share_of_cap(values) for values in (a, b))
    _, local = of_skimage(x, y, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    assert structural_similarity(a, b, inside) == pytest.approx(local[inside].mean(), abs=1e-6)


def test_relative_change_is_of_norms() -> None:
    assert relative_change(np.array([3.0, 4.0]), np.array([3.0, 7.0])) == pytest.approx(3 / 5)


def test_means_over_squares_of_fine_and_coarse_maps() -> None:
    values = RNG.normal(size=(21, 34)).astype(np.float32)
    region = Region(40, 60, 42, 68)
    fine = SaliencyMap("signed", Plane(values), (2.0, 2.0), (40.5, 60.5))
    means = average(fine, Squares(region, (2.0, 2.0), (21, 34), 8))
    assert means.shape == (3, 5)
    assert means[1, 2] == pytest.approx(values[8:16, 16:24].mean(), rel=1e-5)
    assert means[2, 4] == pytest.approx(values[16:, 32:].mean(), rel=1e-5)  # cut
    coarse = SaliencyMap("evidence", Plane(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)), (32.0, 32.0), (15.5, 15.5))
    spread = average(coarse, Squares(Region(0, 0, 64, 64), (1.0, 1.0), (64, 64), 8))
    assert np.array_equal(spread, np.kron([[1.0, 2.0], [3.0, 4.0]], np.ones((4, 4))))


def test_squares_grow_with_the_region() -> None:
    assert cell_side((4096, 500)) == 8
    assert cell_side((8192, 500)) == 16
    assert (patch_side((64, 64)), patch_side((1024, 1024)), patch_side((8192, 8192))) == (8, 64, 512)


@pytest.mark.parametrize("change", [{"patch": 0}, {"steps": 1}, {"rankings": 0}, {"shuffles": 0}])
def test_settings_out_of_range_are_refused(change) -> None:
    with pytest.raises(StreamviewError, match="expected"):
        Settings(**change)
