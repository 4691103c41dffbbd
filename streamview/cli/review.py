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
    from streamview.cohort.worklist import read_worklist
    from streamview.jobs import Job
    from streamview.review import Case, Vocabulary, create_session
    from streamview.review.cases import class_names, job_cases, read_truth, slide_cases, usual_vocabulary

    truth = None if options.truth is None else read_truth(options.truth)
    job = Job(options.slides) if (Path(options.slides) / "slides").is_dir() else None
    if job is not None:
        cases, names = job_cases(job, truth), class_names(job)
    else:
        listed = [Case(each.name, each.source, each.mpp, each.label) for each in read_worklist([options.slides])]
        cases = slide_cases(listed, truth)
        names = tuple(sorted({case.truth for case in cases} - {""}))
    if options.verdicts is None and job is None and len(names) < 2:
        raise StreamviewError(f"{options.slides}: has no two labels; name the verdicts with --verdicts")
    if options.verdicts is None:
        vocabulary = usual_vocabulary(names)
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
        design=options.design or ("unaided" if job is None else "staged"),
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


def _read(options: Namespace) -> int:
    from streamview.system.doctor import check_window

    check = check_window()
    if not check.ok:
        raise StreamviewError(f"cannot open a window: {check.found}; {check.remedy}")
    from streamview_napari.view import run_review

    run_review(options.session, options.reader)
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
    from streamview.review.annotations import export_regions
    from streamview.review.dicom import write_reports
    from streamview.review.tables import write_verdicts

    path = Path(options.output)
    if path.exists():
        raise StreamviewError(f"{path}: exists; choose another name")
    if options.dicom is not None and not options.names:
        raise StreamviewError("--dicom: reports name the patients of the slides, so give --names too, or leave out --dicom")
    with Session(options.session) as session:
        regions = [] if options.regions is None else export_regions(session, options.regions)
        reports = [] if options.dicom is None else write_reports(session, options.dicom)
        atomic.write_text(path, write_verdicts(session, names=options.names))
    for written in (path, *regions, *reports):
        say(f"written: {written}")
    return 0


def _annotate(options: Namespace) -> int:
    from streamview.review import Session
    from streamview.review.annotations import import_regions

    with Session(options.session) as session:
        count = import_regions(session, options.reader, options.case, options.annotations)
    say(f"{options.case}: {_count(count, 'region')} added for {options.reader}")
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
    "read": _read,
    "status": _status,
    "stats": _stats,
    "export": _export,
    "annotate": _annotate,
    "pack": _pack,
    "unpack": _unpack,
    "merge": _merge,
    "recover": _recover,
}
