"""Write an evaluation: metrics as JSON, a table of the regions, charts, and a readable summary."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamview.errors import StreamviewError
from streamview.evaluation import charts
from streamview.evaluation.answers import Evaluation, Row
from streamview.evaluation.bootstrap import format_figure
from streamview.evaluation.metrics import Metrics
from streamview.files import atomic
from streamview.labels.regions import find_targets
from streamview.results import RESEARCH_USE
from streamview.system.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Page

__all__ = ["check_folder", "write_evaluation"]

_PICTURES = ("confusion.png", "reliability.png", "scatter.png")
_MANY = 20  # classes up to which the summary contains the confusion matrix


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Check that an evaluation can be written to a folder, and return its path.

    Raises
    ------
    StreamviewError
        If it is a file, or the folder of a model, whose files have the same names.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise StreamviewError(f"{folder}: is a file, but an evaluation is a folder; choose another output")
    if (folder / "card.json").exists():
        raise StreamviewError(f"{folder}: is the folder of a model; choose another output, or a folder inside it")
    atomic.check_output(folder)
    return folder


def write_evaluation(evaluation: Evaluation, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write an evaluation, replacing an earlier one in the folder.

    Parameters
    ----------
    evaluation
        From `evaluate`.
    folder
        Receives ``regions.csv``, ``confusion.png`` and ``reliability.png`` (for regression ``scatter.png``), ``summary.md`` and
        ``metrics.json``, each complete or not at all.

    Returns
    -------
    tuple of pathlib.Path
        The files, in that order.

    Raises
    ------
    StreamviewError
        If the folder is a file or that of a model, the disk is full, or the folder is not writable.
    """
    folder = check_folder(folder)
    regions, summary, figures = (folder / name for name in ("regions.csv", "summary.md", "metrics.json"))
    figures.unlink(missing_ok=True)  # written last: until then the other files may belong to two evaluations
    atomic.write_text(regions, _table(evaluation))
    drawings = _charts(evaluation)
    for name in _PICTURES:
        if name not in drawings:
            (folder / name).unlink(missing_ok=True)
    sizes = [charts.chart_size(metrics, name.removesuffix(".png")) for name in drawings if (metrics := evaluation.metrics) is not None]
    pictures = [charts.write_chart(folder / name, draw, size) for (name, draw), size in zip(drawings.items(), sizes, strict=True)]
    atomic.write_text(summary, _summary(evaluation, list(drawings)))
    atomic.write_text(figures, json.dumps(_document(evaluation), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return (regions, *pictures, summary, figures)


def _charts(evaluation: Evaluation) -> dict[str, Callable[[Page], None]]:
    """The charts to draw, by file name."""
    metrics, name = evaluation.metrics, evaluation.card.name
    if metrics is None:
        return {}
    reliability = {"reliability.png": partial(charts.draw_reliability, metrics=metrics, name=name)}
    if metrics.task == "class":
        return {"confusion.png": partial(charts.draw_confusion, metrics=metrics, name=name), **reliability}
    if metrics.task == "multilabel":
        return {**reliability}
    answered = [(row.example, row.prediction.logits) for row in evaluation.rows if row.prediction is not None]
    truth = np.asarray(find_targets([example for example, _ in answered], evaluation.card), np.float64)
    values = np.stack([logits for _, logits in answered])
    return {"scatter.png": partial(charts.draw_scatter, metrics=metrics, truth=truth, values=values, name=name)}


def _document(evaluation: Evaluation) -> dict[str, Any]:
    card = evaluation.card
    return {
        "model": {"name": card.name, "weights_sha256": evaluation.weights_sha256, "card_sha256": card.sha256, "trained": card.trained},
        "labels_sha256": evaluation.labels_sha256,
        "precision": evaluation.precision,
        "class_names": list(card.class_names),
        "regions": len(evaluation.rows),
        "failed": len(evaluation.failed),
        "metrics": None if evaluation.metrics is None else evaluation.metrics.to_dict(),
        "warnings": list(evaluation.warnings),
        "versions": versions(),
        "note": RESEARCH_USE,
    }


def _table(evaluation: Evaluation) -> str:
    names = evaluation.card.class_names
    probable = evaluation.card.task != "regression"
    columns = ["slide_id", "patient_id", "x", "y", "width", "height", "mpp", "label", "prediction"]
    columns += [f"prob_{name}" for name in names] if probable else []
    columns += [*(f"logit_{name}" for name in names), "status", "error"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in evaluation.rows)
    return text.getvalue()


def _cells(row: Row) -> dict[str, str]:
    example, prediction = row.example, row.prediction
    region = example.region if prediction is None else prediction.region
    cells = {"slide_id": example.name, "patient_id": example.case, "label": example.label}
    cells |= {} if region is None else {key: str(getattr(region, key)) for key in ("x", "y", "width", "height")}
    cells |= {} if row.mpp is None else {"mpp": f"{row.mpp:.6g}"}
    if prediction is None:
        return cells | {"status": "failed", "error": row.error}
    probabilities = prediction.probabilities
    if probabilities is not None:
        cells |= {f"prob_{name}": str(p) for name, p in zip(prediction.class_names, probabilities, strict=True)}
    cells |= {f"logit_{name}": str(logit) for name, logit in zip(prediction.class_names, prediction.logits, strict=True)}
    values = ";".join(str(logit) for logit in prediction.logits)
    return cells | {"prediction": values if prediction.label is None else prediction.label, "status": "ok"}


def _summary(evaluation: Evaluation, pictures: list[str]) -> str:
    card, metrics = evaluation.card, evaluation.metrics
    network = card.name if card.trained else f"{card.name} (untrained, random weights)"
    lines = [
        *(f"# Evaluation of {network}", "", f"**{RESEARCH_USE}**", ""),
        f"Weights {evaluation.weights_sha256[:12]}, labels {evaluation.labels_sha256[:12]}, {evaluation.precision}. "
        f"{len(evaluation.rows)} regions, {len(evaluation.failed)} failed.",
    ]
    if metrics is not None:
        lines += ["", *_figures(metrics)]
        if metrics.confusion and len(card.class_names) <= _MANY:
            lines += ["", "## Answers by true class", "", *_confusion(metrics)]
    lines += ["", *(f"![{name.removesuffix('.png')}]({name})" for name in pictures)] if pictures else []
    errors = [row.error for row in evaluation.failed]
    for title, items in (("Failed", errors), ("Warnings", list(evaluation.warnings))):
        if items:
            lines += ["", f"## {title}", "", *(f"- {item}" for item in items)]
    return "\n".join(lines) + "\n"


def _figures(metrics: Metrics) -> list[str]:
    """The metrics as a table, each beside its baseline without the network."""
    rows: list[tuple[str, object, str]] = []
    if metrics.accuracy is not None:
        always = "the more frequent state of every class" if metrics.majority is None else metrics.majority
        rows.append(("accuracy", metrics.accuracy, f"{format_figure(metrics.baseline)}, always answering {always}"))
    if metrics.balanced_accuracy is not None:
        rows.append(("balanced accuracy", metrics.balanced_accuracy, format_figure(1 / sum(o.regions > 0 for o in metrics.outputs))))
    for output in metrics.outputs:
        if output.accuracy is not None:
            rows.append((f"accuracy for {output.name}", output.accuracy, f"{format_figure(output.baseline)}, always the more frequent"))
        if output.auc is not None:
            rows.append((f"AUC of {output.name}", output.auc, format_figure(0.5)))
        if output.error is not None:
            rows.append((f"Spearman's rho of {output.name}", output.spearman, format_figure(0.0)))
            rows.append((f"mean absolute error of {output.name}", output.error, f"{format_figure(output.baseline)}, always the median"))
    if metrics.ece is not None:
        rows.append(("expected calibration error", format_figure(metrics.ece), ""))
    rows.append(("loss", format_figure(metrics.loss), ""))
    scope = str(metrics).partition("\n")[0]
    return [f"{scope}.", "", "| figure | value | without the network |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]


def _confusion(metrics: Metrics) -> list[str]:
    names = [output.name for output in metrics.outputs]
    return [
        f"| truth | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(names, metrics.confusion, strict=True)),
    ]
