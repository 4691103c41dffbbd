"""Draw pictures of the pages tissue, export, report, evaluation and engine: ``python docs/pictures.py`` in a checkout, two minutes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from streamview.cli import main
from streamview.evaluation import evaluate, write_evaluation
from streamview.export.outlines import find_areas
from streamview.geometry import Region
from streamview.labels.annotations import Annotation, rasterise, read_annotations
from streamview.labels.regions import Example
from streamview.networks import load_model
from streamview.results import RESEARCH_USE
from streamview.results.display import TEAL_LIME
from streamview.slides import open_slide
from streamview.slides.synthetic import write_synthetic_slide
from streamview.slides.thumbnail import thumbnail
from streamview.slides.tissue import find_tissue, tissue_region
from streamview.streaming.schedule import Window, schedule_axis

_IMAGES = Path(__file__).parent / "images"
_YELLOW, _TEAL, _BLACK = (255, 225, 74), (10, 127, 140), (0, 0, 0)


def edge(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """A line of this width along the outline of a mask."""
    return np.asarray(ndimage.binary_dilation(mask, iterations=width) & ~ndimage.binary_erosion(mask, iterations=1, border_value=1))


def save(canvas: Image.Image, name: str) -> None:
    """Write a picture in few colours, which the eye does not miss, with the research-use line."""
    ImageDraw.Draw(canvas).text((canvas.width - 12, canvas.height - 10), RESEARCH_USE, "#1b1f24", ImageFont.load_default(18), anchor="rb")
    canvas.quantize(256, dither=Image.Dither.NONE).save(_IMAGES / name, optimize=True)


def draw_tissue(folder: Path) -> None:
    """The tissue, the box that is cropped to, and an annotation that was written and read back."""
    path = folder / "tissue.svs"
    lesion = write_synthetic_slide(path, size=(2048, 3072), seed=11)
    with open_slide(path) as slide:
        tissue = find_tissue(slide)
        box = tissue_region(tissue, slide.name, (32.0, 32.0))
        picture = thumbnail(slide, Region(0, 0, *slide.shape), (768, 1152))
    labels, count = ndimage.label(lesion)
    areas = [find_areas((labels == number).astype(np.float32), 0.5).polygon(1) for number in range(1, count + 1)]
    drawn = [Annotation("lesion", "lesion", (area,)) for area in areas]
    everywhere, scale = Region(0, 0, *lesion.shape), (8 / 3, 8 / 3)
    found = np.asarray(Image.fromarray(tissue.mask).resize((1152, 768)))
    picture[edge(found, 4)] = _TEAL
    picture[edge(rasterise(drawn, everywhere, scale), 3)] = _BLACK
    canvas = Image.fromarray(picture)
    corners = tuple(round(edge / scale[0]) for edge in (box.x, box.y, box.x_stop - 1, box.y_stop - 1))
    ImageDraw.Draw(canvas).rectangle(corners, outline=_YELLOW, width=5)
    save(canvas, "tissue.png")


def draw_export(folder: Path) -> None:
    """The PNG, the GeoJSON and the OME-TIFF of one map, each read back from its file."""
    path, job = folder / "slide.svs", folder / "job"
    write_synthetic_slide(path, size=(2048, 2048), seed=5)
    main(["saliency", "-i", str(path), "-o", str(job), "-m", "demo", "--target", "lesion"])
    main(["export", str(job), "--format", "ome-tiff", "geojson", "png"])
    (png,) = job.glob("export/*/*-evidence.png")
    (tiff,) = job.glob("export/*/*-evidence.ome.tif")
    (geojson,) = job.glob("export/*/*.geojson")
    side = 480
    with Image.open(png) as image:
        left, top, width, height = map(int, image.text["picture"].split(","))  # type: ignore[attr-defined]
        first = image.convert("RGB").crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.LANCZOS)
    with open_slide(path) as slide:
        tissue = thumbnail(slide, Region(0, 0, *slide.shape), (side, side))
        scale = slide.shape[0] / side, slide.shape[1] / side
        hotspots = rasterise(read_annotations(geojson, slide.shape), Region(0, 0, *slide.shape), scale)
        mpp, shape = slide.mpp, slide.shape
    assert mpp is not None
    second = tissue.copy()
    second[edge(hotspots, 3)] = _BLACK
    second[edge(hotspots, 1)] = _YELLOW
    with tifffile.TiffFile(tiff) as file:
        pixels = ElementTree.fromstring(str(file.ome_metadata)).find("{*}Image/{*}Pixels")
        values = file.asarray()
    assert pixels is not None
    step = float(pixels.attrib["PhysicalSizeY"]) / mpp[0]
    rows = (np.arange(side) * shape[0] / side / step).astype(int)
    strength = (values / values.max()).clip(0, 1)[np.ix_(rows, rows)][..., None]
    colour = np.array([int(TEAL_LIME[-1][i : i + 2], 16) for i in (1, 3, 5)])
    third = (tissue * (1 - 0.75 * strength) + colour * 0.75 * strength).astype(np.uint8)
    gap, caption = 20, 44
    canvas = Image.new("RGB", (3 * side + 2 * gap, side + caption), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (part, said) in enumerate(((np.asarray(first), "PNG"), (second, "GeoJSON"), (third, "OME-TIFF"))):
        canvas.paste(Image.fromarray(part), (number * (side + gap), 0))
        draw.text((number * (side + gap), side + 12), said, "#1b1f24", ImageFont.load_default(24))
    save(canvas, "export.png")


def draw_report(folder: Path) -> None:
    """The head of a report in chromium, as wide as a laptop's window; nothing where there is no chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    slides, job = folder / "slides", folder / "cohort"
    slides.mkdir()
    for number, size in enumerate(((2048, 2560), (1536, 1536), (1024, 2048)), 1):
        write_synthetic_slide(slides / f"case-{number:02}.svs", size=size, seed=number + 4)
    (slides / "case-04.svs").write_bytes((slides / "case-01.svs").read_bytes()[:1000])
    main(["saliency", "-i", str(slides), "-o", str(job), "-m", "demo", "--target", "lesion", "--skip-errors"])
    main(["report", str(job)])
    picture = folder / "report.png"
    size = ["--window-size=1180,1560", "--hide-scrollbars", f"--screenshot={picture}"]
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'chromium'}", *size]
    subprocess.run([*command, (job / "review.html").as_uri()], check=True, capture_output=True)
    with Image.open(picture) as image:
        image.convert("RGB").resize((885, 1170), Image.Resampling.LANCZOS).save(_IMAGES / "report.jpg", quality=80, optimize=True)


def draw_evaluation(folder: Path) -> None:
    """The demo network on regions of twelve slides: what has lesion on a tenth of its area or more is called lesion."""
    examples = []
    for seed in range(12):
        path = folder / f"{seed}.svs"
        lesion = write_synthetic_slide(path, size=(1024, 1024), seed=seed)
        for y in range(0, 1024, 256):
            for x in range(0, 1024, 256):
                label = "lesion" if lesion[y : y + 256, x : x + 256].mean() >= 0.1 else "normal"
                examples.append(Example(path, label, Region(y, x, 256, 256)))
    write_evaluation(evaluate(load_model("demo"), examples), folder / "evaluation")
    parts = [Image.open(folder / "evaluation" / name).convert("RGB") for name in ("confusion.png", "reliability.png")]
    canvas = Image.new("RGB", (sum(part.width for part in parts) + 40, max(part.height for part in parts)), "white")
    canvas.paste(parts[0], (0, 0))
    canvas.paste(parts[1], (parts[0].width + 40, 0))
    canvas.quantize(256, dither=Image.Dither.NONE).save(_IMAGES / "evaluation.png", optimize=True)


def draw_engine() -> None:
    """The rows of docs/engine.md's network, coloured by the step that computes them; those that are carried are hatched."""
    convolution, pool = Window(kernel=3, before=1, after=1), Window(kernel=2, stride=2)
    schedule = schedule_axis([convolution, pool, convolution], inputs=[(0,), (1,), (2,)], sources=[16], step=6)
    row, width, gap, top = 30, 200, 70, 64
    colours, ink = ((122, 190, 198), (240, 196, 120), (196, 160, 210)), "#1b1f24"
    canvas = Image.new("RGB", (4 * width + 5 * gap, top + 16 * row + 84), "white")
    draw, text = ImageDraw.Draw(canvas), ImageFont.load_default(22)
    for value, name in enumerate(("image", "first", "pool", "second")):
        left, height = gap + value * (width + gap), 16 * row // schedule.sizes[value]
        draw.text((left + width // 2, top - 20), name, ink, ImageFont.load_default(26), anchor="ms")
        for step in range(schedule.steps):
            start, stop = schedule.new(value, step)
            carried = schedule.kept[value][step + 1]
            for number in range(start, stop):
                box = (left, top + number * height, left + width, top + (number + 1) * height)
                draw.rectangle(box, colours[step], "white", 2)
                if carried <= number:
                    for x in range(left + 8, left + width - height, 14):
                        draw.line([(x, box[3] - 6), (x + height - 12, box[1] + 6)], ink, 2)
                draw.text((left - 10, (box[1] + box[3]) // 2), str(number), "#57606a", ImageFont.load_default(16), anchor="rm")
    y = top + 16 * row + 50
    for step, colour in enumerate(colours):
        draw.rectangle((gap + step * 160, y - 12, gap + step * 160 + 28, y + 12), colour)
        draw.text((gap + step * 160 + 38, y), f"step {step + 1}", ink, text, anchor="lm")
    draw.text((gap + 3 * 160, y), "hatched: carried to a later step", ink, text, anchor="lm")
    canvas.quantize(64, dither=Image.Dither.NONE).save(_IMAGES / "engine.png", optimize=True)


if __name__ == "__main__":
    draw_engine()
    with tempfile.TemporaryDirectory() as made:
        draw_tissue(Path(made))
        draw_export(Path(made))
        draw_report(Path(made))
        draw_evaluation(Path(made))
