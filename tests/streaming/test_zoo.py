"""The networks of torchvision and timm: each streams exactly, in float64, or is refused by a message that says where and why.

Every family has a small member in the usual run; the rest of it is marked slow. Weights are random, the statistics of
BatchNorm too, and so are the parameters that a network starts at zero.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamview.errors import NotStreamableError, RegionError
from streamview.streaming import stream
from streamview.streaming.graph import Graph
from tests.support.oracle import captured, captured_once, errors, gradients
from tests.support.zoo import import_timm, import_torchvision

TOLERANCE = 1e-10
ODD = (97, 131), (79, 75)  # height and width of the two images
ALIGNED = (96, 160), (64, 96)  # for networks that torch itself runs on multiples of 32 alone
STRIPS, TILES = (32, 1000), (37, 51)

# name, arguments of its constructor, passes
FAST: list[tuple[str, dict[str, Any], int]] = [
    ("tv/resnet18", {}, 1),
    ("tv/densenet121", {}, 1),
    ("tv/inception_v3", {"init_weights": False, "transform_input": True, "aux_logits": False}, 1),
    ("tv/googlenet", {"init_weights": False, "transform_input": True, "aux_logits": False}, 1),
    ("tv/alexnet", {}, 1),
    ("tv/squeezenet1_1", {}, 1),
    ("tv/mobilenet_v2", {"width_mult": 0.35}, 1),
    ("tv/mobilenet_v3_small", {"width_mult": 0.5}, 10),
    ("tv/mnasnet0_5", {}, 1),
    ("tv/efficientnet_b0", {}, 17),
    ("tv/regnet_x_400mf", {}, 1),
    ("tv/regnet_y_400mf", {}, 17),
    ("tv/shufflenet_v2_x0_5", {}, 1),
    ("tv/convnext_tiny", {"block_setting": "small"}, 1),
    ("timm/resnet10t", {}, 1),
    ("timm/resnet50_gn", {"layers": (1, 1, 1, 1)}, 14),
    ("timm/seresnet18", {}, 9),
    ("timm/ecaresnet26t", {"layers": (1, 1, 1, 1)}, 5),
    ("timm/skresnet18", {"layers": (1, 1, 1, 1)}, 5),
    ("timm/resnest14d", {}, 5),
    ("timm/resnetblur18", {"layers": (1, 1, 1, 1)}, 1),
    ("timm/res2net50_26w_4s", {"layers": (1, 1, 1, 1)}, 1),
    ("timm/tf_efficientnet_b0", {}, 17),
    ("timm/efficientnet_lite0", {}, 1),
    ("timm/mobilenetv3_small_050", {}, 10),
    ("timm/tf_mobilenetv3_small_minimal_100", {}, 1),
    ("timm/mobilenetv4_conv_small_050", {}, 1),
    ("timm/regnetx_002", {}, 1),
    ("timm/regnety_002", {}, 14),
    ("timm/convnext_atto", {"depths": (1, 1, 2, 1)}, 1),
    ("timm/convnextv2_atto", {"depths": (1, 1, 2, 1)}, 6),
    ("timm/hrnet_w18_small", {}, 1),
    ("timm/dla46_c", {}, 1),
    ("timm/repvgg_a0", {"stem_chs": 8}, 1),
    ("timm/ghostnet_100", {}, 8),
    ("timm/densenet121", {"growth_rate": 8, "block_config": (2, 2, 2, 2)}, 1),
    ("timm/dpn48b", {}, 1),
    ("timm/ese_vovnet19b_slim", {}, 5),
    ("timm/cspresnet50", {}, 1),
    ("timm/selecsls42", {}, 1),
    ("timm/hardcorenas_a", {}, 9),
    ("timm/rexnet_100", {}, 14),
    ("timm/nf_resnet26", {}, 1),
    ("timm/fbnetc_100", {}, 1),
    ("timm/mixnet_s", {}, 14),
    ("timm/tinynet_e", {}, 11),
    ("timm/lcnet_050", {}, 3),
    ("timm/spnasnet_100", {}, 1),
    ("timm/focalnet_tiny_srf", {"depths": (1, 1, 1, 1), "embed_dim": 16}, 5),
    ("timm/inception_next_atto", {}, 1),
    ("timm/starnet_s1", {}, 1),
    ("timm/fastvit_t8", {"layers": (1, 1, 1, 1)}, 2),
    ("timm/edgenext_xx_small", {}, 1),
]
SLOW: list[tuple[str, dict[str, Any], int]] = [
    ("tv/resnext50_32x4d", {}, 1),
    ("tv/resnet50", {}, 1),
    ("tv/wide_resnet50_2", {}, 1),
    ("tv/inception_v3", {"init_weights": False, "transform_input": False}, 1),
    ("tv/vgg16", {}, 1),
    ("tv/vgg16_bn", {}, 1),
    ("tv/efficientnet_v2_s", {}, 31),
    ("timm/resnet50_gn", {}, 50),
    ("timm/seresnet50", {}, 17),
    ("timm/seresnextaa101d_32x8d", {}, 34),
    ("timm/efficientnet_b0", {}, 17),
    ("timm/semnasnet_075", {}, 9),
    ("timm/mobilenetv3_large_100", {}, 9),
    ("timm/mobileone_s0", {}, 1),
    ("timm/regnetz_b16", {}, 23),
    ("timm/convnext_atto", {}, 1),
    ("timm/convnextv2_atto", {}, 13),
    ("timm/xception41", {}, 1),
    ("timm/legacy_xception", {}, 1),
    ("timm/dla34", {}, 1),
    ("timm/resnext26ts", {}, 1),
    ("timm/cspdarknet53", {}, 1),
    ("timm/vovnet39a", {}, 1),
    ("timm/inception_v4", {}, 1),
    ("timm/inception_resnet_v2", {}, 1),
    ("timm/poolformer_s12", {}, 25),
    ("timm/nasnetalarge", {}, 1),
    ("timm/pnasnet5large", {}, 1),
    ("timm/nfnet_l0", {}, 13),
    ("timm/eca_nfnet_l0", {}, 13),
    ("timm/dm_nfnet_f0", {}, 13),
    ("timm/nf_resnet50", {}, 1),
    ("timm/fbnetv3_b", {}, 19),
    ("timm/tf_mixnet_s", {}, 14),
    ("timm/repghostnet_050", {}, 8),
    ("timm/rdnet_tiny", {}, 16),
    ("timm/mambaout_femto", {}, 1),
    ("timm/focalnet_tiny_srf", {}, 13),
    ("timm/fastvit_t8", {}, 2),
    ("timm/convmixer_768_32", {}, 1),
]
# One of each kind of forward pass, small: split and concatenated channels, gates, kernels chosen by a gate, responses normalised over the
# map, focal modulation, blocks that were several branches in training, and a head that takes the whole map
USUAL = (
    "tv/mobilenet_v2", "tv/shufflenet_v2_x0_5", "timm/skresnet18", "timm/mobilenetv3_small_050", "timm/densenet121",
    "timm/convnextv2_atto", "timm/dla46_c", "timm/fastvit_t8", "timm/focalnet_tiny_srf", "tv/convnext_tiny",
)  # fmt: skip
NEED_ALIGNED = ("timm/hrnet_w18_small", "timm/dla34", "timm/dla46_c", "timm/seresnextaa101d_32x8d")
# what the head takes whole, where it is not a pooling to one element
MAPS = {"tv/alexnet", "tv/vgg16", "tv/vgg16_bn", "timm/edgenext_xx_small"}


def build(name: str, **arguments: Any) -> nn.Module:
    """A network with random weights and statistics, in evaluation mode and float64."""
    torch.manual_seed(0)
    library, _, model = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "tv":
            models = import_torchvision().models
            if arguments.get("block_setting") == "small":
                sizes = zip((8, 16, 24, 32), (16, 24, 32, None), strict=True)
                arguments["block_setting"] = [models.convnext.CNBlockConfig(a, b, 2) for a, b in sizes]
                network = models.ConvNeXt(num_classes=3, stochastic_depth_prob=0.1, layer_scale=0.5, **arguments)
            else:
                network = models.get_model(model, weights=None, num_classes=3, **arguments)
        elif "embed_dim" in arguments:  # which create_model does not take
            network = import_timm().models.focalnet.FocalNet(num_classes=3, focal_levels=(2, 2, 2, 2), **arguments)
        else:
            network = import_timm().create_model(model, pretrained=False, num_classes=3, **arguments)
    return randomise(network).double().eval()


def randomise(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            if layer.weight is not None:
                nn.init.normal_(layer.weight, 1, 0.2)
                nn.init.normal_(layer.bias, 0, 0.2)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.2)  # what starts at zero would hide the layers behind it
    return network


def image(size: tuple[int, int], images: int = 1) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(images, 3, *size, dtype=torch.float64)


def check(name: str, arguments: dict[str, Any], passes: int) -> None:
    network = build(name, **arguments)
    with captured_once():
        graph = stream(network).graph()
        assert graph.passes == passes
        assert name in MAPS or not any(sink.kind == "map" for sink in graph.sinks)
        first, second = ALIGNED if name in NEED_ALIGNED else ODD
        assert max(errors(network, image(first), tile=STRIPS, barriers="kept")) < TOLERANCE
        assert max(errors(network, image(second, 2), tile=TILES, barriers="spilled")) < TOLERANCE


def label(case: Any) -> str | None:
    return case.replace("/", "-") if isinstance(case, str) else ""


@pytest.mark.parametrize(
    ("name", "arguments", "passes"),
    [of if of[0] in USUAL else pytest.param(*of, marks=pytest.mark.slow) for of in FAST],
    ids=label,
)
def test_networks(name: str, arguments: dict[str, Any], passes: int) -> None:
    """One of each kind in each run, all of them before a release."""
    check(name, arguments, passes)


def check_by_torch_export(name: str, arguments: dict[str, Any]) -> None:
    network, (size, _) = build(name, **arguments), ALIGNED if name in NEED_ALIGNED else ODD
    with captured_once(exported=True):
        assert stream(network).graph().tracer == "torch.export"
        assert max(errors(network, image(size), tile=TILES)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("tv/squeezenet1_1", {}, marks=pytest.mark.slow),
        ("timm/seresnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
    ],
    ids=label,
)
def test_networks_by_torch_export(name: str, arguments: dict[str, Any]) -> None:
    check_by_torch_export(name, arguments)


# torch.export records that their layout in memory was that of several images, and one image is then refused; torch.fx captures them all
GUARDED = {"timm/convnext_atto", "timm/convnextv2_atto", "timm/focalnet_tiny_srf", "timm/edgenext_xx_small", "tv/convnext_tiny"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "arguments", "passes"), FAST, ids=label)
def test_more_networks_by_torch_export(name: str, arguments: dict[str, Any], passes: int) -> None:
    if name in GUARDED:
        with captured(True), pytest.raises(NotStreamableError, match=r"does otherwise with 1 images .*Guard failed: x\.size\(\)\[0\] > 1"):
            stream(build(name, **arguments)).graph()
    else:
        check_by_torch_export(name, arguments)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "arguments", "passes"), SLOW, ids=label)
def test_more_networks(name: str, arguments: dict[str, Any], passes: int) -> None:
    check(name, arguments, passes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "arguments", "passes"), [*FAST, *SLOW], ids=label)
def test_large_odd_images(name: str, arguments: dict[str, Any], passes: int) -> None:
    network = build(name, **arguments)
    size = (160, 224) if name in NEED_ALIGNED else (161, 203)
    assert max(errors(network, image(size), tile=(45, 61))) < TOLERANCE


BARRIERS: list[tuple[str, dict[str, Any]]] = [
    ("timm/seresnet18", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
    ("timm/mobilenetv3_small_050", {}),
    ("timm/convnextv2_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    ("timm/resnet50_gn", {"layers": (1, 1, 1, 1), "channels": (32, 32, 32, 32)}),
    ("timm/ese_vovnet19b_slim", {}),
]


@pytest.mark.parametrize(("name", "arguments"), BARRIERS, ids=label)
def test_barriers(name: str, arguments: dict[str, Any]) -> None:
    network = build(name, **arguments)
    with captured_once():
        for barriers in ("kept", "spilled", "regenerated"):
            assert max(errors(network, image((71, 83)), tile=(33, 45), barriers=barriers)) < TOLERANCE, barriers


# ---------------------------------------------------------------------------------------------------------------------- how they run


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("timm/convnext_atto", {"depths": (1, 1, 1, 1)}),
        ("timm/nf_resnet26", {"drop_rate": 0.0}),
        ("tv/squeezenet1_1", {"dropout": 0.0}),
    ],
    ids=label,
)
def test_training_mode_without_normalisation_over_images(name: str, arguments: dict[str, Any]) -> None:
    network = build(name, **arguments).train()
    assert max(errors(network, image((64, 75), 2), tile=(32, 40))) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("tv/resnet18", {}), ("timm/seresnet18", {"channels": (16, 24, 32, 48)}), ("tv/mobilenet_v2", {"width_mult": 0.35})],
    ids=label,
)
def test_frozen_stages(name: str, arguments: dict[str, Any]) -> None:
    network = build(name, **arguments)
    parameters = list(network.named_parameters())
    for index, (_, parameter) in enumerate(parameters):
        parameter.requires_grad_(index % 3 == 0 or index > 0.8 * len(parameters))
    trained = {name for name, parameter in parameters if parameter.requires_grad}
    twin = copy.deepcopy(network)
    pixels = image((75, 91), 2)
    stream(network, tile=TILES)(pixels).square().sum().backward()
    twin(pixels).square().sum().backward()
    for (path, found), (_, expected) in zip(network.named_parameters(), twin.named_parameters(), strict=True):
        assert (found.grad is not None) == (expected.grad is not None) == (path in trained)
        if found.grad is not None and expected.grad is not None:
            assert (found.grad - expected.grad).abs().max() <= TOLERANCE * max(expected.grad.abs().max(), 1e-3)


@pytest.mark.parametrize("name", ["tv/resnet18", "timm/mobilenetv3_small_050", "timm/convnext_atto"])
def test_single_precision(name: str) -> None:
    network, pixels = build(name), image((97, 75))
    exact = gradients(network, pixels, [], torch.ones(1, 3, dtype=torch.float64))
    network.float()
    found = gradients(stream(network, tile=TILES), pixels.float(), [], torch.ones(1, 3))
    assert (found[0] - exact[0]).norm() <= 1e-4 * exact[0].norm()
    assert (found[1] - exact[1]).norm() <= 0.05 * exact[1].norm()  # where a ReLU or maximum is a tie


# -------------------------------------------------------------------------------------------------------------------------- refusals

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("timm/vit_base_patch16_224", {"depth": 1}, r"VisionTransformer cannot be streamed: blocks\.0\.attn\.\w+: attention .*patch embedding"),
    ("timm/vit_tiny_patch16_224", {"depth": 1}, r"VisionTransformer cannot be streamed: blocks\.0\.attn\.\w+: attention .*patch embedding"),
    ("timm/deit_small_patch16_224", {"depth": 1}, r"VisionTransformer cannot be streamed: blocks\.0\.attn.*by PatchEncoder"),
    ("timm/pvt_v2_b0", {}, r"PyramidVisionTransformerV2 cannot be streamed: stages\.0.*patch embedding"),
    ("timm/swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, r"layers\.0\.blocks\.0.*attention in layers\.0\.blocks\.0\.attn"),
    ("timm/maxvit_nano_rw_256", {}, r"stages\.0\.blocks\.0\.attn_block.*attention in stages\.0\.blocks\.0\.attn"),
    ("timm/davit_tiny", {"depths": (1, 1, 1, 1)}, r"DaVit cannot be streamed: stages\.0\.blocks\.0.*attention in stages\.0\.blocks\.0"),
    ("timm/botnet26t_256", {}, r"stages\.2\.1\.add.* \(stages\.2\.1\.self_attn\.reshape: .*attention in stages\.2\.1\.self_attn"),
    ("timm/halonet26t", {}, r"stages\.2\.1\.add.* \(stages\.2\.1\.self_attn\.reshape: "),
    ("timm/lambda_resnet26t", {}, r"stages\.2\.1\.add.* \(stages\.2\.1\.self_attn\.reshape: "),
    ("timm/gcresnet33ts", {}, r"stages\.0\.0\.attn\.reshape"),
    ("timm/tresnet_m", {"layers": [1, 1, 1, 1]}, r"TResNet cannot be streamed: body\.s2d\.view: a new shape of the map that does not keep"),
]  # fmt: skip
# refused for the same reason by the same code as the one before them
REFUSED_ALIKE = ("timm/vit_base_patch16_224", "timm/lambda_resnet26t")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [pytest.param(*of, marks=pytest.mark.slow) if of[0] in REFUSED_ALIKE else of for of in REFUSED],
    ids=label,
)
def test_refusals_name_the_layer_and_the_reason(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NotStreamableError, match=message):
        stream(build(name, **arguments))


def test_training_mode_is_refused() -> None:
    with pytest.raises(NotStreamableError, match=r"bn1: BatchNorm in training mode.*call .eval\(\)"):
        stream(build("tv/resnet18").train())


def test_sizes_that_the_network_does_not_fit_are_refused_as_torch_refuses_them() -> None:
    network = build("timm/dla46_c")
    with pytest.raises(RegionError, match="joins maps of"):
        stream(network)(image((75, 91)))


# ---------------------------------------------------------------------------------------------------------- captured by torch.export


class Thick(nn.Module):
    """Looks at the image's size, which torch.fx cannot follow, and is in place where it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.gate, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 3, padding="same")
        self.register_buffer("scale", torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 32:
            x = x * 2
        x = nn.functional.silu(self.norm(self.first(x)), inplace=True) * self.scale
        x = x * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(x, 1)))
        x = nn.functional.leaky_relu_(self.last(nn.functional.max_pool2d(x, 3, 2, 1)), 0.1).clamp(-3, 3)
        x = torch.cat([x[:, :2], x.chunk(2, 1)[1].add(1)], 1)
        return x.mean((2, 3)) if x.shape[2] > 4 else x.amax((2, 3))


@pytest.fixture
def thick() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Thick()).double().eval()


def exported(graph: Graph) -> bool:
    return any("aten" in node.name or "_guards" in node.name for node in graph.lowered)


def test_export_where_fx_fails(thick: nn.Module) -> None:
    with captured_once():
        assert exported(stream(thick).graph())
        for size, images, tile in itertools.product([(49, 61), (64, 96)], [1, 2], [STRIPS, TILES]):
            assert max(errors(thick, image(size, images), tile=tile)) < TOLERANCE, (size, images, tile)


def test_an_image_for_which_the_code_would_be_other_is_refused(thick: nn.Module) -> None:
    streamed = stream(thick)
    with pytest.raises(RegionError, match=r"recorded by torch.export, and it does otherwise .* 20 x 40 px"):
        streamed(image((20, 40)))


def test_code_that_depends_on_the_number_of_images_is_refused() -> None:
    class Lonely(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len(x) > 1 else -super().forward(x)

    with pytest.raises(NotStreamableError, match="does otherwise with 1 images"):
        stream(Lonely(3, 4, 3))


def test_weights_and_modes_of_an_exported_network_are_read_at_every_call(thick: nn.Module) -> None:
    streamed, pixels = stream(thick, tile=TILES), image((50, 70), 2)
    with torch.no_grad():
        thick.first.weight.mul_(2)
        thick.norm.running_mean.add_(1)
        thick.scale.add_(1)
    assert (streamed(pixels) - thick(pixels)).abs().max() < TOLERANCE
    thick.norm.train()
    twin = copy.deepcopy(thick)
    assert (streamed(pixels) - twin(pixels)).abs().max() < TOLERANCE  # the head normalises
    assert all(torch.allclose(found, expected) for found, expected in zip(thick.buffers(), twin.buffers(), strict=True))
    thick.norm.eval()
    thick.first.weight.requires_grad_(False)
    streamed(pixels).sum().backward()
    assert thick.first.weight.grad is None
    assert thick.last.weight.grad is not None


def test_hooks_on_an_exported_network_raise(thick: nn.Module) -> None:
    streamed = stream(thick, tile=TILES)
    for path in ("first", "norm", "last", ""):
        handle = thick.get_submodule(path).register_forward_hook(lambda *_: None)
        with pytest.raises(NotStreamableError, match=f"{path or 'Thick'} has a hook"):
            streamed(image((50, 70)))
        handle.remove()
    assert (streamed(image((50, 70))) - thick(image((50, 70)))).abs().max() < TOLERANCE


@pytest.mark.slow
def test_mobilevit_whose_attention_is_left_to_the_head() -> None:
    network = build("timm/mobilevit_xxs")
    assert max(errors(network, image((128, 192)), tile=(45, 61))) < TOLERANCE
    with pytest.raises(RegionError, match="does otherwise"):
        stream(network)(image((75, 91)))
