"""Weights that are used more than once: between passes, in the body, in the head, under one name or several."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from streamview.streaming import stream
from tests.support.networks import Excite, Response
from tests.support.oracle import errors

LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
    "group norm": lambda: nn.GroupNorm(2, 4, eps=1e-2),
    "instance norm": lambda: nn.InstanceNorm2d(4, eps=1e-2, affine=True),
    "batch norm": lambda: nn.BatchNorm2d(4).eval(),
    "excitation": lambda: Excite(4),
    "response": lambda: Response(4),
    "slope": lambda: nn.PReLU(4),
}


class Shared(nn.Module):
    """A chain of layers out of a few, each as often as the chain names it; `tied`: pairs of layers that have one weight."""

    def __init__(self, names: list[str], chain: list[int], tied: bool, gate: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.layers = nn.ModuleList(LAYERS[name]() for name in names)
        self.fc = nn.Linear(4, 4)
        self.chain, self.gate = chain, gate
        # a buffer that requires a gradient
        self.register_buffer("scale", torch.randn(1, 4, 1, 1, dtype=torch.float64).requires_grad_())
        if tied:
            owners = [layer for layer in self.layers if isinstance(getattr(layer, "weight", None), nn.Parameter)]
            for a in owners:
                for b in owners:
                    if a.weight.shape == b.weight.shape:
                        b.weight = a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for index in self.chain:
            x = self.layers[index](x).tanh()
            if self.gate:  # the head's weights, and a buffer, between passes
                x = x * self.fc(x.mean((2, 3)) * self.scale.flatten(1)).sigmoid()[:, :, None, None]
        return self.fc(x.mean((2, 3))) + self.fc(x.amax((2, 3)))


@st.composite
def networks(draw: st.DrawFn) -> Shared:
    torch.manual_seed(draw(st.integers(0, 999)))
    names = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3))
    chain = draw(st.lists(st.integers(0, len(names) - 1), min_size=2, max_size=5))
    network = Shared(names, chain, draw(st.booleans()), draw(st.booleans())).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return network


def _exact(network: Shared, barriers: str) -> bool:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 17, 19, dtype=torch.float64)
    scale = network.scale
    leaf = image.clone().requires_grad_()
    grads = []
    for module in (stream(network, tile=(7, 8), barriers=barriers, check=False), network):
        grads.append(torch.autograd.grad(module(leaf).square().sum(), scale, allow_unused=True)[0])
    same = all(g is None or not g.any() for g in grads) if not network.gate else torch.allclose(grads[0], grads[1], rtol=1e-9, atol=1e-12)
    return same and max(errors(network, image, tile=(7, 8), barriers=barriers)) < 1e-9


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from(["kept", "spilled", "regenerated"]))
def test_shared_weights(network: Shared, barriers: str) -> None:
    assert _exact(network, barriers)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.sampled_from(["kept", "spilled", "regenerated"]))
def test_many_shared_weights(network: Shared, barriers: str) -> None:
    assert _exact(network, barriers)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_a_layer_three_times(name: str) -> None:
    torch.manual_seed(0)
    assert _exact(Shared([name], [0, 0, 0], False, True).double(), "kept")
