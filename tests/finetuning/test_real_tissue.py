"""Fine-tuning on real tissue, tested on a source slide that nothing was learned or chosen from."""

from dataclasses import replace

import pytest

from benchmarks.finetuning import RECIPE, run


@pytest.mark.slow
def test_a_network_of_synthetic_slides_learns_real_tissue(shared_data, tmp_path):
    outcome = run(shared_data / "camelyon16_tiles", tmp_path, slides=(36, 20), settings=replace(RECIPE, epochs=12))
    assert outcome.after.baseline == 0.5
    assert outcome.after.accuracy.value >= 0.7
    assert outcome.after.outputs[1].auc.value >= 0.8
    assert outcome.after.loss < outcome.before.loss
