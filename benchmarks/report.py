"""What `benchmarks.peers` measured, as tables in Markdown and as the picture of time and memory against image size."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_GB = 2**30
_TITLES = {
    "conventional": "conventional, channels last",
    "conventional NCHW": "conventional, NCHW",
    "checkpoint": "`checkpoint_sequential`",
    "offload": "`save_on_cpu`",
    "streamview recomputed": "streamview, recomputed",
    "streamview kept": "streamview, kept",
    "streamview equal": "streamview, lightstream's peak",
}
_SHOWN = 2048  # px: the size of which the page shows every figure
DRAWN = (("camelyon17-2048", "training"), ("resnet18", "saliency"))
_CONVENTIONAL = ("conventional", "conventional NCHW")
_COLORS = {
    "conventional": "#3d4852",
    "checkpoint": "#9a7b2f",
    "lightstream": "#b3402a",
    "streamview recomputed": "#2a6f97",
    "streamview kept": "#61a5c2",
}


def title(contestant: str) -> str:
    """A contestant's name in the tables: ``"lightstream 5/1184"`` is ``"lightstream, tile 1184 (5 units)"``."""
    if contestant.startswith("lightstream"):
        count, tile = contestant.removeprefix("lightstream ").split("/")
        return f"lightstream, tile {tile} ({count} units)"
    return _TITLES[contestant]


def table(rows: Sequence[Row]) -> str:
    """One line for each row: time, operations and memory beside those of conventional autograd, and errors."""
    header = ["network", "px", "pass", "", "seconds", "time", "FLOPs", "peak GB", "worst error", "wrong"]
    lines = []
    for row in rows:
        whole = _conventional(rows, row)
        exact = row["dtype"] == "float64"
        if "note" in row:
            note = row["note"] + (f": needs {row['needs'] / _GB:.0f} GB" if "needs" in row else "")
            figures = [note, "", "", "", "", ""]
        else:
            figures = [
                "" if exact else _about(row) + f"{row['seconds']:.1f}",
                "" if exact else _ratio(row, whole, "seconds", 2),
                _ratio(row, whole, "flops", 3),
                _about(row) + f"{row['peak'] / _GB:.2f}",
                f"{row['error']:.0e}" if "error" in row else "",
                share(row.get("wrong")),
            ]
        kind = row["kind"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}")
        lines.append([f"`{row['network']}`", str(row["size"]), kind, title(row["contestant"]), *figures])
    return markdown(header, lines)


def against_lightstream(rows: Sequence[Row]) -> str:
    """Lightstream's fastest tile beside streamview at the same peak."""
    header = ["network", "px", "pass", "tile", "its peak, ours", "its time, ours", "faster", "wrong pixels: its, ours, conventional's own"]
    lines = []
    for ours in rows:
        theirs = _find(rows, ours, ours.get("than", "")) if "seconds" in ours else None
        if theirs is None or "extrapolated" in theirs or "extrapolated" in ours:
            continue
        spread = _find(rows, ours, "conventional NCHW") or {}
        wrong = ", ".join(share(row.get("wrong")) or "-" for row in (theirs, ours, spread)) if ours["kind"] == "saliency" else ""
        lines.append(
            [
                f"`{ours['network']}`",
                str(ours["size"]),
                ours["kind"],
                theirs["contestant"].split("/")[1],
                f"{theirs['peak'] / _GB:.2f}, {ours['peak'] / _GB:.2f} GB",
                f"{theirs['seconds']:.1f}, {ours['seconds']:.1f} s",
                f"**{theirs['seconds'] / ours['seconds']:.1f}**",
                wrong,
            ]
        )
    return markdown(header, lines)


def against_conventional(rows: Sequence[Row]) -> str:
    """Ratios of process time and of operations to conventional autograd, recomputed and kept, for every network and size."""
    kinds = ("forward", "saliency", "training")
    header = ["network", "px", *(f"{kind}: recomputed, kept" for kind in kinds), *(f"FLOPs, {kind}" for kind in kinds)]
    found: dict[tuple[str, int, str], dict[tuple[str, str], list[str]]] = {}
    for row in rows:
        whole = _conventional(rows, row)
        if row["contestant"] in ("streamview recomputed", "streamview kept") and row["dtype"] != "float64" and "seconds" in (whole or {}):
            places = found.setdefault((row["network"], row["size"], row["dtype"]), {})
            for what, digits in (("seconds", 2), ("flops", 3)):
                sign = _about(row) or _about(whole or {})
                places.setdefault((what, row["kind"]), []).append(sign + _ratio(row, whole, what, digits))
    return markdown(
        header,
        [
            [f"`{network}`" + ("" if dtype == "float32" else f", {dtype}"), str(size)]
            + [", ".join(places.get((what, kind), [])) for what in ("seconds", "flops") for kind in kinds]
            for (network, size, dtype), places in found.items()
        ],
    )


def exactness(rows: Sequence[Row]) -> str:
    """Errors in float64, where rounding flips no ReLU and no maximum."""
    return markdown(
        ["network", "px", "gradient of", "", "worst error", "wrong"],
        [
            [
                f"`{row['network']}`",
                str(row["size"]),
                "the image" if row["kind"] == "saliency" else "all weights",
                title(row["contestant"]),
                f"{row['error']:.0e}",
                share(row["wrong"]),
            ]
            for row in rows
            if row["dtype"] == "float64" and "error" in row
        ],
    )


def forecasts(rows: Sequence[Row]) -> str:
    """What plans forecast beside what was measured."""
    header = ["network", "px", "task", "budget", "operations", "memory: forecast, measured", "process time: forecast, measured", "load"]
    lines = []
    latest = {row["forecast"]: row for row in rows if "forecast" in row}  # of those measured again
    for row in latest.values():
        memory, seconds = (row["predicted_bytes"], row["bytes"]), (row["predicted_seconds"], row["seconds"])
        lines.append(
            [
                f"`{row['network']}`",
                str(row["size"]),
                row["kind"],
                row["budget"] or "none",
                f"{row['overhead']:.2f}",
                f"{memory[0] / 2**20:.0f}, {memory[1] / 2**20:.0f} MB ({memory[0] / memory[1] - 1:+.0%})",
                f"{seconds[0]:.1f}, {seconds[1]:.1f} s ({seconds[0] / seconds[1] - 1:+.0%})",
                f"{row['load']:.1f}",
            ]
        )
    return markdown(header, lines)


def by_machine(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of every machine, in the order of the file: the page's tables and picture are of the first."""
    machines: dict[str, list[Row]] = {}
    for row in rows:
        machines.setdefault(row["machine"], []).append(row)
    return list(machines.values())


def measured(rows: Sequence[Row]) -> list[Row]:
    """The contestants' rows by size, network and pass; what is left out are forecasts."""
    return sorted((row for row in rows if "contestant" in row), key=lambda row: (row["size"], row["network"], row["kind"]))


def machine(rows: Sequence[Row]) -> str:
    """What the figures of one machine are of."""
    return f"Measured on {rows[0]['machine']}."


def other_machines(machines: Sequence[Sequence[Row]]) -> str:
    """The ratios of every further machine."""
    tables = [[machine(rows), against_conventional(measured(rows)), against_lightstream(measured(rows))] for rows in machines]
    return "\n\n".join(part for parts in tables for part in parts)


SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "against lightstream": against_lightstream,
    "against conventional": against_conventional,
    "exactness": exactness,
    "all": lambda rows: table([row for row in rows if row["dtype"] != "float64" and row["size"] == _SHOWN]),
}


def page(text: str, rows: Sequence[Row]) -> str:
    """The page with the tables between its markers, ``<!-- name -->`` and ``<!-- end -->``, written anew."""
    first, *others = by_machine(rows)
    written = {name: write(measured(first)) for name, write in SECTIONS.items()}
    written |= {"machine": machine(first), "forecasts": forecasts(first), "other machines": other_machines(others)}
    for name, content in written.items():
        text, count = re.subn(f"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, c=content: f"{m[1]}\n{c}\n\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name!r}, expected one")
    return text


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time and memory against image size, one line a contestant; hollow: predicted, not measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {}
    for network, kind in DRAWN:
        chosen = [row for row in rows if (row["network"], row["kind"], row["dtype"]) == (network, kind, "float32")]
        if len({row["size"] for row in chosen}) > 1:  # one size is no line
            drawn[f"{network}, {kind}: "] = chosen
    figure, axes = pyplot.subplots(max(len(drawn), 1), 2, figsize=(10, 4.2 * max(len(drawn), 1)), squeeze=False)
    for pair, (title, chosen) in zip(axes, drawn.items(), strict=False):
        _draw_pair(pair, chosen, title)
    figure.tight_layout(h_pad=2, rect=(0, 0, 1, 0.96))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=len(_COLORS), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_pair(axes: Sequence[Any], chosen: Sequence[Row], title: str) -> None:
    """Time and memory of one pass of one network."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    sizes = sorted({row["size"] for row in chosen})
    for axis, what, unit in zip(axes, ("seconds", "peak"), ("process time, s", "peak memory, GB"), strict=True):
        for family, color in _COLORS.items():
            line = series(chosen, family, what)
            axis.plot([size for size, _ in line], [value for _, value in line], "o-", color=color, markersize=4, label=family)
            ahead = {row["size"] for row in chosen if _family(row) == family and "extrapolated" in row}
            hollow = [point for point in line if point[0] in ahead]
            axis.plot([size for size, _ in hollow], [value for _, value in hollow], "o", color=color, markersize=4, markerfacecolor="white")
            missing = [(row["size"], row["needs"] / _GB) for row in chosen if _family(row) == family and "needs" in row]
            if missing and what == "peak":
                axis.plot(*zip(*line[-1:], *missing, strict=True), "o:", color=color, markersize=4, markerfacecolor="white", zorder=1)
        axis.set(xscale="log", yscale="log", xlim=(sizes[0] * 0.93, sizes[-1] * 1.08))
        axis.set_title(title + unit, loc="left", fontsize=10)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel("side of the image, px")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e4e7eb", linewidth=0.8)


def _family(row: Row) -> str:
    """The line of the picture that a row belongs to."""
    name: str = row["contestant"]
    return "conventional" if name in _CONVENTIONAL else "lightstream" if name.startswith("lightstream") else name


def series(rows: Sequence[Row], family: str, what: str) -> list[tuple[int, float]]:
    """Size and time (s) or memory (GB) of a contestant, at its fastest layout or tile, the sizes ascending."""
    best: dict[int, Row] = {}
    for row in rows:
        if "seconds" in row and _family(row) == family:
            known = best.setdefault(row["size"], row)
            best[row["size"]] = row if row["seconds"] < known["seconds"] else known
    return [(size, row[what] / (_GB if what == "peak" else 1)) for size, row in sorted(best.items())]


def _about(row: Row) -> str:
    """A sign for what was extrapolated from a smaller image."""
    return "~" if "extrapolated" in row else ""


def share(wrong: float | None) -> str:
    """A share in percent, two digits of what is not zero."""
    if wrong is None:
        return ""
    return f"{100 * wrong:.2g} %" if wrong else "0"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in (header, rule, *lines)
    )


def _find(rows: Sequence[Row], row: Row, contestant: str) -> Row | None:
    """The row of another contestant on the same case."""
    keys = ("network", "size", "kind", "dtype", "device")
    return next((other for other in rows if other["contestant"] == contestant and all(other[key] == row[key] for key in keys)), None)


def _conventional(rows: Sequence[Row], row: Row) -> Row | None:
    """Conventional autograd on the same case, in the layout that is faster for it."""
    found = [each for each in (_find(rows, row, name) for name in _CONVENTIONAL) if each is not None]
    timed = [each for each in found if "seconds" in each]
    return min(timed, key=lambda each: each["seconds"], default=found[0] if found else None)


def _ratio(row: Row, whole: Row | None, what: str, digits: int) -> str:
    return f"{row[what] / whole[what]:.{digits}f}" if whole and what in whole else ""
