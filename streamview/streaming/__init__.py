"""The streaming engine: any CNN, exactly, piece by piece, in memory that keeps to a budget.

It imports nothing of streamview but `errors` and `progress`, and is usable alone on any `torch.nn.Module`. From a module to its gradients:

1. `module.stream` wraps a network. At a call it asks for the network's graph.
2. `capture/` records the calls of the network (torch.fx, else torch.export), lowers those that are local to operations (`ops/`), and
   divides them: passes over the image, *bridges* on small tensors between passes, and the *head* behind the last. The result is a
   `graph.Graph`, whatever the image's size; it is compared once with the network itself, and captured anew when the network changes.
3. `graph.bind` fixes the size of the image: every value gets a height and a width, every operation its geometry.
4. `schedule` says, in integers alone, which rows and columns of every value each step makes, and which it must keep for later steps. No
   activation is computed twice in a forward pass: what later steps still need is carried, where the paper overlaps its tiles.
5. A `call.Call` is what one call computes: the bound graph, the weights, the gradients that are asked for.
6. `plan/` chooses the steps: their rows and columns, which of them keep their activations for the backward pass and which are recomputed
   (checkpointing), and whether maps between passes stay in memory, go to disk or are regenerated from the image. It runs the very
   code of a step on the meta device to know what it takes, and refuses what does not fit the memory.
7. `run/` carries the plan out, pass by pass and step by step (`step`), forward and backward; where memory runs out after all, it
   starts again in smaller steps.
8. `module` presents that to torch as one `torch.autograd.Function`, so that losses, optimisers and hooks work as ever.
"""

from streamview.streaming.lazy import LazyImage
from streamview.streaming.module import Streamed, stream
from streamview.streaming.ops.patches import PatchEncoder

__all__ = ["LazyImage", "PatchEncoder", "Streamed", "stream"]
