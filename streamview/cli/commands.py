"""One function per command: call the core, show the result, return the exit status."""

from __future__ import annotations

import contextlib
import json
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from streamview.cli.console import Bars, amount, say, warn
from streamview.cli.evaluate import evaluate
from streamview.cli.faithfulness import faithfulness, verdicts
from streamview.cli.finetune import finetune
from streamview.cli.info import info
from streamview.cli.review import review
from streamview.cli.run import predict, saliency
from streamview.cli.talk import show_answer, show_cost, show_forecast
from streamview.errors import StreamviewError

if TYPE_CHECKING:
    from streamview.jobs import Job

__all__ = ["COMMANDS"]


def _convert(options: Namespace, arguments: list[str]) -> int:
    from streamview.files import atomic
    from streamview.geometry import RegionText
    from streamview.slides import open_slide
    from streamview.slides.pyramid import build_pyramid, discard_unfinished, pyramid_shapes
    from streamview.system.machine import free_disk

    start = time.monotonic()
    text = None if options.region is None else RegionText.parse(options.region)
    with open_slide(options.slide, options.mpp, options.channel) as slide, Bars() as bars:
        region = None if text is None else text.on(slide.mpp, slide.name)
        shapes = pyramid_shapes(slide, region=region, mpp=options.target_mpp, levels=options.levels)
        largest, free = 3 * sum(height * width for height, width in shapes), free_disk(options.output)  # before compression
        height, width = shapes[0]
        say(f"{slide.name}: {width} x {height} px, levels: {len(shapes)}; writes at most {amount(largest)}, {amount(free)} are free")
        if largest > free:
            warn("the disk may be too small: free some space, or write to another disk")
        if slide.mpp is None:
            warn("the micrometres per pixel are unknown, and will be in the pyramid: set them with --mpp")
        if options.restart:
            with atomic.disk_errors(Path(options.output)):
                discard_unfinished(options.output)
        build_pyramid(
            slide,
            options.output,
            region=region,
            mpp=options.target_mpp,
            levels=options.levels,
            codec=options.codec,
            keep_metadata=options.keep_metadata,
            tell=say,
            report=bars,
        ).close()
        say(f"written: {options.output}")
    show_cost(time.monotonic() - start)
    return 0


def _export(options: Namespace, arguments: list[str]) -> int:
    from streamview.export.dicom import Storage
    from streamview.export.job import export_job
    from streamview.jobs import Job
    from streamview.results.display import DisplayChoice

    empty: list[str] = []
    job, formats = Job(options.job), [form for form in options.format if form != "table"]
    if "table" in options.format:
        _check_job(job)
        for path in job.write_tables():
            say(f"written: {path}")
    if not formats:
        return 0
    with Bars() as bars:
        written = export_job(
            job,
            formats,
            slides=options.slide,
            out=options.output,
            display=DisplayChoice(options.display, options.blur, options.threshold),
            png_size=options.png_size,
            storage=Storage(options.dicom_values, None if options.dicom_levels is None else tuple(options.dicom_levels)),
            tell=empty.append,
            report=bars,
        )
    for path in written:
        say(f"written: {path}")
    for reason in empty:
        warn(reason)
    return 0


def _report(options: Namespace, arguments: list[str]) -> int:
    from streamview.export.report import write_report
    from streamview.jobs import Job
    from streamview.results.display import DisplayChoice

    job = Job(options.job)
    _check_job(job)
    display = DisplayChoice(options.display, options.blur, options.threshold)
    with Bars() as bars:
        written = write_report(job, options.output, slides=options.slide, display=display, report=bars)
    for path in written:
        say(f"written: {path} ({amount(path.stat().st_size)})")
    return 0


def _check_job(job: Job) -> None:
    if not (job.folder / "slides").is_dir():
        raise StreamviewError(f"{job.folder}: is not a job folder; give one written by streamview predict or saliency")


def _jobs(options: Namespace, arguments: list[str]) -> int:
    from streamview.geometry import Region
    from streamview.jobs import Job, aggregate, by_policy, region_id

    job = Job(options.job)
    _check_job(job)
    if options.action == "rm":
        for name in job.remove(options.slide, None if options.region is None else Region.parse(options.region)):
            say(f"removed: {name}")
        return 0
    for record in job.slides():
        say(f"{record.slide_id}{'' if record.source is None else f'  ({record.source})'}")
        for result in record.regions:
            prediction = result.prediction
            state = record.superseded(result) or ("" if result.holds_tissue else "no tissue, not counted")
            facts = f"{region_id(prediction.region)}  {prediction.model_name}  {prediction.answer}"
            say(f"  {facts}{state and f'  [{state}]'}{'  with maps' if result.maps else ''}")
            for line in verdicts(job, result):
                say(f"    {line}")
        for group in by_policy(record):
            whole = aggregate(group)
            summary = f"none: {whole.reason}" if whole.prediction is None else f"{whole.prediction.answer}  ({whole.method})"
            say(f"  slide  {group.results[-1].prediction.model_name}  {summary}")
        if record.error is not None:
            say(f"  failed: {record.error}")
    return 0


def _verify(options: Namespace, arguments: list[str]) -> int:
    from streamview.geometry import Region, RegionText
    from streamview.inference.compute import Compute
    from streamview.inspection.verification import verify, write_certificate
    from streamview.jobs import Job, region_id
    from streamview.networks import load_model
    from streamview.slides import open_slide

    if options.region is not None and options.slides is None:
        raise StreamviewError(f"--region {options.region}: there is no slide; name one with -i, or leave out --region")
    start = time.monotonic()
    text = None if options.region is None else RegionText.parse(options.region)
    job = None if options.output is None else Job(options.output)
    model = load_model(options.model, weights=options.weights, card=options.card, untrained=options.untrained)
    for note in model.notes:
        warn(note)
    with contextlib.ExitStack() as open_while, Bars() as bars:
        slide = None if options.slides is None else open_while.enter_context(open_slide(options.slides, options.mpp))
        region = None if text is None or slide is None else text.on(slide.mpp, slide.name)
        certificate = verify(
            model, slide, region, windows=options.windows, seed=options.seed, compute=Compute(options.device, options.memory), report=bars
        )
        pixels = "random" if slide is None else f"{slide.name}-{region_id(region or Region(0, 0, *slide.shape))}"
    say(str(certificate))
    files = [] if options.json is None else [Path(options.json)]
    files += [] if job is None else [job.certificate_path(pixels, model.sha256)]
    for path in files:
        write_certificate(certificate, path)
        say(f"written: {path}")
    show_cost(time.monotonic() - start)
    return 0 if certificate.passed else 1


def _models(options: Namespace, arguments: list[str]) -> int:
    return _list_models() if options.action is None else _inspect(options)


def _inspect(options: Namespace) -> int:
    from streamview.inspection.model import inspect_model

    report = inspect_model(options.model, weights=options.weights, card=options.card, untrained=options.untrained, outlooks=True)
    say(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if options.json else str(report))
    return 0 if report.streams else 1


def _list_models() -> int:
    from streamview_models import ALIASES, MODELS

    from streamview.networks import load_card

    rows = [("MODEL", "CLASSES", "MPP", "TRAINED", "LICENCE")]
    for name in MODELS:
        card = load_card(name)
        classes = ", ".join(card.class_names) if len(card.class_names) <= 2 else f"{len(card.class_names)}: {card.class_names[0]} ..."
        mpp = "any" if card.mpp is None else f"{card.mpp:g}"
        rows.append((name, classes, mpp, "yes" if card.trained else "no (--untrained)", card.licence or "not stated"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        say("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row[:4], widths, strict=True)), row[4]]))
    short = ", ".join(f"{alias} = {name}" for alias, name in ALIASES.items())
    say(f"short names: {short}")
    say("-m also accepts timm:NAME, torchvision:NAME, package.module:function, FILE.pt2 or a folder with card.json and weights.safetensors")
    return 0


def _doctor(options: Namespace, arguments: list[str]) -> int:
    from streamview.system.doctor import examine

    ready = True
    for check in examine():
        state = "ok" if check.ok else "missing" if check.needed else "-"
        say(f"{state:<8} {check.name:<16} {check.found}{'' if check.ok else f'; {check.remedy}'}")
        ready &= check.ok or not check.needed
    say("ready" if ready else "not ready: fix what is missing")
    return 0 if ready else 1


def _view(options: Namespace, arguments: list[str]) -> int:
    from streamview.system.doctor import check_window

    check = check_window()
    if not check.ok:
        raise StreamviewError(f"cannot open a window: {check.found}; {check.remedy}")
    from streamview_napari.view import run

    run(options.path)
    return 0


def _demo(options: Namespace, arguments: list[str]) -> int:
    from streamview.demo import run_demo, run_demo_on
    from streamview.inference.compute import Compute

    with Bars() as bars:
        compute = Compute(options.device, options.memory, precision=options.precision)
        own, synthetic = partial(run_demo_on, options.slide), partial(run_demo, size=options.size, untrained=options.untrained)
        how = synthetic if options.slide is None else own
        result = how(options.output, compute=compute, tell=say, announce=show_forecast, report=bars, command=arguments)
    say("")
    show_answer(result.answer)
    if options.slide is not None:
        say(f"job: {result.job} (view it: streamview view {result.job})")
        show_cost(result.seconds)
        return 0
    say(f"slide, pyramid and job: {options.output} (view them: streamview view {result.job})")
    say(f"\nthe lesion covers {result.lesion_share:.2%} of the slide; share of each map's positive mass inside, and ratio to that area:")
    for row in result.localisation:
        say(f"  {row.what:<58} {row.inside:6.1%}  {row.inside / result.lesion_share:5.1f}x")
    say("")
    show_cost(result.seconds)
    return 0


COMMANDS: Mapping[str, Callable[[Namespace, list[str]], int]] = {
    "demo": _demo,
    "info": info,
    "convert": _convert,
    "export": _export,
    "report": _report,
    "predict": predict,
    "saliency": saliency,
    "finetune": finetune,
    "evaluate": evaluate,
    "faithfulness": faithfulness,
    "verify": _verify,
    "models": _models,
    "jobs": _jobs,
    "review": review,
    "doctor": _doctor,
    "view": _view,
}
