"""What the caller's words mean: a definition, the card that goes with it, and where its weights lie."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamview_models import ALIASES, MODELS, folder

from streamview.errors import ModelError
from streamview.networks.architectures import Architecture, find_architecture, find_factory, is_factory, near
from streamview.networks.cards import ModelCard, assumed_document, parse_card, read_document
from streamview.networks.checkpoints import CONVERT, archive_kind, refuse_torchscript

__all__ = ["SCALED", "STATE", "Choice", "assume", "choose", "find_weights", "read_card"]

# the second of each is WSInfer's
_CARDS, _WEIGHTS = ("card.json", "config.json"), ("weights.safetensors", "model.safetensors")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_FORMS = (
    f"a folder that holds {_CARDS[0]} and {_WEIGHTS[0]}, timm:NAME, torchvision:NAME, package.module:function, "
    "or a .pt2 file of torch.export"
)

SCALED = "pixels are scaled to 0..1"
"""What a note says of pixels where nothing is known of their normalisation."""

STATE = "state what is true with card=FILE"
"""What a note advises."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What the caller's words mean.

    Parameters
    ----------
    architecture
        The definition.
    name
        What the model is called where its card does not say.
    document
        The card as JSON; None: there is none, and what is needed is assumed.
    file
        What messages call the card.
    home
        Folder where its own weights would lie; None: it has none.
    bound
        Whether the card is of these weights, so that its classes are theirs.
    notes
        As in `Model`.
    """

    architecture: Architecture
    name: str
    document: dict[str, Any] | None
    file: str
    home: Path | None
    bound: bool
    notes: tuple[str, ...] = ()


def read_card(choice: Choice, *, untrained: bool) -> ModelCard:
    """Check the card of a choice that has one; with random weights it says so."""
    assert choice.document is not None
    stated = dict(choice.document)
    ours = stated.get("streamview", {})
    if untrained and isinstance(ours, dict):
        stated["streamview"] = {**ours, "trained": False}
    return parse_card(stated, name=choice.name, file=choice.file)


def choose(text: str, card: str | os.PathLike[str] | None, *, other_weights: bool) -> Choice:
    """Find out what a spec and a card mean.

    Parameters
    ----------
    text
        As for `load_model`.
    card
        File of the card that the caller gave.
    other_weights
        Whether the caller gave weights, of which a definition's own card then knows nothing.

    Raises
    ------
    ModelError
        The words mean nothing, or the card is wrong.
    """
    given = None if card is None else read_document(Path(card))
    name = ALIASES.get(text, text)
    library = name.partition(":")[0]
    if name in MODELS:
        # the members of a family share their folder's card
        home, document = folder(name), {**read_document(folder(name) / _CARDS[0]), "architecture": name}
        choice = Choice(find_architecture(name, None), name, document, str(home / _CARDS[0]), home, bound=not other_weights)
    elif library != name and library in ("timm", "torchvision"):
        choice = Choice(find_architecture(name, None), name, None, "the default card", None, bound=False)
    elif is_factory(name):
        choice = Choice(find_factory(name), name, None, "the default card", None, bound=False)
    elif Path(text).is_dir():
        return _choose_folder(Path(text), given, card)
    else:
        raise _unknown(text)
    if given is None or card is None:
        return choice
    label = given.get("architecture", name)
    notes = () if label in (name, name.removeprefix(f"{library}:")) else (f"{os.fspath(card)} is for {label!r}, the network is {name}",)
    return replace(choice, document={**given, "architecture": name}, file=os.fspath(card), bound=True, notes=notes)


def _choose_folder(home: Path, given: dict[str, Any] | None, card: str | os.PathLike[str] | None) -> Choice:
    file = home / _CARDS[0]
    if card is not None:
        file = Path(card)
    elif not file.exists() and (home / _CARDS[1]).exists():
        file = home / _CARDS[1]
    document = read_document(file) if given is None else given
    name = home.resolve().name
    architecture = find_architecture(parse_card(document, name=name, file=str(file)).architecture, str(file))
    return Choice(architecture, name, document, str(file), home, bound=True)


def _unknown(text: str) -> ModelError:
    path = Path(text)
    if not path.is_file():
        return ModelError(f"model {text!r} is unknown{near(text)}; expected one of {', '.join(MODELS)}, or {_FORMS}")
    if archive_kind(path) == "torchscript":
        return refuse_torchscript(path)
    if path.suffix in (*_PICKLED, ".safetensors"):
        return ModelError(f"model {text!r} is a file of weights alone; name the network too: -m timm:NAME --weights {text}")
    return ModelError(f"model {text!r} is a file; expected one of {', '.join(MODELS)}, or {_FORMS}")


def find_weights(choice: Choice) -> Path:
    """Find the weights of a folder. A pickle in it was not named by the caller, so it is not opened."""
    home = choice.home
    assert home is not None
    for name in _WEIGHTS:
        if (home / name).exists():
            return home / name
    pickled = sorted(file.name for file in home.iterdir() if file.suffix in _PICKLED)
    if pickled and all(archive_kind(home / name) == "torchscript" for name in pickled):
        raise refuse_torchscript(home / pickled[0])
    if pickled:
        remedy = f"where you trust its origin, name it (--weights {home / pickled[0]}) or {CONVERT}"
        raise ModelError(f"{home} holds {pickled[0]}, a pickle that can run code when read, and no {_WEIGHTS[0]}; {remedy}")
    if read_card(choice, untrained=False).trained:
        remedy = f"expected the weights beside {_CARDS[0]}, or give --untrained for random ones"
        raise ModelError(f"{home / _WEIGHTS[0]} does not exist; {remedy}")
    raise ModelError(f"model {choice.name!r} comes without trained weights; give --untrained to use seeded random ones, or --weights FILE")


def assume(choice: Choice, outputs: int) -> Choice:
    """Complete a choice whose card is not of these weights, or that has none, and note what is assumed."""
    if choice.bound:
        return choice
    names = [str(index) for index in range(outputs)]
    known = choice.architecture
    if choice.document is None:
        document = assumed_document(choice.name, names, mean=known.mean, std=known.std, side=known.side)
        said = f"classes are numbered, the um/px is unknown, {'pixels are normalised as for ImageNet' if known.mean else SCALED}"
    else:
        # what the definition's own card says of its classes and pixels, without what it says of other weights
        ours = {key: value for key, value in choice.document.get("streamview", {}).items() if key == "task"}
        document = {**choice.document, "streamview": ours}
        if outputs != document["num_classes"]:
            document |= {"num_classes": outputs, "class_names": names}
        said = f"classes, um/px and normalisation are those of {choice.name}'s own"
    return replace(choice, document=document, notes=(*choice.notes, f"no card was given: {said}; {STATE}"))
