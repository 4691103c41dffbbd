"""The errors and warnings of streamview.

Every message says in one line what was found, what was expected and what to do. Shells catch only `StreamviewError` and print its
message; any other exception is a bug and keeps its traceback.

The same remedy is an option on the command line (``--mpp 0.5``) and an argument in Python (``mpp=0.5``). A message may use either form:
``str(error)`` names arguments, and the command line passes everything it prints through `name_options`.
"""

import re

__all__ = [
    "AnnotationError",
    "AnnotationWarning",
    "Cancelled",
    "ChannelError",
    "JobWarning",
    "LabelError",
    "MemoryBudgetError",
    "ModelError",
    "NotStreamableError",
    "RegionError",
    "ReviewError",
    "SlideError",
    "SlideWarning",
    "StreamviewError",
    "TrainingError",
    "name_arguments",
    "name_options",
]

_FLAGS = "untrained|force|restart|new-head|skip-errors"
_VALUES = "mpp|weights|card|memory|device|tile|region|channel|precision|slides|display|pad-to|target|resamples|regions"
_VALUES += "|grid|least-tissue|overlap|max-regions|aggregation|workers|scheduler|pattern|patch|annotations|method"
_VALUE = r"[A-Z]{2,}\b|N\b|cpu|cuda|whole|tissue|grid|detail|paper|evidence|float32|bf16|fp16|\d[^\s;)]*|[^\s;)]*[/.\\:][^\s;)]+"
# whole command lines are left unchanged
_OPTIONS = re.compile(
    rf"(?P<command>`[^`]*`|\b(?:streamview|vips|pip) [^;)]*)|(?<!\S)\(?-m (?P<model>[^\s;)]+)(?P<rest>(?: --(?:{_VALUES}) [^\s;)]+)*)"
    rf"|(?<![\w-])--(?:(?P<flag>{_FLAGS})\b|(?P<name>{_VALUES})\b(?: (?P<value>{_VALUE}))?)"
)
_ARGUMENTS = re.compile(
    r'load_model\("(?P<model>[^"]+)"(?P<rest>(?:, \w+=[^,)]+)*)\)'
    rf"|(?<![^\s(])(?:(?P<flag>{_FLAGS.replace('-', '_')})=True|(?P<name>{_VALUES.replace('-', '_')})=(?P<value>[^\s;)]*))"
)


def name_arguments(text: str) -> str:
    """Replace command-line options in a message by Python arguments: ``--mpp 0.5`` becomes ``mpp=0.5``."""
    return _OPTIONS.sub(_argument, text)


def name_options(text: str) -> str:
    """Replace Python arguments in a message by command-line options; the inverse of `name_arguments`."""
    return _ARGUMENTS.sub(_option, text)


def _argument(match: re.Match[str]) -> str:
    if match["command"]:
        return match["command"]
    if match["model"]:
        before = "(" if match[0].startswith("(") else ""
        rest = re.sub(r" --([a-z-]+) ", r", \1=", match["rest"])
        return f'{before}load_model("{match["model"]}"{rest})'
    if match["flag"]:
        return f"{match['flag'].replace('-', '_')}=True"
    return f"{match['name'].replace('-', '_')}={match['value'] or ''}"


def _option(match: re.Match[str]) -> str:
    if match["model"]:
        rest = re.sub(r", ([a-z_]+)=", r" --\1 ", match["rest"])
        return f"-m {match['model']}{rest}"
    name = (match["flag"] or match["name"]).replace("_", "-")
    return f"--{name} {match['value'] or ''}".rstrip()


class StreamviewError(Exception):
    """Base class of every error that the user can fix.

    Examples
    --------
    >>> import streamview
    >>> try:
    ...     streamview.Region(y=0, x=0, height=0, width=512)
    ... except streamview.StreamviewError as error:
    ...     print(error)
    region 512 x 0 px at level 0: width and height must be positive and the level 0 or more
    """

    def __str__(self) -> str:
        """The message, naming Python arguments."""
        return name_arguments(super().__str__())


class SlideError(StreamviewError):
    """A slide or pyramid is missing, damaged, of an unknown format, or lacks required information."""


class ChannelError(SlideError):
    """A tiled image, as slides are, is not 8-bit RGB; the message says how one channel of it is read, or what else to do."""


class SlideWarning(UserWarning):
    """A slide is not read in the expected way; the pixels are correct."""


class JobWarning(UserWarning):
    """Part of a job cannot be used; the rest is used."""


class RegionError(StreamviewError):
    """A region lies outside the slide or is too small for the network."""


class AnnotationError(StreamviewError):
    """An annotation file is missing, damaged, malicious, of another format, or drawn on another slide."""


class AnnotationWarning(UserWarning):
    """Some objects of an annotation file are skipped; the others are read."""


class ModelError(StreamviewError):
    """A model, its card or its weights are unknown, unsafe or do not match."""


class LabelError(StreamviewError):
    """Labelled regions are missing, invalid, too few, or cannot be split."""


class ReviewError(StreamviewError):
    """A review session, its reads or its file are missing, contradictory, or too few for what is computed."""


class TrainingError(StreamviewError):
    """Fine-tuning cannot start or continue; the best network so far is kept."""


class NotStreamableError(StreamviewError):
    """A network cannot be streamed; the message names the layer and the reason."""


class MemoryBudgetError(StreamviewError):
    """No step shape fits the memory budget."""


class Cancelled(StreamviewError):
    """The user cancelled the work; no partial output is left that looks complete."""
