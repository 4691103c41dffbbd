"""What can go wrong, said so that the reader knows what to do.

Every message names what was found, what was expected and the remedy, in one line. Shells catch `StreamviewError` alone and
print the message; anything else is a defect of the program and keeps its traceback.
"""

__all__ = [
    "AnnotationError",
    "Cancelled",
    "JobWarning",
    "LabelError",
    "MemoryBudgetError",
    "ModelError",
    "NotStreamableError",
    "RegionError",
    "SlideError",
    "SlideWarning",
    "StreamviewError",
    "TrainingError",
]


class StreamviewError(Exception):
    """Base of every error that the user can mend."""


class SlideError(StreamviewError):
    """A slide or pyramid is missing, damaged, of an unknown format, or lacks what the work needs."""


class SlideWarning(UserWarning):
    """A slide is read otherwise than it should be; the pixels are right."""


class JobWarning(UserWarning):
    """A part of a job cannot be used; the rest is."""


class RegionError(StreamviewError):
    """A region lies outside the slide or is too small for the network."""


class AnnotationError(StreamviewError):
    """A file of annotations is missing, damaged, hostile, of another form, or drawn on another slide."""


class ModelError(StreamviewError):
    """A model, its card or its weights are unknown, unsafe or do not fit together."""


class LabelError(StreamviewError):
    """Labelled regions are missing, wrong, too few, or cannot be divided."""


class TrainingError(StreamviewError):
    """Fine-tuning cannot begin or go on as asked; what was reached is kept."""


class NotStreamableError(StreamviewError):
    """A network cannot be streamed; the message names the layer and the reason."""


class MemoryBudgetError(StreamviewError):
    """No step shape fits the memory budget."""


class Cancelled(StreamviewError):
    """Not a fault: the user asked the work to stop; nothing half-written is left looking finished."""
