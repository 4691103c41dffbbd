"""Load a network from a name, a folder or a file: architecture, card and weights."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from streamview_models import MODELS
from torch import nn

from streamview.errors import ModelError
from streamview.networks.architectures import build, count_outputs, is_factory
from streamview.networks.cards import ModelCard, assumed_document, parse_card, read_document
from streamview.networks.checkpoints import Weights, archive_kind, read_weights, split_key
from streamview.networks.exported import read_exported
from streamview.networks.fitting import check_finite, find_fit, learn_outputs
from streamview.networks.hashing import hash_tensors
from streamview.networks.spec import SCALED, STATE, Choice, assume, choose, find_weights, read_card
from streamview.streaming.capture.capture import Captures
from streamview.streaming.run.timing import Timings

__all__ = ["Model", "as_model", "load_card", "load_model"]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded network with its card.

    Parameters
    ----------
    module
        Maps normalised (N, 3, H, W) float32 to (N, outputs). In eval mode, parameters frozen (``requires_grad`` False: saliency needs
        only the gradient of the input), on the CPU, weights in channels_last memory format (``.pt2`` files: as exported).
    card
        Its card.
    sha256
        Hex hash of the weights, independent of their file (`streamview.networks.hashing`); for ``.pt2`` files also of the graph.
    notes
        What was assumed or changed on loading, one sentence each; to be shown, since results depend on it.
    file, file_sha256
        Name of the weights file without its folder, and the hex digest of its bytes; empty if they came from no file.
    captures
        The engine's captures of the network, reused by the next run.
    timings
        Its speeds as far as they were measured, reused by the next forecast.

    Examples
    --------
    >>> import streamview
    >>> model = streamview.load_model("demo")
    >>> isinstance(model, streamview.Model), model.card.class_names
    (True, ('normal', 'lesion'))
    """

    module: nn.Module
    card: ModelCard
    sha256: str
    notes: tuple[str, ...] = ()
    file: str = ""
    file_sha256: str = ""
    captures: Captures = field(default_factory=Captures, init=False, repr=False, compare=False)
    timings: Timings = field(default_factory=Timings, init=False, repr=False, compare=False)


def as_model(model: object) -> Model:
    """Return `model` if it is a `Model`.

    Raises
    ------
    ModelError
        If it is something else, such as a module or a name.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, nn.Module):
        remedy = 'pass the Model, not its module; load your own network with load_model("package.module:function", weights=FILE)'
        raise ModelError(f"model is a torch module ({type(model).__name__}); expected what load_model returns: {remedy}")
    if isinstance(model, str | os.PathLike):
        raise ModelError(f"model {os.fspath(model)!r} is a name; expected what load_model returns: load_model({os.fspath(model)!r})")
    what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    raise ModelError(f"model is {what}; expected what load_model returns, such as load_model('demo')")


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
        The model is unknown or has no card, the card is wrong, or its architecture is not known.
    """
    choice = choose(_spec(spec), None, other_weights=False)
    if choice.document is None:
        raise ModelError(f"model {choice.name!r} has no card of its own; expected one of {', '.join(MODELS)}, or a folder with card.json")
    return read_card(choice, untrained=untrained)


def load_model(
    spec: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    card: str | os.PathLike[str] | None = None,
    untrained: bool = False,
    seed: int = 0,
) -> Model:
    """Load a network with its trained weights, or with seeded random ones. Nothing is downloaded, and code in files is never run.

    Parameters
    ----------
    spec
        One of

        - the id or bare name of a network of ``streamview_models`` ("demo", "camelyon17"); it wins over a folder of the same name in
          the working folder, which is written ``./demo``;
        - a folder with ``card.json`` and ``weights.safetensors``, or WSInfer's ``config.json`` and ``model.safetensors``;
        - ``timm:NAME`` or ``torchvision:NAME``;
        - ``package.module:function``, imported and called with the number of outputs (``num_classes`` or ``outputs``) if it takes one.
          Without ``weights`` it is taken to load its own, and refused if what it returns is random;
        - a ``.pt2`` file of `torch.export.save`, which holds its own weights.
    weights
        File of the weights: safetensors, or a state_dict or checkpoint of `torch.save` (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), read
        with ``weights_only=True``. Of a checkpoint that holds several networks, such as plain and averaged weights, ``"FILE:KEY"``
        chooses one. Default: those of the folder.
    card
        File of the card. Default: that of the folder; without any, classes are numbered and ``Model.notes`` says what was assumed.
    untrained
        Ignore trained weights and draw random ones; the card then says ``trained=False``. Needed for definitions without weights.
    seed
        Of the random weights: the same seed gives the same weights. The global random state stays as it was.

    Raises
    ------
    ModelError
        The model is unknown, its card is wrong, or its weights are missing, could run code, are damaged, do not fit, or are not finite.

    Examples
    --------
    >>> import streamview
    >>> model = streamview.load_model("demo")
    >>> model.card.name, model.card.class_names
    ('demo', ('normal', 'lesion'))
    """
    text = _spec(spec)
    if untrained and weights is not None:
        raise ModelError(f"weights {os.fspath(weights)} and untrained exclude each other; choose one")
    if text not in MODELS and Path(text).is_file() and (Path(text).suffix == ".pt2" or archive_kind(Path(text)) == "exported"):
        return _load_exported(Path(text), weights, card, untrained)
    choice = choose(text, card, other_weights=weights is not None)
    notes: tuple[str, ...] = ()
    outputs, read = None, None
    if choice.bound and choice.document is not None:
        outputs = len(read_card(choice, untrained=untrained).class_names)
    if untrained:
        module = build(choice.architecture, outputs, seed)
    elif weights is None and choice.home is None:
        module, notes = _trust(choice, outputs, seed)
    else:
        read = read_weights(find_weights(choice)) if weights is None else read_weights(*split_key(os.fspath(weights)))
        module, notes = _fill(choice, read, outputs, seed)
    if outputs is None or choice.architecture.name not in MODELS:
        answered = count_outputs(module, choice.name)
        if outputs not in (None, answered):
            remedy = f"fix num_classes and class_names in {choice.file}, or choose another network"
            raise ModelError(f"model {choice.name!r} returns {answered} values, but its card names {outputs} classes; {remedy}")
        choice = assume(choice, answered)
    module.float().eval().requires_grad_(False)
    sha256 = hash_tensors(module.state_dict())
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parsed = read_card(choice, untrained=untrained)
    notes += choice.notes + ((parsed.warning,) if parsed.warning and not untrained else ())
    model = Model(module, parsed, sha256, notes)
    return model if read is None else replace(model, file=read.path.name, file_sha256=read.file_sha256)


def _spec(spec: object) -> str:
    if isinstance(spec, str | os.PathLike):
        return os.fspath(spec)
    what = f"the class {spec.__name__}" if isinstance(spec, type) else f"a {type(spec).__name__}"
    remedy = 'for your own network name the function that builds it: load_model("package.module:function", weights=FILE)'
    raise ModelError(f"model is {what}; expected a name, a folder or a file; {remedy}")


def _trust(choice: Choice, outputs: int | None, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Accept a function's own weights if it loads any: random ones differ from seed to seed."""
    remedy = "give --weights FILE, or --untrained to use seeded random ones"
    if not is_factory(choice.architecture.name):
        raise ModelError(f"model {choice.name!r} comes without trained weights, and none are downloaded; {remedy}")
    module, again = (build(choice.architecture, outputs, drawn) for drawn in (seed, seed + 1))
    check_finite(module.state_dict(), choice.name)
    if hash_tensors(module.state_dict()) != hash_tensors(again.state_dict()):
        raise ModelError(f"model {choice.name!r} returned random weights: two calls gave different ones; {remedy}")
    return module, (f"the weights are those that {choice.name} loaded itself",)


def _fill(choice: Choice, weights: Weights, outputs: int | None, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network and load the weights; without a card, the number of outputs is taken from them."""
    architecture = choice.architecture

    def learn() -> int | None:
        small, large = (build(architecture, count, seed).state_dict() for count in (7, 11))
        return learn_outputs(small, large, find_fit(weights, small, shapes=False).state)

    module = build(architecture, learn() if outputs is None and architecture.sized else outputs, seed)
    fit = find_fit(weights, module.state_dict())
    misfit = fit.misfit
    if misfit is not None:
        learned = None if outputs is None or not architecture.sized else learn()
        if learned not in (None, outputs):
            misfit += f"; the weights have {learned} outputs, the card names {outputs} classes"
        what, remedy = f"model {choice.name!r}", "choose the network they were trained with, or give other weights"
        if choice.bound:
            what, remedy = "its card", f"fix architecture or num_classes in {Path(choice.file).name}, or the weights"
        raise ModelError(f"{weights.path} does not fit {what}: {misfit}; {remedy}")
    check_finite(fit.state, str(weights.path))
    module.load_state_dict(fit.state)
    return module, tuple(f"{weights.path.name}: {note}" for note in fit.notes)


def _load_exported(path: Path, weights: object, card: str | os.PathLike[str] | None, untrained: bool) -> Model:
    if weights is not None or untrained:
        option = "untrained" if untrained else "weights"
        raise ModelError(f"{path} holds a network with its weights, but {option} was given too; leave it out, or give the architecture")
    exported = read_exported(path)
    notes: tuple[str, ...] = ()
    if card is None:
        document = assumed_document(path.stem, [str(index) for index in range(exported.outputs)])
        notes = (f"no card was given: classes are numbered, the um/px is unknown, {SCALED}; {STATE}",)
    else:
        document = {"architecture": path.stem, **read_document(Path(card))}
    parsed = parse_card(document, name=path.stem, file=str(path if card is None else card))
    if len(parsed.class_names) != exported.outputs:
        mismatch = f"{path} returns {exported.outputs} values, but {card} names {len(parsed.class_names)} classes"
        raise ModelError(f"{mismatch}; fix num_classes and class_names, or give the card of this network")
    notes += (parsed.warning,) if parsed.warning else ()
    module = exported.module.float().requires_grad_(False)
    return Model(module, parsed, exported.sha256, notes, path.name, exported.file_sha256)
