"""The colours of tokens.css: readable in both themes, and apart for colour-blind eyes."""

import itertools
import math
import re
from pathlib import Path

import pytest
from django.conf import settings

WORDS = ("teacher", "student", "hard", "easy", "quarantined")
STATES = ("queued", "running", "finished", "failed", "stopped")
LINEAR = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""How each kind of eye sees linear RGB (Machado, Oliveira and Fernandes, 2009)."""


def tokens(theme: int) -> dict[str, str]:
    css = Path(settings.BASE_DIR, "static/css/tokens.css").read_text()
    return {name: pair[theme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)}


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    """The WCAG contrast ratio."""
    light, dark = sorted((sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(x), strict=True)) for x in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: list[float]) -> tuple[float, float, float]:
    r, g, b = (min(1.0, max(0.0, part)) for part in rgb)
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "ink-soft", "accent", *WORDS, *STATES])
def test_text_has_aa_contrast_on_every_surface(theme, name):
    colours = tokens(theme)
    for surface in ("paper", "surface", "sunken"):
        assert contrast(colours[name], colours[surface]) >= 4.5, surface


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_buttons_have_aa_contrast_and_the_focus_ring_is_seen(theme):
    colours = tokens(theme)
    assert contrast(colours["button"], colours["button-ink"]) >= 4.5
    assert contrast(colours["focus"], colours["paper"]) >= 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", LINEAR)
def test_the_words_of_the_loop_stay_apart_for_every_kind_of_eyes(theme, eyes):
    colours = tokens(theme)
    seen = {word: lab([sum(w * c for w, c in zip(row, linear(colours[word]), strict=True)) for row in LINEAR[eyes]]) for word in WORDS}
    for one, other in itertools.combinations(WORDS, 2):
        assert math.dist(seen[one], seen[other]) >= 10, (one, other)
