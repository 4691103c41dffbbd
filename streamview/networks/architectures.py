"""From a name to a network without weights: the registry, timm, torchvision, or a function of the user's own.

A name in a card may come with a download, so it only ever chooses among definitions that are installed; a function is imported for the
caller's own words alone. Nothing is downloaded.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from streamview_models import ALIASES, MODELS
from torch import Tensor, nn
from torch.func import functional_call

from streamview.errors import ModelError
from streamview.networks.checkpoints import first_line

__all__ = ["Architecture", "build", "count_outputs", "find_architecture", "find_factory", "import_library", "is_factory", "near"]

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_INSTALL = "pip install 'streamview[models]'"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# of WSInfer's own package, which changed them; their safetensors fit no other definition
_WSINFER_ONLY = ("preactresnet34", "vgg16mod", "vgg16_mod", "inceptionv4nobn", "inception_v4nobn")
_OPERATOR_MISSING = "operator torchvision::"
_COUNTS = ("num_classes", "outputs")
_SIDES = (224, 256, 384, 1024, 4096, 16384)


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """A definition that can be built.

    Parameters
    ----------
    name
        As the user or the card wrote it.
    make
        Number of outputs -> module with random weights; None asks for the definition's own number.
    sized
        Whether the number of outputs can be chosen.
    mean, std
        Of the red, green and blue of pixels scaled to 0..1 that the definition was trained with elsewhere; None: not known.
    side
        Side of the images it was trained with elsewhere, px; None: not known.
    """

    name: str
    make: Callable[[int | None], Any]
    sized: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    side: int | None = None


def is_factory(name: str) -> bool:
    """Whether a name is of the form ``package.module:function``."""
    return _FACTORY.fullmatch(name) is not None and name.partition(":")[0] not in ("timm", "torchvision")


def find_architecture(name: str, file: str | None) -> Architecture:
    """Find a definition by its name: an id of the registry, ``timm:NAME``, ``torchvision:NAME``, or a bare name of timm (WSInfer's).

    Parameters
    ----------
    name
        The name.
    file
        The card that it stands in; None: the user's own words.

    Raises
    ------
    ModelError
        There is none of this name, its library is not installed, or a card names code.
    """
    found = f"model {name!r}" if file is None else f"{file}: architecture is {name!r}"
    if name in MODELS:
        registered = MODELS[name]
        return Architecture(name, lambda outputs: registered() if outputs is None else registered(outputs))
    library, colon, bare = name.partition(":")
    if colon and library == "torchvision":
        return _from_torchvision(name, bare, found)
    if colon and library == "timm":
        return _from_timm(name, bare, found, _import("timm", found))
    if is_factory(name):
        remedy = f"where you trust it, name it yourself: -m {name} --weights FILE --card card.json"
        raise ModelError(f"{found}, a function to import, which a card may not choose: it may come from a download; {remedy}")
    if name.lower() in _WSINFER_ONLY:
        remedy = "give the definition yourself: -m package.module:function --weights FILE --card FILE"
        raise ModelError(f"{found}, a variant of WSInfer's own that neither timm nor streamview defines; {remedy}")
    expected = f"expected one of {', '.join(MODELS)}, or timm:NAME or torchvision:NAME"
    if not re.fullmatch(r"[\w.]+", name):
        raise ModelError(f"{found}{near(name)}; {expected}")
    timm = _import("timm", f"{found}{near(name)}; {expected}")
    if not timm.is_model(name):
        raise ModelError(f"{found}{near(name)}; {expected}")
    return _from_timm(name, name, found, timm)


def find_factory(name: str) -> Architecture:
    """Import a function of the user's own, ``package.module:function``; its errors are not caught.

    Raises
    ------
    ModelError
        There is no such module or function, or it cannot be called with nothing but the number of outputs.
    """
    home, _, function = name.partition(":")
    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{home}.".startswith(f"{error.name}."):
            raise
        raise ModelError(f"model {name!r}: no module {error.name!r} is found; install it, or run with PYTHONPATH=its folder") from None
    make = getattr(module, function, None)
    if not callable(make):
        raise ModelError(f"model {name!r}: {home} has no function {function!r}{_near(function, dir(module))}; check its name")
    parameters = inspect.signature(make).parameters
    count = next((key for key in _COUNTS if key in parameters), None)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [key for key, p in parameters.items() if p.default is p.empty and p.kind not in variable and key != count]
    if needed:
        remedy = "give them defaults, or write a function that needs none"
        raise ModelError(f"model {name!r}: the function needs {', '.join(needed)}, but only num_classes or outputs is given; {remedy}")

    def build_module(outputs: int | None) -> Any:
        if count is None:
            return make()
        if outputs is None and parameters[count].default is inspect.Parameter.empty:
            raise ModelError(f"model {name!r}: how many outputs it has is not known; give a card that names them: --card FILE")
        return make() if outputs is None else make(**{count: outputs})

    return Architecture(name, build_module, sized=count is not None)


def build(architecture: Architecture, outputs: int | None, seed: int) -> nn.Module:
    """Build a network with seeded random weights, in eval mode, on the CPU; the global random state stays as it was.

    Raises
    ------
    ModelError
        What was built is no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = architecture.make(outputs)
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {architecture.name!r}: the function returned a {type(module).__name__}; expected a torch.nn.Module")
    return module.cpu().eval()


def count_outputs(module: nn.Module, name: str) -> int:
    """How many values a network answers for an RGB image: its shapes on the ``meta`` device, or one small image where that fails.

    Raises
    ------
    ModelError
        It cannot be run on an RGB image, or does not answer (N, outputs).
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    meta = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
    error: Exception | None = None
    for side, device in [*((side, "meta") for side in _SIDES), (_SIDES[0], "cpu")]:
        tensors = meta if device == "meta" else {}
        try:
            with torch.no_grad():
                answer = functional_call(module, tensors, (torch.zeros(1, 3, side, side, device=device),))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as problem:
            error = problem
            continue
        return _count(answer, name)
    reason = "" if error is None else f" ({first_line(error)})"
    raise ModelError(f"model {name!r} cannot be run on an RGB image{reason}; expected a module that takes one tensor (N, 3, H, W)")


def near(name: str) -> str:
    """Ids of the registry that look like a name, in brackets, or nothing."""
    return _near(name.lower(), [*MODELS, *ALIASES])


def _near(name: str, known: list[str]) -> str:
    found = difflib.get_close_matches(name, known)
    return f" (near: {', '.join(found)})" if found else ""


def _count(answer: object, name: str) -> int:
    if isinstance(answer, Tensor) and answer.dim() == 2 and answer.shape[0] == 1:
        return int(answer.shape[1])
    what = f"a tensor of {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    raise ModelError(f"model {name!r} answers {what} for one image; expected (1, outputs): wrap it so that it returns its logits alone")


def import_library(library: str) -> ModuleType:
    """Import timm or torchvision, also where torchvision's compiled operators do not load beside this torch.

    There are no wheels of torchvision for every build of torch. Its networks need none of its operators, but the import fails where it
    registers kernels for two that do not exist: so these are declared, without any code, where it fails for just that reason. A network
    that called one would end in torch's "not implemented".

    Raises
    ------
    ImportError, RuntimeError, OSError
        The library is not installed, or cannot be imported for another reason.
    """
    try:
        return importlib.import_module(library)
    except RuntimeError as error:
        if _OPERATOR_MISSING not in str(error):
            raise
        _declare_operators()
    return importlib.import_module(library)


@functools.cache  # they last as long as the library object does
def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _import(library: str, found: str) -> ModuleType:
    try:
        return import_library(library)
    except ModuleNotFoundError as error:
        raise ModelError(f"{found}; {error.name}, which may define it, is not installed: {_INSTALL}") from None
    except (ImportError, RuntimeError, OSError) as error:
        remedy = f"install the version that fits torch {torch.__version__}"
        raise ModelError(f"{found}; {library}, which may define it, cannot be imported ({first_line(error)}): {remedy}") from None


def _from_timm(name: str, bare: str, found: str, timm: ModuleType) -> Architecture:
    # names with a source ("hf-hub:...", "local-dir:...") would download or read elsewhere
    if not re.fullmatch(r"[\w.]+", bare) or not timm.is_model(bare):
        raise ModelError(f"{found}, which timm does not know{_near(bare, timm.list_models())}; see timm.list_models()")
    config: Mapping[str, Any] = {}
    stated = timm.models.get_pretrained_cfg(bare)
    if stated is not None:
        config = stated.to_dict()

    def make(outputs: int | None) -> Any:
        return timm.create_model(bare, pretrained=False, **({} if outputs is None else {"num_classes": outputs}))

    mean, std = config.get("mean") or _IMAGENET[0], config.get("std") or _IMAGENET[1]
    return Architecture(name, make, mean=tuple(mean), std=tuple(std), side=(config.get("input_size") or (3, None))[-1])


def _from_torchvision(name: str, bare: str, found: str) -> Architecture:
    models = _import("torchvision", found).models
    known = models.list_models(module=models)
    if bare not in known:
        raise ModelError(f"{found}, which torchvision does not have for images{_near(bare, known)}; see torchvision.models.list_models()")
    # these two warn unless told how to draw their weights
    drawn = {"init_weights": True} if bare in ("googlenet", "inception_v3") else {}

    def make(outputs: int | None) -> Any:
        return models.get_model(bare, weights=None, **drawn, **({} if outputs is None else {"num_classes": outputs}))

    return Architecture(name, make, mean=_IMAGENET[0], std=_IMAGENET[1], side=224)
