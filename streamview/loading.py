"""Networks from the registry or from a folder, with their card and a hash of their weights.

A folder holds ``card.json`` and ``weights.safetensors``, under these names only: a card cannot point elsewhere. Pickled weights
(``.pt``, ``.pth``, ``.bin``) can run code when they are read, so they never are.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from streamview_models import ALIASES, MODELS, folder
from torch import Tensor, nn

from streamview.cards import ModelCard, parse_card, read_document
from streamview.errors import ModelError

__all__ = ["Model", "load_card", "load_model"]

_CARD, _WEIGHTS = "card.json", "weights.safetensors"
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_CONVERT = "where you trust its origin, convert it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A network ready to answer, and what is known of it.

    Parameters
    ----------
    module
        Maps normalised (N, 3, H, W) float32 to (N, outputs). In eval mode, parameters frozen (``requires_grad`` False: saliency
        needs the gradient of the input alone), weights in channels_last memory format, on the CPU.
    card
        What it expects and answers.
    sha256
        Hex digest of the weights file; of names, types, shapes and values of the state where the weights are random.
    """

    module: nn.Module
    card: ModelCard
    sha256: str


def load_card(spec: str | os.PathLike[str], *, untrained: bool = False) -> ModelCard:
    """Read the card of a model without its weights.

    Parameters
    ----------
    spec
        Id or bare name of a network of ``streamview_models``, or a folder.
    untrained
        The card of the network with random weights: ``trained`` is False.

    Raises
    ------
    ModelError
        The model is unknown, its card is wrong, or the card's architecture is no network of the registry.
    """
    home, name = _locate(spec)
    document = read_document(home / _CARD)
    if name in MODELS:
        # the members of a family share their folder's card
        document["architecture"] = name
    if untrained and isinstance(document.setdefault("streamview", {}), dict):
        document["streamview"]["trained"] = False
    card = parse_card(document, name=name, file=str(home / _CARD))
    if card.architecture not in MODELS:
        found = f"{home / _CARD}: architecture is {card.architecture!r}"
        raise ModelError(f"{found}{_near(card.architecture)}; expected one of {', '.join(MODELS)}")
    return card


def load_model(spec: str | os.PathLike[str], *, untrained: bool = False, seed: int = 0) -> Model:
    """Load a network with its trained weights, or with seeded random ones.

    Parameters
    ----------
    spec
        Id or bare name of a network of ``streamview_models`` ("demo", "camelyon17"), or a folder with ``card.json`` and
        ``weights.safetensors``; an id wins over a folder of the same name in the working folder, which is written ``./demo``.
    untrained
        Ignore trained weights and draw random ones; the card then says ``trained=False``. Needed for definitions without weights.
    seed
        Of the random weights: the same seed gives the same weights. The global random state stays as it was.

    Raises
    ------
    ModelError
        The model is unknown, its card is wrong, its weights are missing, pickled, damaged, do not fit the network, or are not finite.
    """
    card = load_card(spec, untrained=untrained)
    home, _ = _locate(spec)
    build = MODELS[card.architecture]
    if untrained:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            module = build(len(card.class_names))
        sha256 = _state_digest(module)
    else:
        state, sha256 = _read_weights(home, card)
        with torch.device("meta"):
            module = build(len(card.class_names))
        _check_fit(module.state_dict(), state, home / _WEIGHTS)
        module.load_state_dict(state, assign=True)
        module.float()
    module.eval().requires_grad_(False)
    return Model(module.to(memory_format=torch.channels_last), card, sha256)  # type: ignore[call-overload]


def _locate(spec: str | os.PathLike[str]) -> tuple[Path, str]:
    """Return the model's folder, and its id or the folder's name."""
    text = os.fspath(spec)
    name = ALIASES.get(text, text)
    if name in MODELS:
        return folder(name), name
    path = Path(text)
    if path.is_dir():
        return path, path.resolve().name
    found = "is a file" if path.is_file() else f"is unknown{_near(text)}"
    raise ModelError(f"model {text!r} {found}; expected one of {', '.join(MODELS)}, or a folder that holds {_CARD} and {_WEIGHTS}")


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), [*MODELS, *ALIASES])
    return f" (near: {', '.join(near)})" if near else ""


def _read_weights(home: Path, card: ModelCard) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of the weights file and the digest of the very bytes they came from."""
    path = home / _WEIGHTS
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        pickled = sorted(file.name for file in home.iterdir() if file.suffix in _PICKLED)
        if pickled:
            raise ModelError(f"{home} holds {pickled[0]}, a pickle that can run code when read, and no {_WEIGHTS}; {_CONVERT}") from None
        if card.trained:
            raise ModelError(f"{path} does not exist; expected the weights beside {_CARD}, or give --untrained for random ones") from None
        raise ModelError(f"model {card.name!r} comes without trained weights; give --untrained to use seeded random ones") from None
    # torch.save writes a zip archive or, formerly, a bare pickle
    if data.startswith((b"PK\x03\x04", b"\x80")):
        raise ModelError(f"{path} is a pickle that can run code when read, so it was not opened; {_CONVERT}")
    try:
        state = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); copy or convert it again") from None
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            found = f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values of {key} are NaN or infinite"
            raise ModelError(f"{path}: {found}; expected finite weights: export them again")
    return state, hashlib.sha256(data).hexdigest()


def _check_fit(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Refuse weights whose names or shapes are not the network's, naming the first of each kind."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    shapes = [key for key in expected if key in found and _form(expected[key]) != _form(found[key])]
    problems = [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    problems += [f"{len(extra)} unexpected, first {extra[0]}"] if extra else []
    if shapes:
        first = shapes[0]
        problems.append(f"{len(shapes)} of another form, first {first}: {_form(found[first])}, expected {_form(expected[first])}")
    if problems:
        listed = "; ".join(problems)
        raise ModelError(f"{path} does not fit its card: {listed}; mend architecture or num_classes in {_CARD}, or the weights")


def _form(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {'float' if tensor.is_floating_point() else 'integer'}"


def _state_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
