"""Streamed passes against whole-image autograd, torch's checkpointing and offloading, and lightstream, in one run.

    python -m benchmarks.peers                                          # the pinned short set of `make bench`
    python -m benchmarks.peers --full --json benchmarks/results.jsonl   # everything; run again, it goes on where it stopped
    python -m benchmarks.peers --full --device cuda --dtypes float32 bfloat16 --json gpu.jsonl
    python -m benchmarks.peers --render benchmarks/results.jsonl        # page and picture from what was measured

Every contestant has a process of its own, and they take turns. Times are those of the process, all threads together, the least of
the repeats; on CUDA, of the device. Memory is the peak of the process, set-up included (VmHWM of Linux); on CUDA, what torch
reserved. docs/benchmarks.md explains the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contestants import KINDS, NETWORKS, documented, install_lightstream, tilings
from benchmarks.report import DRAWN, Row, by_machine, draw, measured, page, table
from benchmarks.worker import Case, Worker, as_row, describe_machine
from streamview.streaming.memory import free_memory
from streamview.system.machine import describe_device

ROOT = Path(__file__).parents[1]
EQUAL = "streamview equal"
CONTESTANTS = (
    "conventional",
    "conventional NCHW",
    "checkpoint",
    "offload",
    "lightstream",
    "streamview recomputed",
    "streamview kept",
    EQUAL,
)
PROBE = 1024  # px: runs anywhere, and shows what larger images will take
WRONG = 1e-3  # of the largest value
UNEXACT = {"conventional NCHW", "checkpoint", "offload", "streamview kept"}  # without a part in the comparison in float64
EXACT = 1024  # px: the size of the comparison in float64
BOUNDED = ("lightstream", "streamview kept", EQUAL)  # whose memory has a bound of their own
LARGE = (8192, 16384)  # px: for the picture, ours alone


def cases(networks: Sequence[str], sizes: Sequence[int], kinds: Sequence[str], dtypes: Sequence[str], device: str) -> list[Case]:
    """What to measure, small images first; float64 is for errors alone, at one size."""
    exact = [Case(network, EXACT, kind, "float64", device) for network in networks for kind in kinds if kind != "forward"]
    timed = [
        Case(n, size, kind, dtype, device)
        for size in sizes
        for n in networks
        for kind in kinds
        for dtype in dtypes
        if dtype != "float64" and (size not in LARGE or (n, kind) in DRAWN)
    ]
    first = [case for case in timed if case.size <= EXACT]
    return first + (exact if "float64" in dtypes else []) + timed[len(first) :]


def contestants(case: Case, chosen: Iterable[str], count: int) -> list[str]:
    """Names of those that run on their own; "streamview equal" needs a peer's peak."""
    found = []
    for name in chosen:
        if name == "lightstream":
            tiles = dict.fromkeys([*tilings(case.network, case.size)[:count], *documented(case.network, case.size)])
            found += [f"lightstream {streamed}/{tile}" for streamed, tile in (list(tiles) if count > 1 else list(tiles)[:1])]
        elif name != EQUAL:
            found.append(name)
    left_out = UNEXACT if case.dtype == "float64" else set()
    left_out = left_out | ({"offload"} if case.kind == "forward" else set()) | ({"checkpoint"} if case.network == "unet" else set())
    if case.size in LARGE:
        found = [name for name in found if name.startswith("streamview")]
    return [name for name in found if name not in left_out]


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """Largest error and share of wrong elements (pixels of an image) of the gradients, or of the logits where there are none.

    Errors are divided by the largest value of the same tensor.
    """
    worst, wrong, total = 0.0, 0, 0
    names = found.keys() & expected.keys()
    for name in names - {"logits"} or names:
        off = (found[name] - expected[name]).abs() / expected[name].abs().max().clamp_min(1e-30)
        off = off.amax(1) if name == "image" else off
        worst, wrong, total = max(worst, off.max().item()), wrong + int((off > WRONG).sum()), total + off.numel()
    return worst, wrong / max(total, 1)


def measure(case: Case, names: Sequence[str], equal: bool, repeat: int, known: Sequence[Row], longest: float = float("inf")) -> list[Row]:
    """One row for each contestant, all alternated; what would take more than `longest` seconds a pass is extrapolated from `known`."""
    workers: dict[str, Worker] = {}
    rows: dict[str, Row] = {}
    try:
        for name in names:
            needs, ahead = predict(name, case, known), extrapolate(name, case, known)
            if ahead is not None and ahead["wall"] > longest:
                rows[name] = {**as_row(name, case), **ahead}
            elif needs > 0.9 * available(case.device):
                rows[name] = {**as_row(name, case), "note": "does not fit", "needs": needs}
            else:
                workers[name], rows[name] = begin(name, case)
        swept = [row for name, row in rows.items() if name.startswith("lightstream") and name in workers and "seconds" in row]
        best = min(swept, key=lambda row: row["seconds"], default=None)
        if best and equal:
            workers[EQUAL], rows[EQUAL] = begin_at_peak(case, best["peak"])
            rows[EQUAL]["than"] = best["contestant"]
        once = {row["contestant"] for row in swept if row is not best}
        for _ in range(repeat - 1):
            for name in [name for name in workers if name not in once and "seconds" in rows[name]]:
                if rows[name]["wall"] > longest / 4:
                    continue  # minutes even out what else the machine does
                again = workers[name].run(count=False)
                if "note" in again:
                    rows[name] = {**as_row(name, case), **again}
                    continue
                rows[name].update(seconds=min(rows[name]["seconds"], again["seconds"]), peak=max(rows[name]["peak"], again["peak"]))
        note_errors(workers, rows)
    finally:
        for worker in workers.values():
            worker.close()
    return list(rows.values())


def begin(name: str, case: Case, peak: int | None = None) -> tuple[Worker, Row]:
    """A contestant and its first passes: one in which operations are counted, which takes longer, and one that is timed.

    Of the largest images only the latter.
    """
    worker = Worker(name, case, peak)
    row = {**as_row(name, case), **worker.run(count=case.size not in LARGE)}
    if "note" not in row and case.size not in LARGE:
        row |= worker.run(count=False)  # its peak is that of the process so far
    return worker, row


def begin_at_peak(case: Case, peak: int) -> tuple[Worker, Row]:
    """Streamview with a budget at which the process stays below this peak (or above it by little, after four tries), and its first pass."""
    limit = peak
    for attempt in range(4):
        worker, row = begin(EQUAL, case, limit)
        if attempt == 3 or "note" in row or row["peak"] <= peak:
            break
        worker.close()
        limit -= int(1.2 * (row["peak"] - peak)) + 2**23
    return worker, row


def note_errors(workers: dict[str, Worker], rows: dict[str, Row]) -> None:
    """Add to every row how far its last pass is from torch's own autograd, where that fits."""
    reference = next((name for name in ("conventional", "checkpoint") if name in workers and "seconds" in rows[name]), None)
    if reference is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.pt"
        workers[reference].save(path)
        expected = torch.load(path)
        for name, worker in workers.items():
            if name != reference and "seconds" in rows[name]:
                worker.save(path)
                rows[name]["error"], rows[name]["wrong"] = compare(torch.load(path), expected)
                rows[name]["against"] = reference


def predict(name: str, case: Case, known: Sequence[Row]) -> int:
    """Bytes that a contestant will take, from what it took for a smaller image, by the area; 0 for those whose memory is bounded."""
    if name.startswith(BOUNDED) or case.size <= PROBE:
        return 0
    same = {"network": case.network, "kind": case.kind, "dtype": case.dtype, "device": case.device, "contestant": name}
    smaller = [row for row in known if same.items() <= row.items() and row["size"] < case.size and "growth" in row]
    if not smaller:
        worker = Worker(name, Case(case.network, PROBE, case.kind, case.dtype, case.device))
        smaller = [{"size": PROBE, **worker.run(count=False)}]
        worker.close()
    last = max(smaller, key=lambda row: row["size"])
    return last["peak"] + int(last["growth"] * ((case.size / last["size"]) ** 2 - 1)) if "growth" in last else 0


def extrapolate(name: str, case: Case, known: Sequence[Row]) -> Row | None:
    """What a contestant will take, from what it took for a smaller image, by the area; None where it is not known."""
    same = {"network": case.network, "kind": case.kind, "dtype": case.dtype, "device": case.device}
    smaller = [row for row in known if same.items() <= row.items() and row["size"] < case.size and "seconds" in row and "growth" in row]
    alike = [row for row in smaller if row["contestant"] == name]
    if name.startswith("lightstream"):
        alike = [row for row in smaller if row["contestant"].startswith("lightstream")]
    if not alike:
        return None
    last = max(alike, key=lambda row: row["size"])
    larger = (case.size / last["size"]) ** 2
    # a tile bounds memory whatever the image; what has no such bound grows with the area at most
    growth = round(last["growth"] * (1 if name.startswith("lightstream") else larger))
    found = {"seconds": larger * last["seconds"], "wall": larger * last["wall"], "peak": last["peak"] - last["growth"] + growth}
    return {**found, **({"flops": round(larger * last["flops"])} if "flops" in last else {}), "extrapolated": last["size"]}


def available(device: str) -> int:
    """Bytes that are free."""
    return torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()


def read(path: Path) -> list[Row]:
    """Rows of a file of JSON lines, if it exists: of peers, and of forecasts."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(options: argparse.Namespace, rows: list[Row]) -> Iterator[list[Row]]:
    """Measure every case that has no rows of this machine yet; those of others are no guide to what a pass takes here."""
    machine = describe_machine(options.device)
    rows = [row for row in rows if row["machine"] == machine]
    os.environ["OMP_WAIT_POLICY"] = "passive"  # of the processes to come: threads that wait must not spin, or their waiting counts
    chosen = list(options.contestants)
    if "lightstream" in chosen and (problem := install_lightstream()):
        print(problem, flush=True)
        chosen.remove("lightstream")
    for case in cases(options.networks, options.sizes, options.passes, options.dtypes, options.device):
        if any(all(row.get(key) == value for key, value in asdict(case).items()) for row in rows):
            continue
        timed = case.dtype != "float64"
        names = contestants(case, chosen, options.tilings if timed else 1)
        if not names:
            continue
        measured_rows = measure(
            case, names, timed and EQUAL in chosen and case.size not in LARGE, options.repeat if timed else 1, rows, options.longest
        )
        case_rows = [{**row, "machine": machine} for row in measured_rows]
        rows += case_rows
        yield case_rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; those left out are the short set's, or with ``--full`` everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all networks and sizes, three tilings of lightstream, three repeats")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--sizes", type=int, nargs="+", help="px, square images")
    parser.add_argument("--passes", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16", "float64"),
        help="default: float32, and with --full also float64, for errors alone",
    )
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--tilings", type=int, help="how many tilings of lightstream to try; the fastest is alternated with the others")
    parser.add_argument("--longest", type=float, default=1200, help="seconds of a pass beyond which it is extrapolated, and marked so")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what was measured as JSON lines, and go on from there")
    parser.add_argument("--render", type=Path, metavar="FILE", help="measure nothing: write page and picture from this file")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md", help="with --render: whose tables are replaced")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/benchmarks.png", help="with --render: the picture")
    options = parser.parse_args(arguments)
    options.networks = options.networks or list(NETWORKS[: None if options.full else 2])
    options.sizes = options.sizes or ([512, 1024, 2048, 4096, *LARGE] if options.full else [2048])
    options.repeat = options.repeat or (3 if options.full else 2)
    options.tilings = options.tilings or (3 if options.full else 1)
    options.dtypes = options.dtypes or (["float32", "float64"] if options.full else ["float32"])
    return options


def main() -> None:
    """Measure and print, or render."""
    options = parse()
    if options.render:
        rows = read(options.render)
        options.page.write_text(page(options.page.read_text(), rows))
        draw(measured(by_machine(rows)[0]), options.picture)
        return
    rows = [row for row in read(options.json) if "contestant" in row] if options.json else []
    print(f"torch {torch.__version__}, {describe_device(torch.device(options.device))}, {describe_machine(options.device)}", flush=True)
    for found in run(options, rows):
        print(table(found), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)


if __name__ == "__main__":
    main()
