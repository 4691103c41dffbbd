"""What was measured of the maps of one result, and the verdicts that follow from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from streamview.faithfulness.curves import beats
from streamview.faithfulness.localisation import Localisation
from streamview.faithfulness.settings import Settings
from streamview.results import RESEARCH_USE, Identity, Target

__all__ = ["Change", "Check", "CheckName", "Curve", "Faithfulness", "MapFaithfulness", "Similarity", "finite", "read_change"]

CheckName = Literal["deletion", "insertion", "parameter randomisation", "stability"]
FORMAT = "streamview faithfulness 1"


@dataclass(frozen=True, slots=True)
class Curve:
    """Scores while patches are erased or brought back.

    Parameters
    ----------
    shares
        Share (0..1) of the patches with tissue that are erased (of an insertion: that are there) at each step.
    scores
        Raw scores.
    area
        Area under the normalised curve (`streamview.faithfulness.curves`); None where it is not defined.
    """

    shares: tuple[float, ...]
    scores: tuple[float, ...]
    area: float | None


@dataclass(frozen=True, slots=True)
class Similarity:
    """A map compared with that of a network with shuffled weights.

    Parameters
    ----------
    rank
        Rank correlation of the absolute values, -1..1; 0 where the other map is the same everywhere.
    structure
        Structural similarity of the absolute values.
    layers
        Share (0..1) of the layers that were shuffled, from the last.
    """

    rank: float
    structure: float
    layers: float = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """A map compared with that of a hardly changed region.

    Parameters
    ----------
    what
        How the region was changed, in words.
    rank
        Rank correlation of the values.
    relative
        Change of the map as a share of itself, in the Euclidean norm.
    score
        Change of the score as a share of what all tissue changes it by.
    """

    what: str
    rank: float
    relative: float
    score: float

    @property
    def sensitivity(self) -> float:
        """Change of the map by change of the score."""
        return self.relative / self.score if self.score > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Check:
    """A verdict.

    Parameters
    ----------
    name
        What was checked.
    passed
        None: it says nothing here.
    reason
        The numbers in words, or why there is no verdict.
    """

    name: CheckName
    passed: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class MapFaithfulness:
    """What was measured of one map.

    Parameters
    ----------
    method
        The map's name in the result.
    flaw
        Why the map cannot be measured; None if it can.
    on_glass
        Share (0..1) of the map's positive mass on patches without tissue.
    deletion, insertion
        Curves of the map's ranking.
    shuffled, cascade
        Comparisons with networks all of whose layers, and only the last of whose layers, were shuffled; empty where the map could not be
        recomputed.
    changes
        Comparisons with maps of hardly changed regions.
    localisation
        Agreement with the annotations; None without any.
    """

    method: str
    flaw: str | None = None
    on_glass: float | None = None
    deletion: Curve | None = None
    insertion: Curve | None = None
    shuffled: tuple[Similarity, ...] = ()
    cascade: tuple[Similarity, ...] = ()
    changes: tuple[Change, ...] = ()
    localisation: Localisation | None = None


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What was measured of the maps of one result: every number, the thresholds, and what they belong to.

    Parameters
    ----------
    identity
        Of the prediction that the maps explain: network, card, source, region, mpp, precision.
    target
        What they explain.
    slide_name, model_name
        In words.
    settings
        What was asked for.
    patch, patches
        Side of a patch, px of the network's grid, and how many hold tissue.
    cell
        Side of the cells in which maps are compared, px of that grid.
    full, empty
        Score of the region as it is, and with all its tissue erased.
    random
        Deletion curves of random rankings. Deleting in one order is inserting in the reverse one, so these are curves of insertions too.
    maps
        One for each map.
    annotations
        File of the annotations; empty: none.
    seconds
        Time taken; where it was resumed, since then.
    version
        Of streamview.
    """

    identity: Identity
    target: Target
    slide_name: str
    model_name: str
    settings: Settings
    patch: int
    patches: int
    cell: int
    full: float
    empty: float
    random: tuple[Curve, ...]
    maps: tuple[MapFaithfulness, ...]
    annotations: str = ""
    seconds: float = 0.0
    version: str = ""

    def of(self, method: str) -> MapFaithfulness | None:
        """What was measured of a map; None if it was not."""
        return next((one for one in self.maps if one.method == method), None)

    def checks(self, method: str) -> tuple[Check, ...]:
        """The verdicts on a map, none if it was not measured."""
        one = self.of(method)
        if one is None or one.flaw is not None:
            return ()
        return (
            self._ranked("deletion", one.deletion),
            self._ranked("insertion", one.insertion),
            self._randomised(one),
            self._stable(one),
        )

    def failures(self, method: str) -> tuple[Check, ...]:
        """The checks that a map failed."""
        return tuple(check for check in self.checks(method) if check.passed is False)

    def line(self, method: str) -> str:
        """The verdict on a map in one line; empty if it was not measured."""
        one = self.of(method)
        if one is None:
            return ""
        if one.flaw is not None:
            return f"Faithfulness: no verdict, {one.flaw}"
        checks = [check for check in self.checks(method) if check.passed is not None]
        passed = sum(check.passed is True for check in checks)
        if not checks:
            return f"Faithfulness: no verdict, {self.checks(method)[0].reason}"
        failed = [_WARNINGS[check.name] for check in checks if not check.passed]
        return f"Faithfulness: {'; '.join([f'passes {passed} of {len(checks)}', *failed])}"

    def details(self, method: str) -> tuple[str, ...]:
        """Every verdict on a map with its numbers, and what has no verdict, a line each."""
        one = self.of(method)
        if one is None or one.flaw is not None:
            return ()
        words = {True: "passes", False: "FAILS", None: "no verdict on"}
        lines = [f"{words[check.passed]} {check.name}: {check.reason}" for check in self.checks(method)]
        if one.on_glass is not None and one.on_glass > 0.005:
            lines.append(f"{one.on_glass:.0%} of the map's mass lies on glass")
        if one.localisation is not None:
            place = one.localisation
            lines.append(
                f"annotations: {place.energy:.1%} of the positive mass inside, {place.ratio:.2f} times their share of the area "
                f"({place.area:.1%}); average precision {place.precision:.2f}; peak {'inside' if place.pointing else 'outside'}"
            )
        return tuple(lines)

    def _ranked(self, name: Literal["deletion", "insertion"], curve: Curve | None) -> Check:
        areas = [one.area for one in self.random if one.area is not None]
        if curve is None or curve.area is None or not areas:
            return Check(name, None, f"erasing all tissue does not change the score ({self.full:.4g} and {self.empty:.4g})")
        lower = name == "deletion"
        count, passed = beats(curve.area, areas, self.settings.beaten, lower=lower)
        mean = sum(areas) / len(areas)
        spread = math.sqrt(sum((area - mean) ** 2 for area in areas) / (len(areas) - 1)) if len(areas) > 1 else 0.0
        word = "lower" if lower else "higher"
        return Check(name, passed, f"area {curve.area:.3f}, random {mean:.3f} ± {spread:.3f}; {word} than {count} of {len(areas)}")

    def _randomised(self, one: MapFaithfulness) -> Check:
        name: CheckName = "parameter randomisation"
        if not one.shuffled:
            return Check(name, None, "this map cannot be recomputed here")
        rank, structure = (sum(values) / len(values) for values in zip(*((abs(s.rank), s.structure) for s in one.shuffled), strict=True))
        reason = f"rank correlation {rank:.2f}, at most {self.settings.similar:.2f} passes; structural similarity {structure:.2f}"
        reason += f"; mean of {len(one.shuffled)} shuffled networks"
        if one.cascade:
            parts = [f"{similarity.rank:.2f} with {_layers(similarity.layers)} shuffled" for similarity in one.cascade]
            reason += f" ({', '.join(parts)})"
        return Check(name, rank <= self.settings.similar, reason)

    def _stable(self, one: MapFaithfulness) -> Check:
        counted = [change for change in one.changes if change.score <= self.settings.unsettled]
        if not one.changes:
            return Check("stability", None, "this map cannot be recomputed here")
        if not counted:
            least = min(change.score for change in one.changes)
            return Check("stability", None, f"the score itself changes by {least:.0%} or more when the region hardly does")
        worst = min(counted, key=lambda change: change.rank)
        reason = f"rank correlation {worst.rank:.2f} under {worst.what}, at least {self.settings.stable:.2f} passes; the map changes by "
        reason += f"{worst.relative:.0%}, the score by {worst.score:.1%}"
        return Check("stability", worst.rank >= self.settings.stable, reason)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the verdicts that follow from them, as plain JSON values; what is not finite is None."""
        values = asdict(self)
        values["identity"] = self.identity.to_dict()
        for entry, one in zip(values["maps"], self.maps, strict=True):
            entry["checks"] = [asdict(check) for check in self.checks(one.method)]
            entry["verdict"] = self.line(one.method)
        plain: dict[str, Any] = finite({"format": FORMAT, **values, "key": self.identity.key, "note": RESEARCH_USE})
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; verdicts are derived anew from the numbers."""
        names = ("slide_name", "model_name", "patch", "patches", "cell", "full", "empty", "annotations", "seconds", "version")
        plain = {name: values[name] for name in names}
        plain |= {name: math.nan if plain[name] is None else plain[name] for name in ("full", "empty")}
        return cls(
            identity=Identity.from_dict(values["identity"]),
            target=Target(**values["target"]),
            settings=Settings(**{**values["settings"], "shift": tuple(values["settings"]["shift"])}),
            random=tuple(_curve(curve) for curve in values["random"]),
            maps=tuple(_map(entry) for entry in values["maps"]),
            **plain,
        )


_WARNINGS: Mapping[CheckName, str] = {
    "deletion": "fails deletion: erasing what it marks is no better than erasing at random",
    "insertion": "fails insertion: showing what it marks is no better than showing at random",
    "parameter randomisation": "fails parameter randomisation: it looks the same for a random network",
    "stability": "fails stability: it changes when the region hardly does",
}


def _layers(share: float) -> str:
    return "the last layer" if share == 0 else f"the last {share:.0%} of the layers"


def _curve(values: Mapping[str, Any]) -> Curve:
    return Curve(tuple(values["shares"]), tuple(values["scores"]), values["area"])


def _map(values: Mapping[str, Any]) -> MapFaithfulness:
    place = values["localisation"]
    if place is not None:
        place = Localisation(**{**place, "energy": math.nan if place["energy"] is None else place["energy"]})
    return MapFaithfulness(
        method=values["method"],
        flaw=values["flaw"],
        on_glass=values["on_glass"],
        deletion=None if values["deletion"] is None else _curve(values["deletion"]),
        insertion=None if values["insertion"] is None else _curve(values["insertion"]),
        shuffled=tuple(Similarity(**entry) for entry in values["shuffled"]),
        cascade=tuple(Similarity(**entry) for entry in values["cascade"]),
        changes=tuple(read_change(entry) for entry in values["changes"]),
        localisation=place,
    )


def read_change(values: Mapping[str, Any]) -> Change:
    """A `Change` from plain JSON values."""
    return Change(**{**values, "relative": math.nan if values["relative"] is None else values["relative"]})


def finite(value: Any) -> Any:
    """Plain JSON values, with None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
