"""The streaming engine: any CNN, exactly, in memory that depends on the step and not on the image.

It imports nothing of streamview but its errors and is usable alone on any `torch.nn.Module`.
"""

from streamview.streaming.lazy import LazyImage
from streamview.streaming.module import Streamed, stream
from streamview.streaming.ops.patches import PatchEncoder

__all__ = ["LazyImage", "PatchEncoder", "Streamed", "stream"]
