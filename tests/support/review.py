"""A job of a few slides whose names say who they are of, and sessions made of it."""

from __future__ import annotations

from pathlib import Path

from streamview.cli import main
from streamview.slides.synthetic import write_synthetic_slide

__all__ = ["NAMES", "make_job", "make_session"]

NAMES = ("miller", "smith", "garcia", "okafor", "tanaka")


def make_job(folder: Path, count: int = 5, side: int = 1024) -> Path:
    """Explain so many synthetic slides with the demo's network; return the job's folder. The first, third, ... have a lesion."""
    (folder / "patients").mkdir(parents=True)
    labels = ["slide_id,label"]
    for number, name in enumerate(NAMES[:count]):
        write_synthetic_slide(folder / "patients" / f"{name}.svs", size=(side, side), seed=number, lesion=number % 2 == 0)
        labels.append(f"{name}.svs,{'lesion' if number % 2 == 0 else 'normal'}")
    (folder / "truth.csv").write_text("\n".join(labels) + "\n")
    arguments = ["-i", str(folder / "patients"), "-o", str(folder / "job"), "-m", "demo", "--target", "lesion", "--quiet"]
    assert main(["saliency", *arguments]) == 0
    return folder / "job"


def make_session(job: Path, path: Path, *options: str, readers: str = "a,b") -> Path:
    """Make a session of a job, with the truth known; return its file."""
    truth = ["--truth", str(job.parent / "truth.csv")]
    assert main(["review", "new", str(job), "-o", str(path), "--readers", readers, "--seed", "5", *truth, *options]) == 0
    return path
