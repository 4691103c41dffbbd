"""A job of a few slides whose names say who they are of, and sessions made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streamview.cli import main
from streamview.slides.synthetic import write_synthetic_slide

__all__ = ["NAMES", "make_job", "make_session", "make_session_of"]

NAMES = ("miller", "smith", "garcia", "okafor", "tanaka")


def make_job(folder: Path, names: Sequence[str] = NAMES, *, size: tuple[int, int] = (512, 512), truth: str = "") -> Path:
    """Explain a synthetic slide for each name with the demo's network, the first, third, ... with a lesion; return the job's folder.

    Beside it is ``truth.csv``: lesion or normal, or `truth` and the name.
    """
    (folder / "oncology-ward").mkdir(parents=True)
    rows = ["slide_id,label"]
    for number, name in enumerate(names):
        write_synthetic_slide(folder / "oncology-ward" / f"{name}.svs", size=size, seed=number, lesion=number % 2 == 0)
        rows.append(f"{name}.svs,{truth + name if truth else ('lesion', 'normal')[number % 2]}")
    (folder / "truth.csv").write_text("\n".join(rows) + "\n")
    arguments = ["-i", str(folder / "oncology-ward"), "-o", str(folder / "job"), "-m", "demo", "--target", "lesion", "--quiet"]
    assert main(["saliency", *arguments]) == 0
    return folder / "job"


def make_session(job: Path, path: Path, *options: str, readers: str = "a,b") -> Path:
    """Make a session of a job, with the truth known; return its file."""
    truth = ["--truth", str(job.parent / "truth.csv")]
    assert main(["review", "new", str(job), "-o", str(path), "--readers", readers, "--seed", "5", *truth, *options]) == 0
    return path


def make_session_of(folder: Path, names: Sequence[str], *, size: tuple[int, int] = (384, 512), options: str = "") -> Path:
    """Make a session of new slides whose truth is in no verdict: ``truth-of-NAME``."""
    return make_session(make_job(folder, names, size=size, truth="truth-of-"), folder / "session.sqlite", *options.split())
