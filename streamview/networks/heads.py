"""A network for other classes: the same weights, but for those whose shape follows the number of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from streamview.errors import ModelError
from streamview.networks.architectures import build, find_architecture, find_factory, is_factory
from streamview.networks.cards import card_document, parse_card
from streamview.networks.load import Model

__all__ = ["with_classes"]


def with_classes(model: Model, class_names: Sequence[str], seed: int = 0) -> Model:
    """Give a network a fresh head for other classes.

    Parameters
    ----------
    model
        The base; it stays as it is.
    class_names
        Names of the new outputs, in order.
    seed
        Of the new weights.

    Returns
    -------
    Model
        Its card names the new classes, and its ``sha256`` is still that of the base.

    Raises
    ------
    ModelError
        When the network cannot be built again by its name, or its number of outputs is fixed.
    """
    name = model.card.architecture
    architecture = find_factory(name) if is_factory(name) else find_architecture(name, None)
    if not architecture.sized:
        raise ModelError(f"model {name!r} has a fixed number of outputs; give its function a parameter num_classes or outputs")
    module, larger = (build(architecture, len(class_names) + more, seed) for more in (0, 1))
    state, sizes, known = module.state_dict(), larger.state_dict(), model.module.state_dict()
    body = [key for key, tensor in state.items() if tensor.shape == sizes[key].shape]
    strange = [key for key in body if key not in known or known[key].shape != state[key].shape]
    if strange or known.keys() != state.keys():
        raise ModelError(f"model {name!r}, built by its name, is not this network (it differs in {(strange or ['its layers'])[0]})")
    module.load_state_dict({key: known[key] if key in body else tensor for key, tensor in state.items()})
    document = card_document(model.card) | {"num_classes": len(class_names), "class_names": list(class_names)}
    positive = [name for name in model.card.positive if name in class_names]
    document["streamview"] = {**document["streamview"], "positive": positive}
    if not positive:
        del document["streamview"]["positive"]
    card = parse_card(document, name=model.card.name, file=f"the card of {model.card.name}")
    module.float().eval().requires_grad_(False)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(model, module=module, card=card)
