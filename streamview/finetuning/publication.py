"""Write the tuned network as a model folder, with a record of its training."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamview.evaluation import Metrics, measure
from streamview.files import atomic
from streamview.finetuning.checkpoint import write_json, write_tensors
from streamview.finetuning.curves import draw_history
from streamview.finetuning.history import History
from streamview.finetuning.preparation import Prepared
from streamview.labels.regions import Example
from streamview.networks import Model
from streamview.networks.cards import ModelCard, card_document, parse_card
from streamview.networks.hashing import hash_tensors
from streamview.results import RESEARCH_USE
from streamview.system.versions import versions

__all__ = ["Compared", "Tuned", "compare", "publish"]


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """The predictions of base and tuned network for a validation region.

    Parameters
    ----------
    example
        The region and its label.
    before, after
        Logits (K,) of the base and of the tuned network.
    """

    example: Example
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """The best weights so far and their comparison with the base on the validation regions.

    Parameters
    ----------
    state
        All tensors of the network, by name.
    sha256
        Their hash, as in `streamview.networks.Model`.
    document
        The card as JSON.
    before, after
        Metrics of base and tuned network; None without validation regions.
    rows
        Predictions, region by region.
    warnings
        Warnings for users of the network, one sentence each.
    """

    state: Mapping[str, Tensor]
    sha256: str
    document: Mapping[str, Any]
    before: Metrics | None
    after: Metrics | None
    rows: tuple[Compared, ...]
    warnings: tuple[str, ...]

    def model(self, base: Model) -> Model:
        """The tuned network, built from a copy of its base."""
        module = copy.deepcopy(base.module)
        module.load_state_dict(self.state)
        return Model(module, _card(self.document), self.sha256, self.warnings)


def compare(
    prepared: Prepared,
    history: History,
    logits: Mapping[str, Sequence[Sequence[float]]],
    best: Mapping[str, Tensor],
    name: str,
    *,
    resamples: int = 0,
) -> Tuned:
    """Compare the best weights so far with the base.

    Parameters
    ----------
    prepared, history
        Inputs and history of the training.
    logits
        As in `streamview.finetuning.checkpoint.Checkpoint`.
    best
        Trained parameters by name.
    name
        Name of the tuned network.
    resamples
        Bootstrap resamples; 0: no intervals.
    """
    state = prepared.base.module.state_dict() | dict(best)
    document = _document(prepared, name)
    indices = prepared.split.validation
    rows = tuple(
        Compared(prepared.examples[index], tuple(before), tuple(after))
        for index, before, after in zip(indices, logits["before"], logits["after"], strict=True)
    )
    cases, targets = [row.example.case for row in rows], prepared.targets[list(indices)]
    reference = prepared.targets[list(prepared.split.train)]

    def measured(answers: Sequence[tuple[float, ...]]) -> Metrics | None:
        return measure(answers, targets, cases, _card(document), reference=reference, resamples=resamples) if answers else None

    before, after = measured([row.before for row in rows]), measured([row.after for row in rows])
    warnings = _warnings(history, after)
    if warnings:
        document["streamview"]["warning"] = " ".join(warnings)
    return Tuned(state, hash_tensors(state), document, before, after, rows, warnings)


def publish(folder: Path, prepared: Prepared, history: History, tuned: Tuned, *, finished: bool) -> None:
    """Write a tuned network as a model folder: card, weights, ``finetuning.json``, ``regions.csv``, and at the end ``curves.png``.

    The record names neither slides nor patients, so that a model can be passed on; ``regions.csv`` does.

    Raises
    ------
    StreamviewError
        If the disk is full or not writable; earlier files are kept.
    """
    write_json(folder / "card.json", tuned.document)
    write_tensors(folder / "weights.safetensors", tuned.state)
    write_json(folder / "finetuning.json", _record(prepared, history, tuned, finished=finished))
    atomic.write_text(folder / "regions.csv", _table(prepared, tuned))
    if finished:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
        draw_history(figure, history)
        figure.text(0.99, 0.01, RESEARCH_USE, ha="right", va="bottom", fontsize=7)
        with atomic.replacing(folder / "curves.png") as temporary:
            figure.savefig(temporary, format="png")


def _warnings(history: History, after: Metrics | None) -> tuple[str, ...]:
    if after is None:
        epoch = history.epochs[-1].number
        return (f"It was not validated on any region: the weights are those after epoch {epoch}, and their quality is unknown.",)
    warnings = [] if history.best else ["No epoch had a lower validation loss than the base: the weights are those of the base."]
    if after.shortfall:
        warnings.append(f"On its {after.regions} validation regions this network is of no use: {after.shortfall}.")
    return tuple(warnings)


def _card(document: Mapping[str, Any]) -> ModelCard:
    return parse_card(document, name="tuned", file="the card of the tuned network")


def _document(prepared: Prepared, name: str) -> dict[str, Any]:
    """The base's card, updated for the tuned network."""
    document = card_document(prepared.base.card)
    split, settings = prepared.split, prepared.settings
    sides = [side for index in (*split.train, *split.validation) for side in prepared.shapes[index]]
    patients = [len({prepared.examples[index].case for index in part}) for part in (split.train, split.validation)]
    provenance = (
        f"fine-tuned ({settings.train}) on {len(split.train)} regions of {patients[0]} patients, validated on {len(split.validation)} of "
        f"{patients[1]}, split by patient"
    )
    labels = ", ".join(sorted({example.label or "none" for example in prepared.examples}))
    labelled = "" if prepared.base.card.task == "regression" else f", labelled {labels}"
    use = (
        f"{RESEARCH_USE} Fine-tuned from {prepared.base.card.name} on {len(split.train)} regions of {patients[0]} patients{labelled}; "
        "its quality on other tissue, stains and scanners is unknown."
    )
    inherited = {key: value for key, value in document["streamview"].items() if key not in ("calibration", "warning", "stain", "answers")}
    changes = {"name": name, "trained": True, "split": provenance, "use": use, "input_size": [min(sides), max(sides)]}
    document["streamview"] = inherited | changes
    return document


def _record(prepared: Prepared, history: History, tuned: Tuned, *, finished: bool) -> dict[str, Any]:
    split, base = prepared.split, prepared.base.card
    return {
        "note": RESEARCH_USE,
        "finished": finished,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "base": {
            "name": base.name,
            "architecture": base.architecture,
            "sha256": prepared.making["base"],
            "card": prepared.making["card"],
            "file": prepared.base.file,
            "file_sha256": prepared.base.file_sha256,
        },
        "weights_sha256": tuned.sha256,
        "epoch": history.best,
        "data_sha256": prepared.making["slides"],
        "labels_sha256": prepared.making["labels"],
        "regions": {"train": len(split.train), "validation": len(split.validation)},
        "settings": prepared.making["settings"],
        "trained": list(prepared.names),
        "before": None if tuned.before is None else tuned.before.to_dict(),
        "after": None if tuned.after is None else tuned.after.to_dict(),
        "warnings": list(tuned.warnings),
        "losses": list(history.losses),
        "epochs": [epoch.to_dict() for epoch in history.epochs],
        "device": prepared.device.type,
        "tile": prepared.tile,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _table(prepared: Prepared, tuned: Tuned) -> str:
    """Every region with its side of the split; validation regions also with both networks' logits."""
    names = prepared.base.card.class_names
    logits = [f"{side}_logit_{name}" for side in ("base", "tuned") for name in names]
    text = io.StringIO(newline="")
    columns = ["slide_id", "patient_id", "x", "y", "width", "height", "mpp", "label", "split", *logits]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    answers = {id(row.example): (*row.before, *row.after) for row in tuned.rows}
    for index, example in enumerate(prepared.examples):
        row: dict[str, Any] = {"slide_id": example.name, "patient_id": example.patient, "label": example.label}
        if example.region is not None:
            row |= {key: getattr(example.region, key) for key in ("x", "y", "width", "height")}
        row |= {} if example.mpp is None else {"mpp": repr(example.mpp)}
        row["split"] = "validation" if index in prepared.split.validation else "train"
        row |= dict(zip(logits, answers.get(id(example), ()), strict=False))
        writer.writerow(row)
    return text.getvalue()
