"""What images of some sizes will take with a network on this machine: planned without running, timed by one sample."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from streamview.errors import MemoryBudgetError, RegionError
from streamview.streaming.calibration import Speed, measure
from streamview.streaming.capture import capture
from streamview.streaming.graph import Bound, Demands, bind, demands
from streamview.streaming.plan import Plan, make_plan
from streamview.streaming.report import Outlook

__all__ = ["SIDES", "outlook"]

SIDES = (2048, 8192, 32768)
"""Sides of the images, in px."""


def outlook(module: nn.Module, sides: Sequence[int] = SIDES) -> tuple[Outlook, ...]:
    """Plan a prediction and a saliency map of square images, and time both.

    Parameters
    ----------
    module
        A network that streams; its weights need not be trained.
    sides
        In px; those of images that the network does not take are left out.
    """
    graph = capture(module)
    weights = [w.read().detach() for w in graph.weights]
    image = demands(graph, True, [False] * len(weights))
    speed: Speed | None = None
    found = []

    def planned(bound: Bound, needs: Demands | None) -> Plan | None:
        with contextlib.suppress(MemoryBudgetError):
            return make_plan(bound, 1, torch.float32, needs, weights)
        return None

    for side in sides:
        try:
            bound = bind(graph, (side, side))
        except RegionError:
            continue
        plans = [planned(bound, needs) for needs in (None, image)]
        if speed is None and plans[1] is not None:
            speed = measure(bound, plans[1], image, weights, 1, torch.float32)
        if speed is not None:
            timed = [p and (p, speed.seconds(p, (side, side))) for p in plans]
            plans = [t and replace(t[0], seconds=t[1][0] + (t[1][1] if i else 0)) for i, t in enumerate(timed)]
        found.append(Outlook(side, *plans))
    return tuple(found)
