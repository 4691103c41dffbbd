"""The grammar of the command line; every command's help ends with an example that parses."""

from __future__ import annotations

import argparse

from streamview import __version__
from streamview.cli.usage import Parser, micrometres

__all__ = ["build_parser"]

_REGION = "X,Y,WIDTH,HEIGHT"
_LENGTHS = "each in level-0 pixels, um or mm, as in 1mm,500um,2048,2048"
_MODEL = "a name from `streamview models`, a folder with card and weights, timm:NAME, torchvision:NAME, module:function, or FILE.pt2"


def build_parser() -> argparse.ArgumentParser:
    """Make the parser; ``command`` is None where none was given."""
    parser = Parser(
        prog="streamview",
        description="Exact streamed prediction and full-resolution saliency of whole-slide regions with any CNN, in bounded memory. "
        "Research use only.",
        epilog="example:\n  streamview demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"streamview {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, does: str, example: str) -> Parser:
        return commands.add_parser(
            name,
            help=does,
            description=f"{does[0].upper()}{does[1:]}.",
            epilog=f"example:\n  streamview {name} {example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    demo = add("demo", "make a synthetic slide with a planted lesion, predict and explain it; needs no download", "-o demo-output")
    demo.add_argument("-o", "--output", metavar="FOLDER", default="demo-output", help="where everything goes (default: demo-output)")
    demo.add_argument("--size", type=int, metavar="PX", default=4096, help="side of the slide in px, 512 or more (default: 4096)")
    _machine(demo)
    _precision(demo)

    info = add("info", "say what a slide is: size, mpp, levels, who reads it, and what stays hidden", "slide.svs")
    info.add_argument("slide", metavar="SLIDE", help="a file, a folder, or the URL of an OME-Zarr image")
    info.add_argument("--json", action="store_true", help="print it as JSON")
    _channel(info)
    _mpp(info)

    convert = add("convert", "convert a slide to an OME-Zarr 0.5 pyramid", "slide.svs -o slide.ome.zarr")
    convert.add_argument("slide", metavar="SLIDE", help="a file, a folder, or the URL of an OME-Zarr image")
    convert.add_argument("-o", "--output", metavar="OUT.ome.zarr", required=True, help="folder to make; must not exist")
    convert.add_argument("--region", metavar=_REGION, help=f"part to convert, {_LENGTHS} (default: the whole slide)")
    target = "micrometres per pixel of the finest level, by exact area means (default: the slide's own)"
    convert.add_argument("--target-mpp", type=micrometres, metavar="UM", help=target)
    convert.add_argument("--levels", type=int, metavar="N", help="how many (default: until the longest side is 1024 px or less)")
    codec = "compression, lossless: lz4 makes larger files in less time (default: zstd)"
    convert.add_argument("--codec", choices=("zstd", "lz4"), default="zstd", help=codec)
    kept = "store all properties of the slide's file, which may name a patient, not only those known to be safe"
    convert.add_argument("--keep-metadata", action="store_true", help=kept)
    restart = "begin anew, instead of going on with what an unfinished conversion left"
    convert.add_argument("--restart", action="store_true", help=restart)
    _channel(convert)
    _mpp(convert)

    example = "-i a.svs b.svs -o job -m camelyon17 --untrained --skip-errors"
    predict = add("predict", "predict for whole slides or a region of each", example)
    _job(predict)
    per = "one answer for the whole region, streamed, or one for each patch of it (default: as the model's card says; WSInfer's: patch)"
    predict.add_argument("--per", choices=("region", "patch"), help=per)

    saliency = add(
        "saliency",
        "predict, and map what the network saw at full resolution",
        "-i slide.svs -o job -m demo --target lesion --region 1024,2048,4096,4096 --display detail --memory 2GB",
    )
    _job(saliency)
    target = (
        "classes (of a regression: outputs) to explain; a-b: the difference of two logits; all: every class (default: the predicted one)"
    )
    saliency.add_argument("--target", nargs="+", metavar="CLASS", help=target)
    saliency.add_argument(
        "--display",
        choices=("evidence", "detail", "paper"),
        help="how the picture shows the maps: class evidence (extent), signed gradient (detail), or as in the paper "
        "(default: evidence where the network offers it, else paper)",
    )

    _finetune(add("finetune", "change a network to answer labelled regions better", "-i labels.csv -m demo -o tuned --preset careful"))

    evaluate = add(
        "evaluate",
        "measure a network on labelled regions: accuracy, AUC, calibration, with intervals by patient",
        "-i labels.csv -m demo -o evaluation --slides slides",
    )
    _labels(evaluate)
    evaluate.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where figures, table and pictures go")
    _model(evaluate)
    resamples = "resamples of the bootstrap that intervals are made from; 0: no intervals (default: 2000)"
    evaluate.add_argument("--resamples", type=_whole, default=2000, metavar="N", help=resamples)
    skip = "go on past a region that fails; it stays as a row of the table, and the exit status is 1"
    evaluate.add_argument("--skip-errors", action="store_true", help=skip)
    _machine(evaluate)
    _precision(evaluate)
    _tile(evaluate)

    verify = add("verify", "show that the streamed network equals the plain one, in float64", "-m demo -i slide.svs --region 0,0,4096,4096")
    _model(verify)
    verify.add_argument("-i", "--slides", metavar="SLIDE", help="slide to take the pixels from (default: random pixels)")
    verify.add_argument("--region", metavar=_REGION, help=f"part of the slide, {_LENGTHS} (default: all)")
    verify.add_argument("--windows", type=int, default=3, metavar="N", help="how many random windows to compare on (default: 3)")
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="of the windows and their steps (default: 0)")
    verify.add_argument("--json", metavar="FILE", help="write the certificate as JSON")
    verify.add_argument("-o", "--output", metavar="JOB", help="keep the certificate in this job folder, under certificates/")
    _mpp(verify)
    _machine(verify)

    models = add("models", "list the networks that come with streamview, or inspect any network", "inspect timm:resnet50")
    actions = models.add_subparsers(dest="action", metavar="inspect", help="say whether and how a network streams; has help of its own")
    inspect = actions.add_parser(
        "inspect",
        description="Say whether a network streams, where it is cut, what it sees and which images it takes. Nothing is computed, and a "
        "name needs no weights. The exit status is 1 when it cannot be streamed.",
        epilog="example:\n  streamview models inspect timm:resnet50",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("model", metavar="MODEL", help=_MODEL)
    _files(inspect)
    inspect.add_argument("--untrained", action="store_true", help="ignore the weights of a folder")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")

    jobs = add("jobs", "list what a job holds, or take a slide or a region out of it", "rm job --slide a.svs --region 0,0,4096,4096")
    manage = jobs.add_subparsers(dest="action", metavar="list|rm", required=True, help="each has help of its own")
    listed = manage.add_parser(
        "list",
        description="List the answers of a job: which regions, what counts, and what does not and why.",
        epilog="example:\n  streamview jobs list job",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed.add_argument("job", metavar="JOB", help="a job folder")
    remove = manage.add_parser(
        "rm",
        description="Take a slide, or its answers for one region, out of a job, with maps and pictures. The slide itself is not touched.",
        epilog="example:\n  streamview jobs rm job --slide a.svs --region 0,0,4096,4096",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    remove.add_argument("job", metavar="JOB", help="a job folder")
    remove.add_argument("--slide", metavar="NAME", required=True, help="slide_id of the table")
    remove.add_argument("--region", metavar=_REGION, help="answers for this region alone, in level-0 pixels (default: all of the slide)")

    export = add("export", "write a job's maps for other programs", "job --format ome-tiff geojson -o for-qupath")
    export.add_argument("job", metavar="JOB", help="a job folder with maps")
    forms = ("ome-zarr", "ome-tiff", "geojson", "png")
    export.add_argument("--format", nargs="+", choices=forms, default=forms, help="forms to write (default: all); geojson: hotspots")
    export.add_argument("--slide", nargs="+", metavar="NAME", default=(), help="slides to export, by name (default: all)")
    export.add_argument("-o", "--output", metavar="FOLDER", help="where they go (default: export/ in the job); nothing there is replaced")
    shown = "how pictures and hotspots show the maps (default: evidence where the network offers it, else paper)"
    export.add_argument("--display", choices=("evidence", "detail", "paper"), help=shown)
    export.add_argument("--blur", type=micrometres, metavar="UM", help="another blur than the display's, in um")
    export.add_argument(
        "--threshold", type=float, metavar="SHARE", help="another threshold than the display's, a share (0 to 1) of the cap"
    )
    export.add_argument("--png-size", type=int, metavar="PX", default=2048, help="longest side of a picture, 1100 to 16384 (default: 2048)")

    add("doctor", "check this machine and say what to do", "")

    view = add("view", "open a slide, or a job with its maps in place, in napari", "job")
    view.add_argument("path", metavar="SLIDE|JOB", help="a slide, a pyramid, a saved saliency map or a job folder")
    return parser


def _finetune(parser: argparse.ArgumentParser) -> None:
    _labels(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="model folder to make; an unfinished one is gone on with")
    _model(parser)
    preset = "head: the head alone, on features computed once; careful: the last stage; all: every layer, as in the paper (default: all)"
    parser.add_argument("--preset", choices=("head", "careful", "all"), default="all", help=preset)
    parser.add_argument("--train", choices=("head", "last-stage", "all"), help="what changes, instead of what the preset says")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="of the first epoch")
    parser.add_argument("--weight-decay", type=float, metavar="FACTOR", help="L2 penalty")
    batch = "regions whose gradients are accumulated for one step of the optimiser"
    parser.add_argument("--batch", type=int, metavar="N", help=batch)
    parser.add_argument("--epochs", type=int, metavar="N", help="at most so many passes over the training regions")
    parser.add_argument("--patience", type=int, metavar="N", help="end after so many epochs without a lower validation loss; 0: never")
    share = "share of the patients that validate, 0 to 0.5 (default: 0.25); ignored where the table has a column split"
    parser.add_argument("--validation", type=float, metavar="SHARE", help=share)
    parser.add_argument("--optimiser", choices=("adam", "sgd"), help="sgd has a momentum of 0.9 (default: adam)")
    parser.add_argument("--decay", type=float, metavar="FACTOR", help="of the learning rate from epoch to epoch (default: 0.99)")
    parser.add_argument("--no-class-weights", action="store_true", help="let frequent classes weigh more in the loss")
    parser.add_argument("--no-flips", action="store_true", help="do not turn and mirror training regions")
    parser.add_argument("--jitter", type=float, metavar="SHARE", help="colour jitter of training regions, such as 0.05; 0: none")
    parser.add_argument("--seed", type=int, metavar="N", help="of split, order, augmentation and new head (default: 0)")
    parser.add_argument("--new-head", action="store_true", help="replace the head by a fresh one for the labels of the table")
    parser.add_argument("--force", action="store_true", help="train although a label has fewer than ten patients")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever the folder holds of an earlier run")
    _machine(parser)
    _tile(parser)


def _tile(parser: argparse.ArgumentParser) -> None:
    said = "size of a step on the network's grid, instead of choosing it: the same gives the same results bit for bit (on one machine)"
    parser.add_argument("--tile", metavar="ROWS,COLUMNS", help=said)


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
    parser.add_argument(
        "--mpp", type=micrometres, metavar="UM", help="micrometres per level-0 pixel of the slide, instead of what the file says"
    )


def _channel(parser: argparse.ArgumentParser) -> None:
    said = "number (from 0) or name of one channel of an image that is not RGB, to see as grey"
    parser.add_argument("--channel", metavar="N|NAME", help=said)


def _machine(parser: argparse.ArgumentParser) -> None:
    bound = (
        "bound on the memory of the process, on CUDA of the device: 2GB, 512M (GB = 2^30) or a share such as 50%% of all there is "
        "(default: half of what is free)"
    )
    parser.add_argument("--memory", metavar="2GB", help=bound)
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where to compute (default: CUDA where there is one)")
    parser.add_argument("--untrained", action="store_true", help="use seeded random weights; every output then says so")


def _precision(parser: argparse.ArgumentParser) -> None:
    said = "arithmetic of the streamed part; bf16 and fp16 take half the memory, and are fast where the device has them (default: float32)"
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="float32", help=said)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", metavar="MODEL", required=True, help=_MODEL)
    _files(parser)


def _files(parser: argparse.ArgumentParser) -> None:
    weights = (
        "weights of the network: safetensors, a state_dict or a training checkpoint; FILE:KEY where it holds several, such as plain and "
        "averaged ones; no code in it is run (default: the model's own)"
    )
    parser.add_argument("--weights", metavar="FILE[:KEY]", help=weights)
    parser.add_argument("--card", metavar="FILE", help="card that says what the network expects and answers (default: the model's own)")


def _job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--slides", nargs="+", metavar="SLIDE", required=True, help="slides or pyramids")
    parser.add_argument("-o", "--output", metavar="JOB", required=True, help="job folder; an existing one is added to")
    _model(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--region", metavar=_REGION, help=f"part to work on, {_LENGTHS} (default: the whole slide)")
    part.add_argument("--crop-tissue", action="store_true", help="work on each piece of tissue, a region of its own")
    pad = "zero-pad the region to this square on the network's grid, at the right and below; card: the size that the model's card states"
    parser.add_argument("--pad-to", metavar="PX|card", help=pad)
    _mpp(parser)
    _machine(parser)
    _precision(parser)
    _tile(parser)
    skip = "go on past a slide that fails; it stays as a row of the table, and the exit status is 1"
    parser.add_argument("--skip-errors", action="store_true", help=skip)
