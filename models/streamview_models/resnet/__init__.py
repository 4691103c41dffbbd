"""ResNet-18 and ResNet-34 (He et al. 2016), with torchvision's names, so that its weights load as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["BasicBlock", "ResNet", "build"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside an identity, or a strided 1x1 projection where the shape changes.

    Parameters
    ----------
    in_channels, channels
        Channels entering and leaving.
    stride
        Stride of the first convolution, px.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A ResNet of basic blocks for (N, 3, H, W) of any H, W >= 1.

    Parameters
    ----------
    depths
        Blocks of each of the four stages.
    outputs
        Number of classes.
    width
        Channels of the first stage; each later stage doubles them.
    """

    def __init__(self, depths: Sequence[int], outputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, depths[0], 1)
        self.layer2 = _stage(width, 2 * width, depths[1], 2)
        self.layer3 = _stage(2 * width, 4 * width, depths[2], 2)
        self.layer4 = _stage(4 * width, 8 * width, depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(8 * width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to logits (N, outputs)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))  # type: ignore[no-any-return]


def build(outputs: int = 1000, *, width: int = 64, layers: int = 18) -> ResNet:
    """Build ResNet-18 or ResNet-34.

    Parameters
    ----------
    outputs
        Number of classes.
    width
        Channels of the first stage.
    layers
        18 or 34.
    """
    return ResNet({18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[layers], outputs, width)


def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(channels, channels) for _ in range(depth - 1)]
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)
