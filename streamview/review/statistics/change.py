"""What readers changed after they saw the network's output, and whether it helped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from streamview.errors import ReviewError
from streamview.evaluation.metrics import plain
from streamview.review.reads import Read, Truth, group_reads
from streamview.review.statistics.estimate import Proportion

__all__ = ["AiUse", "Change", "exact_mcnemar", "measure_change", "pool_changes"]


@dataclass(frozen=True, slots=True)
class AiUse:
    """What a reader did where the network contradicted the unaided verdict; cases of known truth.

    Parameters
    ----------
    followed_right, ignored_right
        The network was right: the aided verdict is the network's, or is not.
    followed_wrong, ignored_wrong
        The network was wrong: the aided verdict is the network's, or is not.
    """

    followed_right: int = 0
    ignored_right: int = 0
    followed_wrong: int = 0
    ignored_wrong: int = 0

    @property
    def automation_bias(self) -> Proportion:
        """Contradictions by a wrong network that the reader followed, out of all contradictions by a wrong network."""
        return Proportion(self.followed_wrong, self.followed_wrong + self.ignored_wrong)

    @property
    def ignored(self) -> Proportion:
        """Contradictions by a right network that the reader did not follow, out of all contradictions by a right network."""
        return Proportion(self.ignored_right, self.followed_right + self.ignored_right)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and both proportions as plain JSON values."""
        return {**asdict(self), "automation_bias": self.automation_bias.to_dict(), "ignored": self.ignored.to_dict()}


@dataclass(frozen=True, slots=True)
class Change:
    """Verdicts of one reader, or of all, without and with the network.

    Parameters
    ----------
    reader
        The id; empty for all readers together.
    classes
        Names of the K classes.
    matrix
        (K, K) counts: rows are unaided verdicts, columns aided ones.
    helped, harmed
        Number of verdicts that became right, and that became wrong.
    stayed_right, stayed_wrong
        Number of verdicts that were and are right, and that were and are wrong, also where one wrong verdict replaced another.
    unknown
        Number of verdicts for cases of unknown truth.
    ai
        None without the network's answers.
    p
        P value of McNemar's exact test of `helped` against `harmed`. None for all readers together, whose verdicts for one case depend
        on each other.
    """

    reader: str
    classes: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]
    helped: int
    harmed: int
    stayed_right: int
    stayed_wrong: int
    unknown: int
    ai: AiUse | None
    p: float | None

    @property
    def cases(self) -> int:
        """Number of pairs of an unaided and an aided verdict."""
        return sum(map(sum, self.matrix))

    @property
    def changed(self) -> int:
        """Number of verdicts that changed."""
        return self.cases - sum(row[place] for place, row in enumerate(self.matrix))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "ai"}
        ai = None if self.ai is None else self.ai.to_dict()
        return dict(plain({**fields, "cases": self.cases, "changed": self.changed, "ai": ai}))


def measure_change(
    reads: Iterable[Read], truth: Truth, ai: Mapping[str, str | None] | None = None, *, classes: Sequence[str] = ()
) -> tuple[Change, ...]:
    """Compare each reader's unaided and aided verdicts, over the cases that the reader read both ways.

    Parameters
    ----------
    reads
        One per reader, case and modality.
    truth
        True class of each case; cases without one are counted as `Change.unknown`.
    ai
        The network's class for each case; None: nothing is said of how its answers were used.
    classes
        Order of the classes; without it, that of their names. Verdicts beyond it are added behind.

    Raises
    ------
    ReviewError
        If no reader read a case both ways.

    Examples
    --------
    >>> from streamview.review.reads import Read
    >>> from streamview.review.statistics import measure_change
    >>> reads = [Read("r1", "1", "unaided", "normal"), Read("r1", "1", "aided", "lesion")]
    >>> (change,) = measure_change(reads, {"1": "lesion"}, {"1": "lesion"})
    >>> change.helped, change.ai.followed_right, change.matrix
    (1, 1, ((0, 0), (1, 0)))
    """
    groups = group_reads(reads)
    paired: dict[str, dict[str, tuple[str, str]]] = {}
    for reader in sorted({reader for reader, _ in groups}):
        before, after = groups.get((reader, "unaided"), {}), groups.get((reader, "aided"), {})
        pairs = {case: (before[case].verdict, after[case].verdict) for case in before if case in after}
        if pairs:
            paired[reader] = pairs
    if not paired:
        raise ReviewError("no reader has both an unaided and an aided read of a case; expected both for some case")
    verdicts = {verdict for pairs in paired.values() for both in pairs.values() for verdict in both}
    names = (*classes, *sorted(verdicts - set(classes)))
    return tuple(_change(reader, pairs, truth, ai, names) for reader, pairs in paired.items())


def pool_changes(changes: Sequence[Change]) -> Change:
    """Add the counts of several readers, as from one call of `measure_change`; without a test, as their verdicts are not independent.

    Parameters
    ----------
    changes
        One or more, of the same classes.
    """
    count = range(len(changes[0].classes))
    matrix = tuple(tuple(sum(change.matrix[row][column] for change in changes) for column in count) for row in count)
    used = [change.ai for change in changes if change.ai is not None]
    names = ("followed_right", "ignored_right", "followed_wrong", "ignored_wrong")
    ai = AiUse(*(sum(getattr(use, name) for use in used) for name in names)) if used else None
    helped, harmed, right, wrong, unknown = (
        sum(getattr(change, name) for change in changes) for name in ("helped", "harmed", "stayed_right", "stayed_wrong", "unknown")
    )
    return Change("", changes[0].classes, matrix, helped, harmed, right, wrong, unknown, ai, None)


def exact_mcnemar(helped: int, harmed: int) -> float:
    """P value of McNemar's exact test: two-sided binomial of the smaller count out of both, with probability 1/2; 1 without any change.

    After McNemar (1947, https://doi.org/10.1007/BF02295996).

    Parameters
    ----------
    helped, harmed
        Numbers of pairs that changed in either direction.
    """
    return float(binomtest(helped, helped + harmed).pvalue) if helped + harmed else 1.0


def _change(
    reader: str, pairs: Mapping[str, tuple[str, str]], truth: Truth, ai: Mapping[str, str | None] | None, names: tuple[str, ...]
) -> Change:
    matrix = [[0] * len(names) for _ in names]
    outcomes = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for case, (before, after) in pairs.items():
        matrix[names.index(before)][names.index(after)] += 1
        if truth.get(case) is not None:
            outcomes[before == truth[case], after == truth[case]] += 1
    helped, harmed = outcomes[False, True], outcomes[True, False]
    known = sum(outcomes.values())
    right, wrong = outcomes[True, True], outcomes[False, False]
    use = None if ai is None else _use(pairs, truth, ai)
    test = exact_mcnemar(helped, harmed) if known else None
    return Change(reader, names, tuple(map(tuple, matrix)), helped, harmed, right, wrong, len(pairs) - known, use, test)


def _use(pairs: Mapping[str, tuple[str, str]], truth: Truth, ai: Mapping[str, str | None]) -> AiUse:
    contradicted = [
        (ai[case] == truth[case], after == ai[case])
        for case, (before, after) in pairs.items()
        if truth.get(case) is not None and ai.get(case) is not None and before != ai[case]
    ]
    return AiUse(*(contradicted.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))
