"""One contestant on one case in a process of its own: `benchmarks.peers` asks for a pass at a time, so that contestants take turns.

A contestant that others wait for costs nothing meanwhile, its allocator has seen nothing but its own passes, and the peak of its
process is its own, the libraries, the network, the image and all set-up included.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import platform
import time
import traceback
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import Pass, build_contestant
from streamview.system.machine import peak_memory, resident_memory

WARM_UP = 256  # px


@dataclass(frozen=True, slots=True)
class Case:
    """What every contestant is given.

    Parameters
    ----------
    network, size
        The network, and the rows and columns of its image, px.
    kind
        The pass: forward, saliency or training.
    dtype, device
        Of the weights and the image.
    """

    network: str
    size: int
    kind: str
    dtype: str = "float32"
    device: str = "cpu"


class Worker:
    """A process that runs one contestant.

    Parameters
    ----------
    contestant
        Its name, see `benchmarks.contestants`.
    case
        What it is given.
    peak
        Bytes that the process shall not exceed, for streamview.
    """

    def __init__(self, contestant: str, case: Case, peak: int | None = None) -> None:
        self.contestant, self.case = contestant, case
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.contestants"])  # imports take seconds; the processes start after them
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contestant, case, peak), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, count: bool) -> dict[str, Any]:
        """Run a pass: ``seconds``, ``peak`` and ``growth`` in bytes, ``flops`` if counted; or ``note``, why not."""
        return self._ask("count" if count else "run")

    def save(self, path: Path) -> None:
        """Write the tensors of the last pass; RuntimeError where the process has ended."""
        if note := self._ask(str(path)).get("note"):
            raise RuntimeError(f"{self.contestant}: {note}")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _ask(self, what: str) -> dict[str, Any]:
        try:
            self._connection.send(what)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            return {"note": f"ended with exit code {self._process.exitcode}"}


def _serve(connection: Connection, contestant: str, case: Case, peak: int | None) -> None:
    """The process: answer until nobody asks."""
    try:
        image, run, before = _set_up(contestant, case, peak)
        found: dict[str, Tensor] = {}
        while True:
            what = connection.recv()
            if what not in ("count", "run"):
                torch.save({name: value.cpu() for name, value in found.items()}, what)
                connection.send({})
                continue
            found.clear()
            row, result = _timed(run, image, case, count=what == "count")
            found.update(result)
            result.clear()
            top = _peak(case.device)
            connection.send({**row, "peak": top, "growth": top - before})
    except (EOFError, ConnectionError):
        pass
    except Exception as error:  # noqa: BLE001 (what a peer raises is a result)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        connection.send(
            {"note": f"{type(error).__name__} in {Path(frame.filename).name}: {str(error).splitlines()[0] if str(error) else ''}"}
        )


def _set_up(contestant: str, case: Case, peak: int | None) -> tuple[Tensor, Pass, int]:
    """The image, the contestant and the memory before its first pass."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # so that errors can be compared
    dtype, device = getattr(torch, case.dtype), torch.device(case.device)
    layout = torch.contiguous_format if contestant.endswith("NCHW") else torch.channels_last
    torch.manual_seed(1)
    image = torch.rand(1, 3, case.size, case.size).to(device, dtype, memory_format=layout)
    before = _now(case.device)
    budget = None
    if peak is not None:
        # all that one pass leaves behind counts as set-up, but not as the budget
        small = Case(case.network, WARM_UP, case.kind, case.dtype, case.device)
        warm_up = build_contestant("streamview recomputed", case.network, WARM_UP, dtype, device, None)
        _timed(warm_up, image[:, :, :WARM_UP, :WARM_UP], small)
        budget = max(peak - _now(case.device) - (image.nbytes if case.kind == "saliency" else 0), 1)
    run = build_contestant(contestant, case.network, case.size, dtype, device, budget)
    if not contestant.startswith("lightstream"):  # whose set-up runs the network on a tile
        _timed(run, image[:, :, :WARM_UP, :WARM_UP].contiguous(memory_format=layout), case)
    return image, run, before


def _timed(run: Pass, image: Tensor, case: Case, count: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    gc.collect()
    with FlopCounterMode(display=False) if count else torch.enable_grad() as counter:
        began, clock = time.process_time(), time.perf_counter()
        if case.device == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            found = run(image, case.kind)
            stop.record()
            torch.cuda.synchronize()
            seconds = start.elapsed_time(stop) / 1000
            torch.cuda.empty_cache()
        else:
            found = run(image, case.kind)
            seconds = time.process_time() - began
        row: dict[str, Any] = {"seconds": seconds, "wall": time.perf_counter() - clock}
    return {**row, "flops": counter.get_total_flops()} if count else row, found


def _peak(device: str) -> int:
    return torch.cuda.max_memory_reserved() if device == "cuda" else peak_memory()


def _now(device: str) -> int:
    return torch.cuda.memory_reserved() if device == "cuda" else resident_memory()


def describe_machine(device: str) -> str:
    """The processor or GPU, its widest vectors, and torch's version: what figures are of."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as info:
        name = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def as_row(contestant: str, case: Case) -> dict[str, Any]:
    """The part of a row that says what was measured."""
    return {**asdict(case), "contestant": contestant}
