"""The commands and options; every command's help ends with an example that parses."""

from __future__ import annotations

import argparse

from streamview import __version__
from streamview.cli.usage import Parser, micrometres

__all__ = ["build_parser"]

_REGION = "X,Y,WIDTH,HEIGHT"
_LENGTHS = "each in level-0 pixels, um or mm, as in 1mm,500um,2048,2048"
_MODEL = "a name from `streamview models`, a folder with card and weights, timm:NAME, torchvision:NAME, module:function or FILE.pt2"

_METHOD = (
    "how to explain: gradient; smoothgrad:samples=16,noise=0.15,seed=0 (mean over noisy copies); "
    "integrated-gradients:steps=32,baseline=glass (along the path from glass or black); grad-cam (weighted last features); "
    "occlusion:patch=256,stride=256 (score lost by hiding px of the grid); others go over the region many times (default: gradient)"
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; without a command, ``command`` is None."""
    parser = Parser(
        prog="streamview",
        description="Exact streamed prediction and full-resolution saliency of whole-slide regions with any CNN, in bounded memory. "
        "Research use only.",
        epilog="example:\n  streamview demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"streamview {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, purpose: str, example: str) -> Parser:
        return commands.add_parser(
            name,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            epilog=f"example:\n  streamview {name} {example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    demo = add("demo", "make a synthetic slide with a planted lesion, predict and explain it; needs no download", "-o demo-output")
    demo.add_argument("-o", "--output", metavar="FOLDER", default="demo-output", help="output folder (default: demo-output)")
    own = "a slide of H&E-stained tissue to predict and explain instead, by the network camelyon16-tiles; not for diagnosis"
    demo.add_argument("-i", "--slide", metavar="SLIDE", help=own)
    demo.add_argument("--size", type=int, metavar="PX", default=4096, help="side of the slide in px, 512 or more (default: 4096)")
    _machine(demo)
    _precision(demo)

    info = add("info", "describe a slide: size, mpp, levels, reader, and the properties left out of outputs", "slide.svs")
    info.add_argument("slide", metavar="SLIDE", help="a file, a folder, or the URL of an OME-Zarr image")
    info.add_argument("--json", action="store_true", help="print as JSON")
    _channel(info)
    _mpp(info)

    convert = add("convert", "convert a slide to an OME-Zarr 0.5 pyramid", "slide.svs -o slide.ome.zarr")
    convert.add_argument("slide", metavar="SLIDE", help="a file, a folder, or the URL of an OME-Zarr image")
    convert.add_argument("-o", "--output", metavar="OUT.ome.zarr", required=True, help="folder to write; must not exist")
    convert.add_argument("--region", metavar=_REGION, help=f"part to convert, {_LENGTHS} (default: the whole slide)")
    target = "micrometres per pixel of the finest level, resampled by exact area means (default: the slide's own)"
    convert.add_argument("--target-mpp", type=micrometres, metavar="UM", help=target)
    convert.add_argument("--levels", type=int, metavar="N", help="number of levels (default: until the longest side is 1024 px or less)")
    codec = "lossless compression; lz4 is faster and its files are larger (default: zstd)"
    convert.add_argument("--codec", choices=("zstd", "lz4"), default="zstd", help=codec)
    metadata = "store all properties of the slide's file, which may name a patient, not only those known to be safe"
    convert.add_argument("--keep-metadata", action="store_true", help=metadata)
    restart = "start over instead of resuming an unfinished conversion"
    convert.add_argument("--restart", action="store_true", help=restart)
    _channel(convert)
    _mpp(convert)

    example = "-i a.svs b.svs -o job -m camelyon17 --untrained --skip-errors"
    predict = add("predict", "predict for whole slides or a region of each", example)
    _job(predict)
    per = "one answer for the whole region, streamed, or one for each of its patches (default: as the model's card says; WSInfer: patch)"
    predict.add_argument("--per", choices=("region", "patch"), help=per)

    saliency = add(
        "saliency",
        "predict, and compute saliency maps at full resolution",
        "-i slide.svs -o job -m demo --target lesion --region 1024,2048,4096,4096 --display detail --memory 2GB",
    )
    _job(saliency)
    target = "classes (regression: outputs) to explain; a-b: the difference of two logits; all: every class "
    target += "(default: the class of interest that the card names, else the predicted class)"
    saliency.add_argument("--target", nargs="+", metavar="CLASS", help=target)
    saliency.add_argument("--method", metavar="NAME[:PARAMETER=VALUE,...]", default="gradient", help=_METHOD)
    saliency.add_argument(
        "--display",
        choices=("evidence", "detail", "paper"),
        help="how the picture shows the maps: class evidence (extent), signed gradient (detail), or as in the paper "
        "(default: evidence where the network has it, else paper)",
    )

    _finetune(add("finetune", "fine-tune a network on labelled regions", "-i labels.csv -m demo -o tuned --preset careful"))

    evaluate = add(
        "evaluate",
        "evaluate a network on labelled regions: accuracy, AUC, calibration, with intervals by patient",
        "-i labels.csv -m demo -o evaluation --slides slides",
    )
    _labels(evaluate)
    evaluate.add_argument("-o", "--output", metavar="FOLDER", required=True, help="folder for metrics, table and pictures")
    _model(evaluate)
    resamples = "bootstrap resamples for the intervals; 0: no intervals (default: 2000)"
    evaluate.add_argument("--resamples", type=_whole, default=2000, metavar="N", help=resamples)
    skip = "continue after a region that fails; it remains as a row of the table, and the exit status is 1"
    evaluate.add_argument("--skip-errors", action="store_true", help=skip)
    _machine(evaluate)
    _precision(evaluate)
    _tile(evaluate)

    verify = add("verify", "compare the streamed network with the plain one, in float64", "-m demo -i slide.svs --region 0,0,4096,4096")
    _model(verify)
    verify.add_argument("-i", "--slides", metavar="SLIDE", help="slide to take the pixels from (default: random pixels)")
    verify.add_argument("--region", metavar=_REGION, help=f"part of the slide, {_LENGTHS} (default: all)")
    verify.add_argument("--windows", type=int, default=3, metavar="N", help="number of random windows to compare (default: 3)")
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the windows and their steps (default: 0)")
    verify.add_argument("--json", metavar="FILE", help="write the certificate as JSON")
    verify.add_argument("-o", "--output", metavar="JOB", help="write the certificate into certificates/ of this job folder")
    _mpp(verify)
    _machine(verify)

    models = add("models", "list the networks that come with streamview, or inspect any network", "inspect timm:resnet50")
    actions = models.add_subparsers(dest="action", metavar="inspect", help="say whether and how a network streams; has its own help")
    inspect = actions.add_parser(
        "inspect",
        description="Report whether a network streams, where it is cut, its receptive field, the images it accepts, and forecasts. A name "
        "needs no weights. The exit status is 1 if it cannot be streamed.",
        epilog="example:\n  streamview models inspect timm:resnet50",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("model", metavar="MODEL", help=_MODEL)
    _files(inspect)
    inspect.add_argument("--untrained", action="store_true", help="ignore the weights of a folder")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")

    jobs = add("jobs", "list a job's results, or remove a slide or a region from it", "rm job --slide a.svs --region 0,0,4096,4096")
    manage = jobs.add_subparsers(dest="action", metavar="list|rm", required=True, help="each has its own help")
    listed = manage.add_parser(
        "list",
        description="List the answers of a job: their regions, whether each counts, and if not, why.",
        epilog="example:\n  streamview jobs list job",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed.add_argument("job", metavar="JOB", help="a job folder")
    remove = manage.add_parser(
        "rm",
        description="Remove a slide, or its answers for one region, from a job, with maps and pictures. The slide file is not touched.",
        epilog="example:\n  streamview jobs rm job --slide a.svs --region 0,0,4096,4096",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    remove.add_argument("job", metavar="JOB", help="a job folder")
    remove.add_argument("--slide", metavar="NAME", required=True, help="slide_id of the table")
    remove.add_argument("--region", metavar=_REGION, help="remove only this region's answers; level-0 pixels (default: the whole slide)")

    export = add("export", "write a job's maps for other programs", "job --format ome-tiff geojson -o for-qupath")
    export.add_argument("job", metavar="JOB", help="a job folder with maps")
    forms = ("ome-zarr", "ome-tiff", "geojson", "png")
    formats = (
        "formats to write (default: all of maps but dicom); geojson: hotspots; dicom: maps, hotspots and report of slides that are DICOM; "
    )
    formats += "table: the job's tables, written anew from its records"
    export.add_argument("--format", nargs="+", choices=(*forms, "dicom", "table"), default=forms, help=formats)
    export.add_argument("--slide", nargs="+", metavar="NAME", default=(), help="slides to export, by name (default: all)")
    export.add_argument("-o", "--output", metavar="FOLDER", help="output folder (default: export/ in the job); no file is replaced")
    _display(export)
    export.add_argument("--png-size", type=int, metavar="PX", default=2048, help="longest side of a picture, 1100 to 16384 (default: 2048)")
    values = "values of maps as DICOM: raw, or in 65535 steps for readers without floats (default: float32)"
    export.add_argument("--dicom-values", choices=("float32", "uint16"), default="float32", help=values)
    levels = "levels of maps as DICOM, 0 the finest, each half the one before (default: all, down to 512 px)"
    export.add_argument("--dicom-levels", nargs="+", type=_whole, metavar="N", help=levels)

    report = add("report", "write a job as one HTML page to read, print and send, and as JSON", "job -o review.html")
    report.add_argument("job", metavar="JOB", help="a job folder")
    output = "HTML file, with the JSON beside it (default: review.html in the job); an earlier report is replaced, no other file"
    report.add_argument("-o", "--output", metavar="FILE.html", help=output)
    report.add_argument("--slide", nargs="+", metavar="NAME", default=(), help="slides to show, by name (default: all)")
    _display(report)

    _faithfulness(add("faithfulness", "check whether a job's maps show what the network uses", "job --annotations slide.geojson"))

    _review(add("review", "make a review session of a job, see how far it is, and export it", "new job -o session.sqlite --readers a,b"))

    add("doctor", "check this machine and say what to do", "")

    view = add("view", "open a slide, or a job with its maps in place, in napari", "job")
    view.add_argument("path", metavar="SLIDE|JOB", help="a slide, a pyramid, a saved saliency map or a job folder")
    return parser


def _faithfulness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="a job folder with maps; the verdicts are stored in it")
    parser.add_argument("--slide", nargs="+", metavar="NAME", default=(), help="slides to check, by name (default: all)")
    parser.add_argument("--target", nargs="+", metavar="CLASS", default=(), help="targets whose maps are checked (default: all)")
    annotations = "compare the maps with annotations: QuPath's GeoJSON, ASAP's XML, a PNG mask of the whole slide, or a folder with a file "
    annotations += "named as each slide"
    parser.add_argument("--annotations", metavar="FILE|FOLDER", help=annotations)
    model = f"network of the maps (default: the one named in the job): {_MODEL}"
    parser.add_argument("-m", "--model", metavar="MODEL", help=model)
    _files(parser)
    patch = "side of the squares that are erased, px of the network's grid (default: a sixteenth of the region's side)"
    parser.add_argument("--patch", type=int, metavar="PX", help=patch)
    parser.add_argument("--steps", type=int, metavar="N", default=10, help="steps of deletion and insertion (default: 10)")
    parser.add_argument("--rankings", type=int, metavar="N", default=5, help="random rankings to beat (default: 5)")
    parser.add_argument("--shuffles", type=int, metavar="N", default=5, help="networks with shuffled weights (default: 5)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of all that is random (default: 0)")
    restart = "measure again what was measured, and start unfinished work over instead of resuming it"
    parser.add_argument("--restart", action="store_true", help=restart)
    _machine(parser)
    _tile(parser)


def _review(parser: argparse.ArgumentParser) -> None:
    """Add the actions on a review session."""
    actions = parser.add_subparsers(
        dest="action",
        metavar="new|read|status|stats|export|annotate|pack|unpack|merge|recover",
        required=True,
        help="each has its own help",
    )

    def add(name: str, purpose: str, example: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            epilog=f"example:\n  streamview review {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    new = add(
        "new", "make a session of a job, or of slides without a network", "job -o session.sqlite --readers a,b --design staged --seed 7"
    )
    slides = (
        "a job folder, by streamview saliency, whose maps readers see after their own verdict; or a slide, a folder or a table of slides"
    )
    new.add_argument("slides", metavar="JOB|SLIDES|CSV", help=slides)
    new.add_argument("-o", "--output", metavar="SESSION", required=True, help="the session's file; must not exist")
    new.add_argument("--readers", metavar="NAME,...", required=True, help="the readers, or pseudonyms of theirs")
    designs = (
        "staged: alone, locked, then with the network's answer; concurrent: with it; crossover: both, in two periods; "
        "unaided: alone, of slides without a job (default: staged for a job, else unaided)"
    )
    new.add_argument("--design", choices=("staged", "concurrent", "crossover", "unaided"), help=designs)
    new.add_argument("--seed", type=int, default=0, help="decides all orders (default: 0)")
    new.add_argument(
        "--truth",
        metavar="FILE.csv",
        help="slide_id,label: the slides to read and their true classes (default: the labels of the job or table)",
    )
    verdicts = (
        'JSON: {"verdicts": ["benign", "malignant"], "ordinal": false, "confidence": 5} '
        "(default: the classes of the network, else the labels)"
    )
    new.add_argument("--verdicts", metavar="FILE.json", help=verdicts)
    new.add_argument("--washout", type=float, metavar="DAYS", default=0.0, help="of a crossover, between its periods (default: 0)")

    read = add("read", "read a session in napari, from where the reader left off", "session.sqlite --reader a")
    read.add_argument("session", metavar="SESSION", help="a session's file")
    read.add_argument("--reader", metavar="NAME", help="who reads (default: asked for in the window)")

    status = add("status", "say how far each reader is", "session.sqlite")
    status.add_argument("session", metavar="SESSION", help="a session's file")

    stats = add(
        "stats", "compute what the reads are worth: agreement, change by the network, accuracy", "session.sqlite -o stats --positive lesion"
    )
    stats.add_argument("session", metavar="SESSION", help="a session's file")
    stats.add_argument(
        "-o", "--output", metavar="FOLDER", required=True, help="for statistics.json, charts and reads.imrmc; ids alone, no names"
    )
    positive = "verdicts that count as positive (default: the second of two)"
    stats.add_argument("--positive", nargs="+", metavar="VERDICT", default=(), help=positive)

    export = add("export", "write the verdicts as a table, without the names of slides", "session.sqlite -o verdicts.csv")
    export.add_argument("session", metavar="SESSION", help="a session's file")
    export.add_argument("-o", "--output", metavar="FILE.csv", required=True, help="the table; must not exist")
    export.add_argument("--names", action="store_true", help="with the slides' names, their truth and all answers of the network")
    reports = "write a DICOM report of each slide with its verdicts, for slides that are DICOM; needs --names; must not exist"
    export.add_argument("--dicom", metavar="FOLDER", help=reports)

    export.add_argument(
        "--regions", metavar="FOLDER", help="also what the readers have drawn, as GeoJSON for QuPath, a file a slide and reader"
    )

    annotate = add(
        "annotate", "add the annotations of a file to what a reader has drawn", "session.sqlite C007.geojson --reader a --case C007"
    )
    annotate.add_argument("session", metavar="SESSION", help="a session's file")
    annotate.add_argument("annotations", metavar="FILE", help="QuPath's GeoJSON or ASAP's XML, in level-0 pixels")
    annotate.add_argument("--reader", metavar="NAME", required=True, help="who drew it")
    annotate.add_argument("--case", metavar="ID", required=True, help="the slide, by its id in the session")

    pack = add("pack", "write a session as one zip with hashes; it names its slides", "session.sqlite -o session.zip")
    pack.add_argument("session", metavar="SESSION", help="a session's file")
    pack.add_argument("-o", "--output", metavar="FILE.zip", required=True, help="the zip; must not exist")

    unpack = add("unpack", "write the session of a zip to a file", "session.zip -o session.sqlite")
    unpack.add_argument("archive", metavar="FILE.zip", help="what `streamview review pack` has written")
    unpack.add_argument("-o", "--output", metavar="SESSION", required=True, help="the session's file; must not exist")

    merge = add("merge", "add what other files of the same session hold", "session.sqlite from-a.zip from-b.sqlite")
    merge.add_argument("session", metavar="SESSION", help="a session's file, which grows")
    merge.add_argument("others", metavar="OTHER", nargs="+", help="sessions or zips")

    recover = add("recover", "save what can be read of a damaged session", "session.sqlite -o saved.sqlite")
    recover.add_argument("session", metavar="SESSION", help="the damaged file, which is only read")
    recover.add_argument("-o", "--output", metavar="SESSION", required=True, help="the new file; must not exist")


def _finetune(parser: argparse.ArgumentParser) -> None:
    _labels(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="model folder to write; an unfinished run in it is resumed")
    _model(parser)
    preset = "head: only the head, on features computed once; careful: the last stage; all: every layer, as in the paper (default: all)"
    parser.add_argument("--preset", choices=("head", "careful", "all"), default="all", help=preset)
    parser.add_argument("--train", choices=("head", "last-stage", "all"), help="the part that is trained (default: the preset's)")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="learning rate of the first epoch")
    parser.add_argument("--weight-decay", type=float, metavar="FACTOR", help="L2 penalty")
    batch = "regions whose gradients are accumulated for one optimiser step"
    parser.add_argument("--batch", type=int, metavar="N", help=batch)
    parser.add_argument("--epochs", type=int, metavar="N", help="maximum number of epochs")
    parser.add_argument("--patience", type=int, metavar="N", help="stop after N epochs without a lower validation loss; 0: never")
    share = "share of the patients used for validation, 0 to 0.5 (default: 0.25); ignored if the table has a column split"
    parser.add_argument("--validation", type=float, metavar="SHARE", help=share)
    parser.add_argument("--optimiser", choices=("adam", "sgd"), help="sgd has a momentum of 0.9 (default: adam)")
    parser.add_argument("--decay", type=float, metavar="FACTOR", help="factor of the learning rate from epoch to epoch (default: 0.99)")
    parser.add_argument("--no-class-weights", action="store_true", help="do not weight the loss by inverse class frequency")
    parser.add_argument("--no-flips", action="store_true", help="do not rotate and mirror training regions")
    parser.add_argument("--jitter", type=float, metavar="SHARE", help="colour jitter of training regions, such as 0.05; 0: none")
    augment = "also rotate freely, deform, shift contrast, saturation and hue, and cut out, as in the paper"
    parser.add_argument("--augment", choices=("none", "paper"), default="none", help=f"{augment} (default: none)")
    start = "train from scratch: random weights (he), or those scaled to unit variance of every layer (lsuv); default: the base's weights"
    parser.add_argument("--initialise", choices=("he", "lsuv"), help=start)
    arithmetic = "arithmetic of the streamed part while training; weights and their gradients stay in float32 (default: float32)"
    parser.add_argument("--precision", choices=("float32", "bf16"), help=arithmetic)
    parser.add_argument("--seed", type=int, metavar="N", help="seed of split, order, augmentation and new head (default: 0)")
    parser.add_argument("--new-head", action="store_true", help="replace the head by a new one for the labels of the table")
    parser.add_argument("--force", action="store_true", help="train even if a label has fewer than ten patients")
    parser.add_argument("--restart", action="store_true", help="start over, discarding an earlier run in the folder")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="also write losses and metrics as TensorBoard's event files")
    together = "train as one of the processes that torchrun has started, each with its share of every batch"
    parser.add_argument("--distributed", action="store_true", help=together)
    _machine(parser)
    _tile(parser)


def _display(parser: argparse.ArgumentParser) -> None:
    display = "how pictures and hotspots show the maps (default: evidence where the network has it, else paper)"
    parser.add_argument("--display", choices=("evidence", "detail", "paper"), help=display)
    parser.add_argument("--blur", type=micrometres, metavar="UM", help="blur in um (default: the display's)")
    threshold = "threshold as a share (0 to 1) of the cap (default: the display's)"
    parser.add_argument("--threshold", type=float, metavar="SHARE", help=threshold)


def _tile(parser: argparse.ArgumentParser) -> None:
    tile = "step size on the network's grid (default: chosen by memory); the same size gives bit-identical results on one machine"
    parser.add_argument("--tile", metavar="ROWS,COLUMNS", help=tile)


def _labels(parser: argparse.ArgumentParser) -> None:
    table = "table of labelled regions: slide_id,label[,patient_id,x,y,width,height,mpp,split]"
    parser.add_argument("-i", "--labels", metavar="LABELS.csv", required=True, help=table)
    parser.add_argument("--slides", metavar="FOLDER", help="folder of the slides (default: that of the table)")


def _whole(text: str) -> int:
    """Read a whole number of 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return number


def _mpp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mpp", type=micrometres, metavar="UM", help="micrometres per level-0 pixel of the slide (default: from the file)")


def _channel(parser: argparse.ArgumentParser) -> None:
    channel = "number (from 0) or name of one channel of an image that is not RGB, to read as grey"
    parser.add_argument("--channel", metavar="N|NAME", help=channel)


def _machine(parser: argparse.ArgumentParser) -> None:
    bound = (
        "memory limit of the process, on CUDA of the device: 2GB, 512M (GB = 2^30) or a share of the total such as 50%% "
        "(default: half of the free memory)"
    )
    parser.add_argument("--memory", metavar="2GB", help=bound)
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="device to compute on (default: CUDA if available)")
    parser.add_argument("--untrained", action="store_true", help="use seeded random weights; every output then says so")


def _precision(parser: argparse.ArgumentParser) -> None:
    precision = "precision of the streamed part; bf16 and fp16 halve the memory and are fast where supported (default: float32)"
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32", help=precision)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="MODEL", required=True, help=_MODEL)
    _files(parser)


def _files(parser: argparse.ArgumentParser) -> None:
    weights = (
        "weights of the network: safetensors, a state_dict or a training checkpoint; FILE:KEY if it holds several, such as plain and "
        "averaged ones; code in it is never run (default: the model's own)"
    )
    parser.add_argument("--weights", metavar="FILE[:KEY]", help=weights)
    parser.add_argument("--card", metavar="FILE", help="card that describes the network's inputs and outputs (default: the model's own)")


def _job(parser: argparse.ArgumentParser) -> None:
    slides = "slides, pyramids, folders of slides, or CSV tables with path, wsi or slide_id and optionally mpp, patient_id, label, region"
    parser.add_argument("-i", "--slides", nargs="+", metavar="SLIDE", required=True, help=slides)
    parser.add_argument("-o", "--output", metavar="JOB", required=True, help="job folder; results are added to an existing one")
    _model(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--region", metavar=_REGION, help=f"part of the slide, {_LENGTHS} (default: the whole slide)")
    regions = (
        "which regions of a slide to answer: the whole, each piece of tissue, or a grid of squares over the tissue, of the size on the "
        "model's card (default: whole)"
    )
    part.add_argument("--regions", choices=("whole", "tissue", "grid"), default="whole", help=regions)
    parser.add_argument("--grid", type=int, metavar="PX", help="side of the squares of --regions grid, in px of the network's grid")
    overlap = "share of the side by which squares overlap, 0 to 0.9 (default: 0)"
    parser.add_argument("--overlap", type=float, metavar="SHARE", default=0.0, help=overlap)
    least = "share of a square that must be tissue, 0 to 1 (default: 0.05)"
    parser.add_argument("--least-tissue", type=float, metavar="SHARE", default=0.05, help=least)
    parser.add_argument("--max-regions", type=int, metavar="N", help="at most so many regions per slide, those with most tissue")
    method = (
        "how regions become the slide's answer: mean of logits, mean of probabilities, maximum, noisy-or or top-K, the last three for "
        "classes with 'of CLASS' (default: as the model's card says, else mean of logits)"
    )
    parser.add_argument("--aggregation", metavar="METHOD", help=method)
    pad = "zero-pad the region at the right and bottom to a square of this side on the network's grid; card: the side in the model's card"
    parser.add_argument("--pad-to", metavar="PX|card", help=pad)
    _mpp(parser)
    _machine(parser)
    _precision(parser)
    glass = (
        "flat: pixels further than 64 um from tissue get the slide's background colour, so that nothing is computed on empty glass; maps "
        "end there (default: as-scanned)"
    )
    parser.add_argument("--glass", choices=("as-scanned", "flat"), default="as-scanned", help=glass)
    _tile(parser)
    skip = "continue after a slide that fails; it remains as a row of the table, and the exit status is 1"
    parser.add_argument("--skip-errors", action="store_true", help=skip)
    _cohort(parser)


def _cohort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pattern", metavar="'*.svs'", help="which files of folders (default: those with a known suffix)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many slides")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="work through the slides in a random order")
    dry = "forecast regions, time, memory and disk of all slides, and say which will fail, without running"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    parser.add_argument("--redo", action="store_true", help="compute again what the job has already (default: skip it)")
    parser.add_argument("--retry-failed", action="store_true", help="try slides that failed again, though nothing has changed")
    workers = "share the slides among N processes on this machine, --memory in all (extra cluster; default: one process)"
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
    parser.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="share the slides among the workers of a Dask scheduler")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--quiet", action="store_true", help="print only errors and the outcome")
    shown.add_argument("--json-progress", action="store_true", help="print progress as one JSON object a line, for workflow engines")
