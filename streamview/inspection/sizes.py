"""What images of some sizes will take with a network on this machine: planned without running, timed by one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from streamview.errors import MemoryBudgetError, RegionError
from streamview.inspection.report import Outlook
from streamview.streaming.call import Call
from streamview.streaming.capture.capture import capture
from streamview.streaming.capture.intact import state_restored
from streamview.streaming.graph import bind, demands
from streamview.streaming.plan.plan import Plan, make_plan
from streamview.streaming.run.timing import Speed, measure

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
    with state_restored(module):
        weights = [w.read().detach() for w in graph.weights]
    image = demands(graph, True, [False] * len(weights))
    speed: Speed | None = None
    found = []
    for side in sides:
        try:
            bound = bind(graph, (side, side))
        except RegionError:
            continue
        forward, both = (Call(bound, 1, torch.float32, needs, weights) for needs in (None, image))
        prediction, saliency = _planned(forward), _planned(both)
        if speed is None and saliency is not None:
            speed = measure(both, saliency)
        if speed is not None:
            prediction = prediction and replace(prediction, seconds=speed.seconds(prediction, (side, side))[0])
            saliency = saliency and replace(saliency, seconds=sum(speed.seconds(saliency, (side, side))))
        found.append(Outlook(side, prediction, saliency))
    return tuple(found)


def _planned(call: Call) -> Plan | None:
    """The plan of one image, if any fits."""
    try:
        return make_plan(call)
    except MemoryBudgetError:
        return None
