"""The paper's augmentations: what each does to pixels, and that pieces are parts of the whole."""

import colorsys
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from streamview.errors import TrainingError
from streamview.finetuning import PAPER, Augmentation, Settings, finetune
from streamview.finetuning.augmentation import Warp, colour_matrix, draw_boxes
from streamview.finetuning.variation import Variation, lazy_image, vary
from streamview.slides.sampling import Sampler
from tests.support.finetuning import examples_of, model_of, picture, small_network

SHAPE = (90, 130)


def reader(pixels: np.ndarray):
    return lambda y0, y1, x0, x1: pixels[y0:y1, x0:x1]


def warped(warp: Warp, pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return warp.read(reader(pixels), (height, width), (0, height), (0, width))


def test_a_quarter_turn_of_a_square_is_that_of_numpy() -> None:
    pixels = picture(0, 65, 65)
    assert np.array_equal(warped(Warp(math.pi / 2, 0.0, 0), pixels), np.rot90(pixels))
    assert np.array_equal(warped(Warp(0.0, 0.0, 0), pixels), pixels)


def test_a_free_rotation_keeps_the_middle_and_mirrors_at_the_border() -> None:
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[40:61, 40:61] = 200
    turned = warped(Warp(0.7, 0.0, 0), pixels)
    assert turned[50, 50].tolist() == [200] * 3
    assert int(turned.sum()) == pytest.approx(int(pixels.sum()), rel=0.01)
    white = np.full((40, 70, 3), 255, np.uint8)
    assert (warped(Warp(0.4, 3.0, 1), white) == 255).all()  # nothing comes in from outside


def test_an_elastic_deformation_moves_pixels_by_its_strength() -> None:
    ramp = np.zeros((400, 250, 3), np.uint8)
    ramp[..., 0] = np.arange(250)
    moved = warped(Warp(0.0, 4.0, 3), ramp)[40:-40, 40:-40, 0].astype(float) - np.arange(40, 210)
    assert 2.0 < moved.std() < 6.0
    assert np.abs(np.diff(moved, axis=1)).max() < 3  # smooth
    assert not np.array_equal(warped(Warp(0.0, 4.0, 4), ramp), warped(Warp(0.0, 4.0, 3), ramp))


def test_pieces_are_parts_of_the_whole() -> None:
    pixels, warp = picture(2, 300, 280), Warp(0.9, 5.0, 7)
    whole = warped(warp, pixels)
    rows, cols = [(0, 17), (17, 200), (200, 300)], [(0, 133), (133, 280)]
    pieces = np.vstack([np.hstack([warp.read(reader(pixels), (300, 280), r, c) for c in cols]) for r in rows])
    assert np.array_equal(whole, pieces)


def test_only_what_a_piece_needs_is_read() -> None:
    read = []

    def watched(y0, y1, x0, x1):
        read.append((y1 - y0) * (x1 - x0))
        return np.zeros((y1 - y0, x1 - x0, 3), np.uint8)

    Warp(math.pi / 4, 2.0, 0).read(watched, (4000, 4000), (1000, 1256), (0, 4000))
    assert max(read) < 450**2


def test_colours_turn_like_the_hue_and_keep_grey() -> None:
    def changed(colour, *how):
        rows = np.array(colour_matrix(*how))
        return rows[:, :3] @ colour + rows[:, 3]

    grey = np.full(3, 0.3)
    assert changed(grey, 1.0, 1.7, 0.2) == pytest.approx(grey, abs=2e-3)
    assert changed(grey, 1.5, 1.0, 0.0) == pytest.approx(0.5 + 1.5 * (grey - 0.5))
    pink = np.array([0.8, 0.5, 0.65])
    assert changed(pink, 1.0, 1.0, 0.0) == pytest.approx(pink)
    dull = changed(pink, 1.0, 0.5, 0.0)
    assert colorsys.rgb_to_hls(*dull)[0] == pytest.approx(colorsys.rgb_to_hls(*pink)[0], abs=0.01)
    assert np.ptp(dull) == pytest.approx(np.ptp(pink) / 2, rel=0.01)
    yiq, turned = (colorsys.rgb_to_yiq(*colour) for colour in (pink, changed(pink, 1.0, 1.0, 0.1)))
    angle = math.atan2(turned[2], turned[1]) - math.atan2(yiq[2], yiq[1])
    assert angle / (2 * math.pi) % 1 == pytest.approx(0.1, abs=0.01)
    assert turned[0] == pytest.approx(yiq[0], abs=0.01)


def test_the_image_is_coloured_and_cut_out_wherever_it_is_read() -> None:
    example = examples_of("a", 40, 56)[0]
    card = model_of(small_network()).card
    variation = Variation(tint=(0.9, 1.0, 1.1), colours=colour_matrix(1.2, 0.5, 0.05), boxes=((10, 30, 35, 50),))
    with example.open() as slide:
        sampler = Sampler(slide, example.region)
        image = lazy_image(sampler, card, variation, torch.float64, torch.device("cpu"))
        plain = sampler.read(0, 40, 0, 56) * np.array(variation.tint)
        rows, cols = [(0, 13), (13, 40)], [(0, 30), (30, 56)]
        found = torch.cat([torch.cat([image.read(r, c) for c in cols], 3) for r in rows], 2)[0].permute(1, 2, 0).numpy()
    matrix = np.array(variation.colours)
    expected = ((plain.clip(0, 255) @ matrix[:, :3].T + 255 * matrix[:, 3]).clip(0, 255) / 255 - card.mean) / card.std
    expected[10:30, 35:50] = 0
    assert np.abs(found - expected).max() < 1e-12


def test_the_square_lies_inside_and_has_at_most_its_side() -> None:
    draw = random.Random(0)
    boxes = [draw_boxes(PAPER, SHAPE, draw)[0] for _ in range(300)]
    assert all(0 <= top <= bottom <= 90 and 0 <= left <= right <= 130 for top, bottom, left, right in boxes)
    assert 20 <= max(bottom - top for top, bottom, _, _ in boxes) <= 0.25 * 90 + 1
    assert draw_boxes(Augmentation(), SHAPE, draw) == ()


def test_draws_follow_seed_epoch_and_region_and_leave_the_older_ones() -> None:
    settings = Settings(seed=3, augmentation=PAPER)
    drawn = [vary(settings, epoch, index, SHAPE) for epoch in (1, 2) for index in range(20)]
    assert drawn == [vary(settings, epoch, index, SHAPE) for epoch in (1, 2) for index in range(20)]
    assert len({v.warp for v in drawn}) == len({v.colours for v in drawn}) == len(drawn)
    plain = [replace(v, warp=None, colours=None, boxes=()) for v in drawn]
    assert plain == [vary(Settings(seed=3), epoch, index, SHAPE) for epoch in (1, 2) for index in range(20)]


def test_a_network_trains_on_augmented_regions_and_the_streamed_step_is_the_same_for_every_tile() -> None:
    settings = Settings(learning_rate=1e-3, batch=2, epochs=2, validation=0, augmentation=replace(PAPER, elastic=2.0))
    losses = [
        finetune(model_of(small_network().double()), examples_of("abab", 80, 96), settings, tile=tile, force=True).history.losses
        for tile in ((80, 96), (24, 40))
        if torch.manual_seed(0)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize(("name", "value"), [("elastic", -1.0), ("contrast", 1.0), ("hue", -0.1), ("cutout", 1.5)])
def test_strengths_out_of_range_are_refused(name, value) -> None:
    with pytest.raises(TrainingError, match=name):
        Augmentation(**{name: value})
