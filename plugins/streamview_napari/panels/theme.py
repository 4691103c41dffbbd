"""Colours of the dock, from napari's theme: every text can be read on its ground, whatever the theme.

A widget says with `set_role` what it is; the dock's one style sheet (`style_sheet`) says what that looks like, and is made anew when the
theme changes.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qtpy.QtCore import Qt

if TYPE_CHECKING:
    from napari.utils.theme import Theme
    from qtpy.QtWidgets import QWidget

__all__ = ["READABLE", "VISIBLE", "Colour", "Colours", "Role", "as_hex", "colours", "contrast", "set_role", "style_sheet"]

Colour = tuple[int, int, int]
"""sRGB, 0 to 255."""
Role = Literal[
    "plain",  # nothing special
    "title",  # of a section, or what is worked on
    "quiet",  # facts
    "warning",  # what to beware of
    "error",  # what went wrong
    "badge",  # a remark on a map
    "run",  # the button that starts the work
    "choice",  # one of several buttons of which one is down
    "verdict",  # the same, large
    "confidence",  # the same, narrow
    "link",  # a button that is seldom used
    "progress",  # bars: of progress,
    "likeliest",  # of the likeliest class,
    "other",  # and of the others
    "line",
    "focus",  # the frame around the control that keys act on
]
"""What a widget is."""

READABLE = 4.5  # contrast of text with its ground: WCAG 2.2, 1.4.3
VISIBLE = 3.0  # and of bars and frames: 1.4.11
_RIGHT, _WRONG = (111, 208, 140), (255, 138, 128)


@dataclass(frozen=True, slots=True)
class Colours:
    """What a theme gives the dock.

    Parameters
    ----------
    ground, text, quiet, warning, right, wrong
        The dock's ground, and what is written on it: text, facts, what to beware of, what became right or wrong.
    error_ground, badge_ground, badge_text
        Boxes; an error is written in the colour of text.
    run_ground, run_hover, run_text, idle_ground, idle_text
        The button that starts the work, and the same while it cannot.
    trough, bar, other_bar
        Bars: what is not filled, what is, and what is of classes that are not the likeliest.
    line, focus
        Lines, and the frame around the control that keys act on.
    """

    ground: Colour
    text: Colour
    quiet: Colour
    warning: Colour
    right: Colour
    wrong: Colour
    error_ground: Colour
    badge_ground: Colour
    badge_text: Colour
    run_ground: Colour
    run_hover: Colour
    run_text: Colour
    idle_ground: Colour
    idle_text: Colour
    trough: Colour
    bar: Colour
    other_bar: Colour
    line: Colour
    focus: Colour

    @property
    def texts(self) -> tuple[tuple[Colour, Colour], ...]:
        """Every text with the ground that it stands on."""
        return (
            *((text, self.ground) for text in (self.text, self.quiet, self.warning, self.right, self.wrong)),
            (self.warning, self.trough),  # in a list of networks
            (self.text, self.error_ground),
            (self.badge_text, self.badge_ground),
            (self.run_text, self.run_ground),
            (self.run_text, self.run_hover),
            (self.idle_text, self.idle_ground),
        )

    @property
    def shapes(self) -> tuple[tuple[Colour, Colour], ...]:
        """Every bar and frame with the ground that it stands on."""
        return (self.bar, self.trough), (self.other_bar, self.trough), (self.focus, self.ground)


def contrast(one: Colour, other: Colour) -> float:
    """Return the contrast ratio of two colours, 1 to 21: WCAG 2.2, "contrast ratio"."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def colours(theme_id: str) -> Colours:
    """Return the colours under a theme of napari, such as ``viewer.theme``; what a theme gives too faintly gets lighter or darker."""
    from napari.utils.theme import get_theme

    theme: Theme = get_theme(theme_id)
    ground, text, primary, current, amber, red, grey = (
        _rgb(colour) for colour in (theme.background, theme.text, theme.primary, theme.current, theme.warning, theme.error, theme.secondary)
    )
    run_text = _legible(current, text, ground)
    return Colours(
        ground=ground,
        text=text,
        quiet=_until(_mix(text, ground, 0.65), ground, READABLE),
        warning=_until(_until(amber, ground, READABLE), primary, READABLE),
        right=_until(_RIGHT, ground, READABLE),
        wrong=_until(_WRONG, ground, READABLE),
        error_ground=_until(_mix(red, ground, 0.35), text, READABLE),
        badge_ground=amber,
        badge_text=_legible(amber, text, ground),
        run_ground=_until(current, run_text, READABLE),
        run_hover=_until(_mix(current, ground, 0.8), run_text, READABLE),
        run_text=run_text,
        idle_ground=primary,
        idle_text=_until(_mix(text, primary, 0.6), primary, READABLE),
        trough=primary,
        bar=_until(current, primary, VISIBLE),
        other_bar=_until(grey, primary, VISIBLE),
        line=primary,
        focus=_until(current, ground, VISIBLE),
    )


def as_hex(colour: Colour) -> str:
    """Write a colour as ``"#rrggbb"``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def style_sheet(theme_id: str) -> str:
    """Return Qt's style sheet of all roles under a theme of napari."""
    shown = {name: "rgb({}, {}, {})".format(*getattr(colours(theme_id), name)) for name in Colours.__dataclass_fields__}
    bars = "".join(
        f'QProgressBar[role="{role}"] {{{{ background: {{trough}}; border: 0; border-radius: 3px; }}}}\n'
        f'QProgressBar[role="{role}"]::chunk {{{{ background: {{{fill}}}; border-radius: 3px; }}}}\n'
        for role, fill in (("progress", "bar"), ("likeliest", "bar"), ("other", "other_bar"))
    )
    return (_SHEET + bars).format(**shown)


def set_role(widget: QWidget, role: Role) -> None:
    """Say what a widget is; it looks like that from now on."""
    if widget.property("role") != role:
        widget.setProperty("role", role)
        if widget.testAttribute(Qt.WidgetAttribute.WA_WState_Polished):  # Qt looks at properties once
            widget.style().unpolish(widget)
            widget.style().polish(widget)


_SHEET = """
[role="title"] {{ border: 0; background: transparent; padding: 0; font-weight: bold; }}
[role="quiet"] {{ color: {quiet}; }}
[role="warning"] {{ color: {warning}; }}
[role="error"] {{ background: {error_ground}; color: {text}; padding: 6px; border-radius: 3px; }}
[role="badge"] {{ background: {badge_ground}; color: {badge_text}; padding: 2px 6px; border-radius: 3px; }}
[role="line"] {{ background: {line}; }}
[role="focus"] {{ background: transparent; color: {focus}; }}
QPushButton[role="link"] {{ background: transparent; color: {quiet}; padding: 0; text-decoration: underline; }}
QPushButton[role="link"]:hover {{ color: {text}; }}
QPushButton[role="choice"] {{ border-radius: 0; padding: 4px; }}
QPushButton[role="verdict"] {{ border-radius: 3px; padding: 4px 8px; text-align: left; }}
QPushButton[role="confidence"] {{ border-radius: 3px; padding: 4px 0; }}
QPushButton[role="choice"]:checked, QPushButton[role="verdict"]:checked, QPushButton[role="confidence"]:checked,
QPushButton[role="run"] {{ background: {run_ground}; color: {run_text}; }}
QPushButton[role="run"] {{ font-weight: bold; padding: 5px; border-radius: 3px; }}
QPushButton[role="run"]:hover {{ background: {run_hover}; }}
QPushButton[role="run"]:disabled {{ background: {idle_ground}; color: {idle_text}; border: 0; }}
QTabWidget::pane {{ border: 0; }}
QTabBar::tab {{ background: transparent; color: {quiet}; padding: 5px 14px; border: 0; border-bottom: 2px solid transparent; }}
QTabBar::tab:selected {{ color: {text}; border-bottom: 2px solid {focus}; }}
QHeaderView::section {{ background: transparent; color: {quiet}; border: 0; padding: 2px 4px; }}
"""


def _rgb(colour: object) -> Colour:
    red, green, blue = colour.as_rgb_tuple()[:3]  # type: ignore[attr-defined]  # pydantic's Color, which napari takes from an extra package
    return red, green, blue


def _luminance(colour: Colour) -> float:
    """Relative luminance of WCAG 2.2."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (part / 255 for part in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(share * a + (1 - share) * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _until(colour: Colour, ground: Colour, least: float) -> Colour:
    """Return the colour of this hue, and nearest in lightness, that has this contrast with a ground."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(part / 255 for part in colour))
    end = max((0.0, 1.0), key=lambda end: contrast(_grey(end), ground))
    for step in range(51):
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness + (end - lightness) * step / 50, saturation))
        if contrast((red, green, blue), ground) >= least:
            break
    return red, green, blue


def _grey(lightness: float) -> Colour:
    return (round(255 * lightness),) * 3


def _legible(ground: Colour, *texts: Colour) -> Colour:
    """Return the text that can be read best on a ground."""
    return max(texts, key=lambda text: contrast(text, ground))
