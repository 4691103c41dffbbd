"""The demo's trained network finds the lesion of a synthetic region it has not seen, and both of its maps lie on it."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from streamview.networks import load_model
from streamview.slides.synthetic import synthetic_region

SIDE, STRIDE = 768, 32


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_prediction_and_localisation(share: float) -> None:
    model = load_model("demo")
    image, lesion = synthetic_region(SIDE, SIDE, seed=7_000_000, lesion_share=share)
    mean, std = torch.tensor(model.card.mean), torch.tensor(model.card.std)
    x = ((torch.from_numpy(image) / 255 - mean) / std)[None].permute(0, 3, 1, 2).requires_grad_()
    features = model.module.features(x)
    logits = model.module.head(features)[0]
    assert model.card.class_names[int(logits.argmax())] == ("lesion" if share else "normal")
    if not share:
        return
    (gradient,) = torch.autograd.grad(logits[1], x)
    glass = (1 - mean) / std
    signed = (gradient * (x.detach() - glass[:, None, None])).sum(1)[0].numpy()
    signed = ndimage.gaussian_filter(signed, 12).clip(0)
    linear = model.module.head[-1]
    evidence = (torch.einsum("c,cyx->yx", linear.weight[1], features[0].detach()) + linear.bias[1]).clamp(min=0).numpy()
    cells = lesion.reshape(SIDE // STRIDE, STRIDE, SIDE // STRIDE, STRIDE).mean((1, 3))
    assert (signed * lesion).sum() / signed.sum() > 5 * lesion.mean()
    assert (evidence * cells).sum() / evidence.sum() > 5 * cells.mean()
    assert np.isfinite(signed).all()
