"""The command ``review``: sessions made, followed, exported and put together again."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from streamview.cli.console import amount, say
from streamview.errors import StreamviewError

__all__ = ["review"]


def review(options: Namespace, arguments: list[str]) -> int:
    """Run one of the actions."""
    return _ACTIONS[options.action](options)


def _new(options: Namespace) -> int:
    from streamview.jobs import Job
    from streamview.review import Vocabulary, create_session
    from streamview.review.cases import class_names, job_cases, read_truth, usual_vocabulary

    job = Job(options.job)
    if not (job.folder / "slides").is_dir():
        raise StreamviewError(f"{job.folder}: is not a job folder; give one written by streamview predict or saliency")
    cases = job_cases(job, None if options.truth is None else read_truth(options.truth))
    if options.verdicts is None:
        vocabulary = usual_vocabulary(class_names(job))
    else:
        try:
            values = json.loads(Path(options.verdicts).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StreamviewError(f"{options.verdicts}: cannot be read as JSON: {error}") from error
        vocabulary = Vocabulary.from_dict(values if isinstance(values, dict) else {})
    with create_session(
        options.output,
        cases,
        options.readers.split(","),
        design=options.design,
        seed=options.seed,
        vocabulary=vocabulary,
        washout_days=options.washout,
    ) as session:
        readers = ", ".join(session.readers)
        say(f"{options.output}: {_count(len(session.cases), 'slide')}, {session.design}, readers {readers}")
        say(f"verdicts: {', '.join(session.vocabulary.verdicts)}")
        if session.store.network:
            say("the file is on a network drive: every event is written with a rollback journal, which is slower and as safe")
    return 0


def _status(options: Namespace) -> int:
    from streamview.review import Session

    with Session(options.session) as session:
        session.store.check()
        say(f"{options.session}: {session.design}, {_count(len(session.cases), 'slide')}")
        for name in session.readers:
            readings = session.reader(name).readings()
            done = sum(reading.done for reading in readings.values())
            minutes = sum(reading.seconds for reading in readings.values()) / 60
            say(f"  {name}: {done} of {len(readings)} verdicts, {minutes:.0f} min")
    return 0


def _stats(options: Namespace) -> int:
    from streamview.review import Session
    from streamview.review.summary import write_summary

    with Session(options.session) as session:
        for path in write_summary(session, options.output, options.positive):
            say(f"written: {path}")
    return 0


def _export(options: Namespace) -> int:
    from streamview.files import atomic
    from streamview.review import Session
    from streamview.review.tables import write_verdicts

    path = Path(options.output)
    if path.exists():
        raise StreamviewError(f"{path}: exists; choose another name")
    if options.dicom is not None and not options.names:
        raise StreamviewError("--dicom: reports name the patients of the slides, so give --names too, or leave out --dicom")
    with Session(options.session) as session:
        if options.dicom is not None:
            from streamview.review.dicom import write_reports

            for report in write_reports(session, options.dicom):
                say(f"written: {report}")
        atomic.write_text(path, write_verdicts(session, names=options.names))
    say(f"written: {path}")
    return 0


def _pack(options: Namespace) -> int:
    from streamview.review.bundle import pack

    path = pack(options.session, options.output)
    say(f"written: {path} ({amount(path.stat().st_size)}); it names its slides")
    return 0


def _unpack(options: Namespace) -> int:
    from streamview.review.bundle import unpack

    say(f"written: {unpack(options.archive, options.output)}")
    return 0


def _merge(options: Namespace) -> int:
    from streamview.review.bundle import merge

    for other in options.others:
        say(f"{other}: {_count(merge(options.session, other), 'new event')}")
    return 0


def _recover(options: Namespace) -> int:
    from streamview.review.store import recover

    say(f"{options.output}: {_count(recover(options.session, options.output), 'event')} saved")
    return 0


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


_ACTIONS: Mapping[str, Callable[[Namespace], int]] = {
    "new": _new,
    "status": _status,
    "stats": _stats,
    "export": _export,
    "pack": _pack,
    "unpack": _unpack,
    "merge": _merge,
    "recover": _recover,
}
