"""captum's methods see no difference between a network and its streamed self; rules that streaming cannot honour are refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from streamview_models import MODELS
from torch import Tensor, nn

from streamview.streaming import Streamed, stream
from tests.support.networks import seed_network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # captum gives deprecation warnings of its own when it is imported
    attr = pytest.importorskip("captum.attr", reason="captum is not installed: pip install 'streamview[test]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # captum warns of what it does to gradients

TILE = (19, 26)
TARGET = 1


@pytest.fixture(params=["seed", "resnet"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    if request.param == "seed":
        return seed_network(blocks=3).double().eval()
    found = MODELS["resnet18"](outputs=3, width=4).double().eval()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return found


@pytest.fixture
def image() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 3, 61, 67, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 1e-10 * expected.abs().max())


def cut_layer(network: nn.Module) -> nn.Module:
    """The plain network's layer whose output is the cut."""
    if isinstance(network, nn.Sequential):
        return network[-4]  # before the global max-pooling
    return network.layer4


Method = Callable[[nn.Module, Tensor], Tensor]


def _saliency(module: nn.Module, image: Tensor) -> Tensor:
    return attr.Saliency(module).attribute(image, target=TARGET)


def _input_x_gradient(module: nn.Module, image: Tensor) -> Tensor:
    return attr.InputXGradient(module).attribute(image, target=TARGET)


def _integrated_gradients(module: nn.Module, image: Tensor) -> Tensor:
    return attr.IntegratedGradients(module).attribute(image, torch.zeros_like(image), target=TARGET, n_steps=6, internal_batch_size=2)


def _noise_tunnel(module: nn.Module, image: Tensor) -> Tensor:
    tunnel = attr.NoiseTunnel(attr.Saliency(module))
    return tunnel.attribute(image, nt_samples=4, nt_samples_batch_size=2, nt_type="smoothgrad_sq", stdevs=0.2, target=TARGET)


def _gradient_shap(module: nn.Module, image: Tensor) -> Tensor:
    baselines = torch.stack([torch.zeros_like(image[0]), torch.full_like(image[0], 0.5)])
    return attr.GradientShap(module).attribute(image, baselines, n_samples=4, stdevs=0.1, target=TARGET)


def _occlusion(module: nn.Module, image: Tensor) -> Tensor:
    return attr.Occlusion(module).attribute(image, (3, 23, 29), (3, 19, 19), target=TARGET, perturbations_per_eval=2)


METHODS: list[Method] = [_saliency, _input_x_gradient, _integrated_gradients, _noise_tunnel, _gradient_shap, _occlusion]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__.strip("_"))
def test_attributions_are_those_of_the_plain_network(method: Method, network: nn.Module, image: Tensor) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  GradientShap draws from it
    expected = method(network, image.clone())
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    found = method(stream(network, tile=TILE), image.clone())
    assert expected.any()
    assert close(found.detach(), expected.detach())


@pytest.mark.parametrize("kind", ["LayerGradCam", "LayerActivation", "LayerGradientXActivation"])
def test_layer_methods_at_the_cut(kind: str, network: nn.Module, image: Tensor) -> None:
    streamed = stream(network, tile=TILE)

    def attribute(module: nn.Module, layer: nn.Module) -> Tensor:
        how = {} if kind == "LayerActivation" else {"target": TARGET}
        return getattr(attr, kind)(module, layer).attribute(image.clone(), **how).detach()

    expected = attribute(network, cut_layer(network))
    assert expected.any()
    assert close(attribute(streamed, streamed.cut), expected)
    # captum takes its hooks off again, so that the pooling behind the cut is streamed once more
    assert not streamed.cut._forward_hooks
    assert close(streamed(image), network(image))


@pytest.mark.parametrize("kind", ["GuidedBackprop", "Deconvolution"])
def test_changed_rules_of_the_reverse_pass_are_refused(kind: str, network: nn.Module, image: Tensor) -> None:
    method = getattr(attr, kind)(stream(network, tile=TILE))
    with pytest.raises(Exception, match="hook") as refusal:
        method.attribute(image.clone(), target=TARGET)
    readable(refusal)


def test_deep_lift_is_refused(network: nn.Module, image: Tensor) -> None:
    method = attr.DeepLift(stream(network, tile=TILE))
    with pytest.raises(Exception, match="hook") as refusal:
        method.attribute(image.clone(), torch.zeros_like(image), target=TARGET)
    readable(refusal)


# what else a user may try on a module


@pytest.fixture(params=["weights wanted", "frozen"])
def streamed(request: pytest.FixtureRequest, network: nn.Module) -> Streamed:
    network.requires_grad_(request.param != "frozen")
    return stream(network, tile=TILE)


REASON = re.compile(r"stream|once", re.IGNORECASE)


def readable(refusal: pytest.ExceptionInfo[BaseException]) -> None:
    """The message says, in one line, that streaming is the reason or what cannot be done twice."""
    assert REASON.search(str(refusal.value)), str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


Attempt = Callable[[Streamed, Tensor], Any]


def _with_weight(streamed: Streamed, image: Tensor) -> tuple[Callable[[Tensor], Any], Tensor]:
    """The streamed network as a function of its first weight."""
    name, weight = next(iter(streamed.module.named_parameters()))
    return lambda w: torch.func.functional_call(streamed, {f"module.{name}": w}, (image,))[0, TARGET], weight.detach()


def _vmap(streamed: Streamed, image: Tensor) -> Any:
    return torch.func.vmap(streamed)(torch.stack([image, image]))


def _vmap_of_weights(streamed: Streamed, image: Tensor) -> Any:
    of, weight = _with_weight(streamed, image)
    return torch.func.vmap(of)(torch.stack([weight, weight]))


def _grad(streamed: Streamed, image: Tensor) -> Any:
    return torch.func.grad(lambda x: streamed(x)[0, TARGET])(image)


def _grad_of_weights(streamed: Streamed, image: Tensor) -> Any:
    of, weight = _with_weight(streamed, image)
    return torch.func.grad(of)(weight)


def _vjp(streamed: Streamed, image: Tensor) -> Any:
    return torch.func.vjp(streamed, image)


def _jvp(streamed: Streamed, image: Tensor) -> Any:
    return torch.func.jvp(streamed, (image,), (torch.ones_like(image),))


def _jvp_of_weights(streamed: Streamed, image: Tensor) -> Any:
    of, weight = _with_weight(streamed, image)
    return torch.func.jvp(of, (weight,), (torch.ones_like(weight),))


def _jacrev(streamed: Streamed, image: Tensor) -> Any:
    return torch.func.jacrev(streamed)(image)


def _forward_mode(streamed: Streamed, image: Tensor) -> Any:
    with torch.autograd.forward_ad.dual_level():
        return streamed(torch.autograd.forward_ad.make_dual(image, torch.ones_like(image)))


def _forward_mode_without_grad(streamed: Streamed, image: Tensor) -> Any:
    with torch.no_grad():
        return _forward_mode(streamed, image)


def _batched_gradients(streamed: Streamed, image: Tensor) -> Any:
    leaf = image.clone().requires_grad_()
    out = streamed(leaf)
    units = torch.eye(out.shape[1], dtype=out.dtype)[:, None]
    return torch.autograd.grad(out, leaf, units, is_grads_batched=True)


def _vectorised_jacobian(streamed: Streamed, image: Tensor) -> Any:
    return torch.autograd.functional.jacobian(streamed, image, vectorize=True)


TRANSFORMS = [
    _vmap, _vmap_of_weights, _grad, _grad_of_weights, _vjp, _jvp, _jvp_of_weights, _jacrev, _forward_mode, _forward_mode_without_grad,
    _batched_gradients, _vectorised_jacobian,
]  # fmt: skip


@pytest.mark.parametrize("attempt", TRANSFORMS, ids=lambda attempt: attempt.__name__.strip("_"))
def test_transforms_are_refused(attempt: Attempt, streamed: Streamed, image: Tensor) -> None:
    with pytest.raises(Exception, match=r".") as refusal:
        attempt(streamed, image)
    readable(refusal)


def _backward_twice(streamed: Streamed, image: Tensor) -> Any:
    leaf = image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(streamed(leaf).square().sum(), leaf, create_graph=True)
    grad.sum().backward()


def _gradient_penalty(streamed: Streamed, image: Tensor) -> Any:
    """How it is used in training: second derivatives of one output, mixed in image and weights; zero is what silence would give."""
    streamed.module.requires_grad_(True)
    leaf = image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(streamed(leaf)[0, TARGET], leaf, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), list(streamed.module.parameters()), allow_unused=True)


def _hessian_times_vector(streamed: Streamed, image: Tensor) -> Any:
    return torch.autograd.functional.hvp(lambda x: streamed(x)[0, TARGET].square(), image, torch.ones_like(image))


@pytest.mark.parametrize(
    "attempt", [_backward_twice, _gradient_penalty, _hessian_times_vector], ids=lambda attempt: attempt.__name__.strip("_")
)
def test_second_derivatives_are_refused(attempt: Attempt, streamed: Streamed, image: Tensor) -> None:
    with pytest.raises(Exception, match=r".") as refusal:
        attempt(streamed, image)
    readable(refusal)


def test_first_derivatives_with_a_graph_are_right(streamed: Streamed, image: Tensor) -> None:
    """Some callers ask for create_graph out of habit; only differentiating again is refused."""
    leaf = image.clone().requires_grad_()
    (found,) = torch.autograd.grad(streamed(leaf)[0, TARGET], leaf, create_graph=True)
    (expected,) = torch.autograd.grad(streamed.module(leaf)[0, TARGET], leaf)
    assert close(found.detach(), expected)


def test_rows_of_a_jacobian_are_right(streamed: Streamed, image: Tensor) -> None:
    found = torch.autograd.functional.jacobian(streamed, image)
    assert close(found, torch.autograd.functional.jacobian(streamed.module, image))


def test_a_refusal_leaves_the_module_usable(streamed: Streamed, image: Tensor) -> None:
    expected = streamed.module(image)
    for attempt in (_grad, _vmap, _forward_mode, _backward_twice):
        with pytest.raises(Exception, match=r"."):
            attempt(streamed, image)
        assert close(streamed(image), expected)
