"""Memory that runs out although the plan fitted: the same once more, in smaller steps.

A plan knows what the engine will take, not what the rest of the machine does meanwhile, nor what a kernel takes for itself.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from streamview.errors import MemoryBudgetError
from streamview.streaming.call import Call
from streamview.streaming.cuda import bounded, release_cache
from streamview.streaming.ops import Size
from streamview.streaming.plan.plan import Plan, make_plan

__all__ = ["ran_out", "retry_smaller", "smaller"]

_Result = TypeVar("_Result")
_TRIES = 4
_LEAST = (8, 64)  # rows and columns below which a step is made of overhead
_SIGNS = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED", "unable to find an engine")
# of torch, libstdc++, cuDNN and cuBLAS; and of cuDNN where no algorithm's workspace fits


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's on CUDA and on the CPU, NumPy's and Python's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def smaller(tile: Size, shape: Size) -> Size | None:
    """Half the rows of a step of an image of this shape, or half its columns where rows are few; None where both are."""
    rows, cols = min(tile[0], shape[0]), min(tile[1], shape[1])
    if rows > _LEAST[0]:
        return max(rows // 2, _LEAST[0]), cols
    if cols > _LEAST[1]:
        return rows, max(cols // 2, _LEAST[1])
    return None


def retry_smaller(attempt: Callable[[Plan], _Result], call: Call, plan: Plan, limit: int | None = None) -> _Result:
    """Run a call by a plan; where memory runs out, again by one of smaller steps that keeps nothing it can compute anew.

    Parameters
    ----------
    attempt
        Does the whole work by a plan, and leaves nothing behind when it fails.
    call
        What is computed.
    plan
        The first to try.
    limit
        Bytes that may be reserved on a CUDA device, see `streamview.streaming.cuda.bounded`.

    Raises
    ------
    MemoryBudgetError
        When memory ran out in the smallest steps too, or several times.
    """
    device = call.device
    for left in reversed(range(_TRIES + 1)):
        try:
            with bounded(device, limit):
                return attempt(plan)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            tile = smaller(plan.tile, call.size) if left else None
            if tile is None:
                raise MemoryBudgetError(
                    f"{device} ran out of memory, also in steps of {plan.tile[0]} x {plan.tile[1]} px: end what else takes memory there, "
                    "or give a smaller region"
                ) from None
        # not before: while the error is handled, its traceback holds what the attempt had
        gc.collect()
        release_cache(device)
        message = "%s ran out of memory in steps of %d x %d px; starting again in steps of %d x %d px"
        logging.getLogger(__name__).warning(message, device, *plan.tile, *tile)
        plan = make_plan(call, tile=tile, barriers="spilled" if plan.barriers == "kept" else plan.barriers)
    raise AssertionError("the last attempt returns or raises")
