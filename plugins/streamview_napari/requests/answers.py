"""What a run answered, and with what it was computed; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamview.inference.compute import Compute
    from streamview.inspection.certificate import Certificate
    from streamview.results import Prediction, Saliency

__all__ = ["Answer", "RunFacts", "describe_answer", "describe_certificate", "describe_failures", "describe_faithfulness"]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One row of the results.

    Parameters
    ----------
    prediction
        The network's answer.
    saliency
        Its maps; None where only a prediction was asked for.
    seconds
        What it took; None where it was opened from disk.
    tile
        Rows and columns of its steps, px of the network's grid: they decide the last bits of the maps. None where they are not known.
    run
        With what it was computed in this window; None where it was opened.
    certificate
        Of the network on its region, where the user asked for one.
    """

    prediction: Prediction
    saliency: Saliency | None = None
    seconds: float | None = None
    tile: tuple[int, int] | None = None
    run: RunFacts | None = None
    certificate: Certificate | None = None

    @property
    def source(self) -> str:
        """Identity of the slide that it is for."""
        return self.prediction.identity.source


@dataclass(frozen=True, slots=True)
class RunFacts:
    """With what a result of the dock was computed: what a script needs beside its prediction and target.

    Parameters
    ----------
    model
        As for `streamview.load_model`.
    untrained
        Whether its weights are seeded random ones.
    slide
        Path of the slide; None where it is not known.
    mpp
        Um per level-0 px that the user gave; None where the slide states its own.
    compute
        Where and how, with the steps that were taken.
    """

    model: str
    untrained: bool
    slide: str | None
    mpp: float | None
    compute: Compute


def describe_answer(prediction: Prediction) -> str:
    """Say in a few words what a network answered: ``"lesion 97.3%"``."""
    probabilities = prediction.probabilities
    if prediction.task == "class" and probabilities is not None:
        return f"{prediction.label} {float(probabilities.max()):.1%}"
    if prediction.label is None:
        return f"{prediction.class_names[0]} {float(prediction.logits[0]):.3g}"
    return prediction.label or "none"


def describe_certificate(certificate: Certificate) -> str:
    """Say in one line what a certificate found."""
    verdict = "Exact" if certificate.passed else "NOT exact"
    count = len(certificate.comparisons)
    return (
        f"{verdict}: {count} window{'s' if count > 1 else ''} against the plain network in float64, largest error {certificate.worst:.1e}"
    )


def describe_faithfulness(saliency: Saliency) -> tuple[str, bool]:
    """Say in a line a map whether a job's maps show what the network uses, and whether one failed; empty where that was not measured."""
    from streamview.faithfulness.store import read_faithfulness
    from streamview.results.display import TITLES

    measured = read_faithfulness(saliency)
    if measured is None:
        return "", False
    lines = [f"{TITLES.get(method, method)}. {line}" for method in saliency.maps if (line := measured.line(method))]
    return "\n".join(lines), any(measured.failures(method) for method in saliency.maps)


def describe_failures(saliency: Saliency, method: str) -> str:
    """Say which checks of faithfulness a job's map failed; empty where it failed none, or was not measured."""
    from streamview.faithfulness.store import read_faithfulness

    measured = read_faithfulness(saliency)
    failures = () if measured is None else measured.failures(method)
    return f"FAILS {', '.join(check.name for check in failures)}" if failures else ""
