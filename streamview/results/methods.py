"""How a prediction is explained: the name of a method and its few parameters, as one value that a result carries."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

from streamview.errors import StreamviewError

__all__ = ["GRADIENT", "METHOD_TITLES", "PARAMETERS", "ExplanationMethod", "MethodName"]

MethodName = Literal["gradient", "smoothgrad", "integrated-gradients", "grad-cam", "occlusion"]
PARAMETERS: Mapping[MethodName, Mapping[str, type]] = {
    "gradient": {},
    "smoothgrad": {"samples": int, "noise": float, "seed": int},
    "integrated-gradients": {"steps": int, "baseline": str},
    "grad-cam": {},
    "occlusion": {"patch": int, "stride": int},
}
"""The parameters that each method has."""
METHOD_TITLES: Mapping[MethodName, str] = {
    "gradient": "Gradient",
    "smoothgrad": "SmoothGrad",
    "integrated-gradients": "Integrated gradients",
    "grad-cam": "Grad-CAM",
    "occlusion": "Occlusion",
}
"""What each is called."""
_MOST = 10_000  # samples or steps: more is a slip of the finger


@dataclass(frozen=True, slots=True)
class ExplanationMethod:
    """How a prediction is explained. Each method uses the parameters that `PARAMETERS` names; the others stay at their defaults.

    Parameters
    ----------
    name
        ``"gradient"`` (Simonyan et al., 2014, https://arxiv.org/abs/1312.6034), ``"smoothgrad"`` (Smilkov et al., 2017,
        https://arxiv.org/abs/1706.03825), ``"integrated-gradients"`` (Sundararajan et al., 2017, https://arxiv.org/abs/1703.01365),
        ``"grad-cam"`` (Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391) or ``"occlusion"`` (Zeiler and Fergus, 2014,
        https://arxiv.org/abs/1311.2901).
    samples
        Noisy copies of the region, 1 or more.
    noise
        Standard deviation of the noise, as a share of the range of pixel values (0..255).
    seed
        Of the noise.
    steps
        Points of the Gauss-Legendre quadrature on the path from the baseline to the region.
    baseline
        Where the path begins: ``"glass"``, the slide's background, or ``"black"``.
    patch
        Side in px, on the network's grid, of the square of glass that hides a part.
    stride
        Distance in px from one square to the next; 0: `patch`, side by side.

    Raises
    ------
    StreamviewError
        When the method is unknown, or a parameter has no sense.

    Examples
    --------
    >>> import streamview
    >>> method = streamview.ExplanationMethod("smoothgrad", samples=8)
    >>> str(method)
    'smoothgrad:samples=8,noise=0.15,seed=0'
    >>> streamview.ExplanationMethod.parse("smoothgrad:samples=8") == method
    True
    """

    name: MethodName = "gradient"
    samples: int = 16
    noise: float = 0.15
    seed: int = 0
    steps: int = 32
    baseline: Literal["glass", "black"] = "glass"
    patch: int = 256
    stride: int = 0

    def __post_init__(self) -> None:
        if self.name not in get_args(MethodName):
            raise StreamviewError(f"method {self.name!r} is unknown: expected {', '.join(get_args(MethodName))}")
        if self.stride == 0:
            object.__setattr__(self, "stride", self.patch)
        for parameter, lowest, highest in (
            ("samples", 1, _MOST), ("seed", 0, 2**63 - 1), ("steps", 1, _MOST), ("patch", 1, 2**31), ("stride", 1, self.patch),
        ):  # fmt: skip
            number = getattr(self, parameter)
            if not isinstance(number, int) or isinstance(number, bool) or not lowest <= number <= highest:
                bounds = f"{lowest} to the patch's {highest} px" if parameter == "stride" else f"{lowest} to {highest}"
                raise StreamviewError(f"method {self.name}: {parameter} {number}: expected a whole number, {bounds}")
        if not (math.isfinite(self.noise) and 0 < self.noise <= 1):
            raise StreamviewError(f"method {self.name}: noise {self.noise:g}: expected a share of the range of pixel values, above 0, to 1")
        if self.baseline not in ("glass", "black"):
            raise StreamviewError(f"method {self.name}: baseline {self.baseline!r}: expected glass or black")
        usual = {name: field.default for name, field in type(self).__dataclass_fields__.items()} | {"stride": self.patch}
        for parameter in usual.keys() - PARAMETERS[self.name].keys() - {"name"}:
            if getattr(self, parameter) != usual[parameter]:
                raise StreamviewError(f"method {self.name}: has no parameter {parameter}; it has {_parameters(self.name)}")

    @property
    def title(self) -> str:
        """The method's name for people."""
        return METHOD_TITLES[self.name]

    @property
    def tag(self) -> str:
        """For file names: the name and eight digits of a hash of the parameters; empty for the gradient."""
        return "" if self.name == "gradient" else f"{self.name}-{hashlib.sha256(str(self).encode()).hexdigest()[:8]}"

    @property
    def described(self) -> str:
        """Title and parameters for people: ``"SmoothGrad (samples 16, noise 0.15, seed 0)"``."""
        values = ", ".join(f"{name} {_text(getattr(self, name))}" for name in PARAMETERS[self.name])
        return f"{self.title} ({values})" if values else self.title

    def __str__(self) -> str:
        """As `parse` reads it, with every parameter of the method."""
        values = ",".join(f"{name}={_text(getattr(self, name))}" for name in PARAMETERS[self.name])
        return f"{self.name}:{values}" if values else self.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``NAME`` or ``NAME:PARAMETER=VALUE,...``.

        Raises
        ------
        StreamviewError
            When it is none, as for the class.
        """
        name, _, rest = text.strip().partition(":")
        known = PARAMETERS.get(name)  # type: ignore[call-overload]
        if known is None:
            raise StreamviewError(f"method {text}: expected {', '.join(PARAMETERS)}, with parameters as in smoothgrad:samples=8,noise=0.1")
        values: dict[str, object] = {}
        for part in filter(None, rest.split(",")):
            parameter, _, value = (piece.strip() for piece in part.partition("="))
            if parameter not in known:
                raise StreamviewError(f"method {text}: {name} has no parameter {parameter!r}; it has {_parameters(name)}")
            try:
                values[parameter] = known[parameter](value)
            except ValueError:
                expected = "a whole number" if known[parameter] is int else "a number"
                raise StreamviewError(f"method {text}: {parameter} {value!r}: expected {expected}") from None
        return cls(name, **values)  # type: ignore[arg-type]


def _parameters(name: str) -> str:
    """The parameters of a method in words."""
    return ", ".join(PARAMETERS[name]) or "none"  # type: ignore[index]


def _text(value: object) -> str:
    """The shortest text that reads as the same value."""
    return repr(value) if isinstance(value, float) else str(value)


GRADIENT = ExplanationMethod()
"""The method unless another is named."""
