"""The network that knows tissue: its map is its answer, and on a source slide that it has not seen it finds the lesion."""

import numpy as np
import pytest

import streamview
from experiments.camelyon16_tiles.__main__ import TEST
from experiments.camelyon16_tiles.compose import load_tiles
from experiments.camelyon16_tiles.measure import compose_slides, measure_network
from streamview.networks import load_model


def test_the_answer_is_the_largest_evidence() -> None:
    model = load_model("camelyon16-tiles")
    pixels = np.random.default_rng(0).integers(0, 256, (320, 400, 3), np.uint8)
    saliency = streamview.saliency(model, pixels, target="tumour", mpp=0.486)
    linear = model.module.get_submodule("head.2")
    (weight,), bias = linear.weight[1].tolist(), float(linear.bias[1])
    evidence = saliency.maps["evidence"].values[:, :]
    assert weight > 0 > float(linear.weight[0])
    assert abs(evidence.max() + bias - saliency.prediction.logits[1]) < 1e-4


def test_the_card_says_what_it_is_for() -> None:
    card = load_model("camelyon16-tiles").card
    assert (card.class_names, card.positive, card.mpp) == (("normal", "tumour"), ("tumour",), 0.486)
    assert "not for diagnosis" in card.use
    assert "not for diagnosis" in card.warning
    assert "tumor_064" in card.split
    assert card.calibration


@pytest.mark.slow
def test_it_finds_lesions_of_a_source_slide_that_it_has_not_seen(shared_data) -> None:
    tiles = load_tiles(shared_data / "camelyon16_tiles", [TEST])
    model, untrained = load_model("camelyon16-tiles"), load_model("camelyon16-tiles", untrained=True)
    figures = measure_network(model, untrained, compose_slides(tiles, 8, seed=1), tell=lambda line: None)
    assert figures.metrics.outputs[1].auc.value >= 0.9
    pointing, energy, _ = figures.maps["class evidence, as shown by default"]
    assert pointing.value == 1
    assert energy.value >= 5
    assert figures.maps["class evidence of random weights"][1].value < 2
