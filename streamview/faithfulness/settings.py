"""What is measured, and from where a check passes."""

from __future__ import annotations

from dataclasses import dataclass

from streamview.errors import StreamviewError

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, and from where a check passes; part of every result.

    Parameters
    ----------
    patch
        Side in px of the network's grid of the squares that are erased; None: about a sixteenth of the region's side, 8 or more.
    steps
        Steps from the region as it is to the region without its tissue.
    rankings
        Random rankings that a map's ranking must beat.
    shuffles
        Networks with shuffled weights.
    noises
        Noisy copies of the region.
    seed
        Of all of them.
    beaten
        Deletion and insertion pass where a map's ranking is better than at least this share of the random ones.
    similar
        Parameter randomisation passes where the mean rank correlation with the maps of shuffled networks is at most this.
    stable
        Stability passes where the rank correlation with every map of a hardly changed region is at least this.
    unsettled
        A changed region says nothing of stability where the score itself changed by more than this share of its change by all tissue.
    noise
        Standard deviation of the noise, grey levels.
    shift
        ``(y, x)`` px of the network's grid by which the region is shifted.

    Raises
    ------
    StreamviewError
        When a number is out of range.
    """

    patch: int | None = None
    steps: int = 10
    rankings: int = 5
    shuffles: int = 5
    noises: int = 2
    seed: int = 0
    beaten: float = 0.95
    similar: float = 0.5
    stable: float = 0.7
    unsettled: float = 0.1
    noise: float = 1.0
    shift: tuple[int, int] = (2, 3)

    def __post_init__(self) -> None:
        if self.patch is not None and self.patch < 1:
            raise StreamviewError(f"--patch {self.patch}: expected 1 px or more")
        for name, least in (("steps", 2), ("rankings", 1), ("shuffles", 1), ("noises", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise StreamviewError(f"{name} of faithfulness {getattr(self, name)}: expected {least} or more")
