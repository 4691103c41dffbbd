"""A review session of small synthetic slides with a job behind it, for tests and pictures of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamview.cli import main
from streamview.slides.synthetic import write_synthetic_slide

__all__ = ["make_session"]


def make_session(
    folder: Path, names: Sequence[str], *, size: tuple[int, int] = (384, 512), readers: str = "a,b", options: str = ""
) -> Path:
    """Return a new session of a slide for each name, every second one without a lesion, with the answers of the demo network."""
    slides = folder / "slides"
    slides.mkdir()
    for seed, name in enumerate(names, 3):
        write_synthetic_slide(slides / f"{name}.svs", size=size, seed=seed, lesion=seed % 2 == 1)
    (folder / "truth.csv").write_text("slide_id,label\n" + "".join(f"{name}.svs,truth-of-{name}\n" for name in names))
    job, session = folder / "job", folder / "session.sqlite"
    assert main(["saliency", "-i", str(slides), "-o", str(job), "-m", "demo", "--target", "lesion", "--quiet"]) == 0
    truth = ["--truth", str(folder / "truth.csv")]
    assert main(["review", "new", str(job), "-o", str(session), "--readers", "a,b", "--seed", "7", *truth, *options.split()]) == 0
    return session
