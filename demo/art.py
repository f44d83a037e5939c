"""Draws the photographs of the miniature landmark world: places, scenes and the camera, by code.

A landmark is a row of the table `LANDMARKS`: a drawing function and its proportions and colors.
A photograph is a scene (setting, light, weather), a place or two, clutter in front, and a camera
that blurs, adds noise and compresses. Everything random comes from the generator passed in.
"""

import functools
import io
import itertools
import math
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 3  # drawn this many times larger, then averaged down: smooth edges
LONG_SIDE, SHORT_SIDE = 256, 192  # pixels of a photograph


# -------------------------------------------------------------------------------- colors and light


@functools.cache
def rgb(color):
    """Turns "#rrggbb" into a tuple of three numbers 0..255; passes tuples through."""
    if isinstance(color, tuple):
        return color
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def mix(first, second, share):
    """Mixes two colors; `share` 0 gives the first, 1 the second."""
    return tuple(a + (b - a) * share for a, b in zip(rgb(first), rgb(second), strict=True))


def pick(rng, options, weights=None):
    """Chooses one of several options; NumPy's own `choice` would turn them into an array."""
    return options[int(rng.choice(len(options), p=weights))]


# light -> (sky above, sky at the horizon, what the light does to red, green and blue)
LIGHTS = {
    "day": ("#3f86d2", "#cfe7f7", (1.0, 1.0, 1.0)),
    "golden": ("#5f8fc4", "#ffd59a", (1.08, 0.92, 0.72)),
    "dusk": ("#3b3d72", "#f2936a", (0.74, 0.60, 0.68)),
    "night": ("#0b1230", "#2a3a66", (0.29, 0.33, 0.50)),
}
FLOODLIT = (0.94, 0.82, 0.60)  # many places are lit up at night

# weather -> (how gray, how bright, haze on the place, haze on what lies behind it)
WEATHERS = {
    "clear": (0.0, 1.0, 0.0, 0.35),
    "overcast": (0.55, 0.90, 0.04, 0.40),
    "rain": (0.60, 0.76, 0.16, 0.55),
    "snow": (0.50, 0.95, 0.16, 0.55),
    "fog": (0.50, 0.95, 0.48, 0.82),
}

# setting -> (what lies behind, ground far, ground near, what may stand in front)
SETTINGS = {
    "city": ("skyline", "#a3a4a6", "#7e8085", ("car", "lamp", "person", "person", "tree")),
    "plaza": ("houses", "#cbbfae", "#a89a87", ("person", "person", "lamp", "tree", "fence")),
    "park": ("treeline", "#8db463", "#5f8f42", ("tree", "tree", "bush", "person", "fence")),
    "hills": ("hills", "#9dbb6a", "#6d9a48", ("tree", "bush", "bush", "fence", "person")),
    "desert": ("dunes", "#e6c992", "#cfa867", ("palm", "person", "bush", "fence")),
    "mountains": ("peaks", "#93ab72", "#6b8a55", ("pine", "pine", "bush", "person", "fence")),
    "sea": ("sea", "water", "water", ("boat", "boat", "bush", "person", "fence")),
    "river": ("houses", "water", "water", ("boat", "tree", "lamp", "bush", "person")),
}


@dataclass(frozen=True)
class Scene:
    """The conditions of one photograph."""

    setting: str
    light: str
    weather: str
    hard: bool  # far or cut off, oblique, blurred, with much in front
    portrait: bool
    sun_angle: float  # radians from straight ahead, negative is left

    @property
    def size(self):
        """Width and height in pixels."""
        return (SHORT_SIDE, LONG_SIDE) if self.portrait else (LONG_SIDE, SHORT_SIDE)


def random_scene(rng, settings, hard_share, portrait_share=0.1):
    """Draws the conditions of one photograph.

    Args:
        rng: numpy Generator.
        settings: names in `SETTINGS` to choose from.
        hard_share: share of photographs under hard conditions, 0..1.
        portrait_share: share of upright photographs, 0..1.

    Returns:
        A Scene.
    """
    hard = rng.random() < hard_share
    light_weights = (0.36, 0.16, 0.18, 0.30) if hard else (0.70, 0.18, 0.12, 0.0)
    weather_weights = (0.30, 0.18, 0.17, 0.15, 0.20) if hard else (0.68, 0.20, 0.06, 0.06, 0.0)
    return Scene(
        setting=pick(rng, settings),
        light=pick(rng, list(LIGHTS), light_weights),
        weather=pick(rng, list(WEATHERS), weather_weights),
        hard=hard,
        portrait=rng.random() < portrait_share,
        sun_angle=float(rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)),
    )


class Grade:
    """Turns the color of a thing into its color in a scene's light and weather."""

    def __init__(self, scene):
        above, horizon, self.tint = LIGHTS[scene.light]
        self.gray, self.brightness, self.haze, self.far_haze = WEATHERS[scene.weather]
        self.dark = scene.light in ("dusk", "night")
        self.contrast = 1.0 if self.gray == 0 else 0.55
        self.sun_angle = scene.sun_angle
        self.sky_above, self.sky_horizon = self.gray_sky(above), self.gray_sky(horizon)

    def gray_sky(self, color):
        level = sum(rgb(color)) / 3 * self.brightness
        return mix(color, (level, level, level * 1.03), self.gray)

    def color(self, color, light=1.0, haze=0.0, tint=None):
        light = 1 + (light - 1) * self.contrast
        tinted = [c * t * light for c, t in zip(rgb(color), tint or self.tint, strict=True)]
        level = sum(tinted) / 3
        lit = [(c + (level - c) * self.gray * 0.5) * self.brightness for c in tinted]
        return to_bytes(mix(tuple(lit), self.sky_horizon, haze))

    def light_at(self, angle):
        """How much light falls on a wall turned `angle` radians away from the viewer."""
        return 0.66 + 0.44 * max(0.0, math.cos(angle - self.sun_angle))


def to_bytes(color):
    return tuple(min(255, max(0, round(c))) for c in color)


# ------------------------------------------------------------------------------------------ the pen


@dataclass(frozen=True)
class View:
    """Where a thing stands in the picture and how it is seen (pixels; slopes without unit)."""

    x: float
    y: float
    scale: float  # pixels per unit of the thing
    stretch: float = 1.0  # width as seen, in units of the true width
    yaw: float = 0.0  # how far depth shows sideways
    pitch: float = 0.0  # how far depth shows upwards
    tilt: float = 0.0  # one side nearer than the other
    keystone: float = 0.0  # upright lines converge
    roll: float = 0.0  # the camera held askew


class Pen:
    """Draws solids and flat shapes in a thing's own units: x right, y up, z away, base at 0."""

    def __init__(self, draw, view, grade, rng, haze=0.0, tint=None):
        self.draw, self.view, self.grade, self.rng = draw, view, grade, rng
        self.haze, self.tint = haze, tint
        self.shades = {}

    def point(self, x, y, z=0.0):
        view = self.view
        across, up = x * view.stretch + view.yaw * z, y + view.pitch * z
        scale = view.scale * (1 + view.tilt * across)
        return (
            view.x + scale * (across * (1 - view.keystone * up) + view.roll * up),
            view.y - scale * (up - view.roll * across),
        )

    def shade(self, color, light=1.0):
        key = (color, light)
        if key not in self.shades:
            self.shades[key] = self.grade.color(color, light, self.haze, self.tint)
        return self.shades[key]

    def glow(self, color):
        return to_bytes(mix(color, self.grade.sky_horizon, self.haze))

    def fill(self, points, paint):
        self.draw.polygon([self.point(*p) for p in points], fill=paint)

    def polygon(self, points, color, light=1.0):
        self.fill(points, self.shade(color, light))

    def line(self, points, width, color, light=1.0):
        pixels = max(1, round(width * self.view.scale))
        self.draw.line(
            [self.point(*p) for p in points], self.shade(color, light), pixels, joint="curve"
        )

    def rect(self, x, y, width, height, color, light=0.96, z=0.0):
        left, right, top = x - width / 2, x + width / 2, y + height
        self.polygon([(left, y, z), (right, y, z), (right, top, z), (left, top, z)], color, light)

    def box(self, x, y, width, height, color, depth=None, top=None):
        """Draws a block around the axis at x; returns the z of its front."""
        depth = width if depth is None else depth
        near, far = -depth / 2, depth / 2
        ceiling = y + height
        side = 1 if self.view.yaw > 0 else -1
        edge = x + side * width / 2
        face = [(edge, y, near), (edge, y, far), (edge, ceiling, far), (edge, ceiling, near)]
        self.polygon(face, color, self.grade.light_at(side * 1.35))
        left, right = x - width / 2, x + width / 2
        lid = [(left, ceiling, near), (right, ceiling, near), (right, ceiling, far)]
        self.polygon([*lid, (left, ceiling, far)], top or color, 1.1)
        self.rect(x, y, width, height, color, self.grade.light_at(0), near)
        return near

    def spire(self, x, y, width, height, color, depth=None):
        """Draws a pyramid on a square base."""
        depth = width if depth is None else depth
        side = 1 if self.view.yaw > 0 else -1
        edge, apex = x + side * width / 2, (x, y + height, 0)
        side_face = [(edge, y, -depth / 2), (edge, y, depth / 2), apex]
        self.polygon(side_face, color, self.grade.light_at(side * 1.35))
        front = [(x - width / 2, y, -depth / 2), (x + width / 2, y, -depth / 2), apex]
        self.polygon(front, color, self.grade.light_at(0))

    def gable(self, x, y, width, height, depth, wall, roof):
        """Draws a saddle roof whose triangle faces the viewer."""
        side = 1 if self.view.yaw > 0 else -1
        edge, near, far = x + side * width / 2, -depth / 2, depth / 2
        slope = [(edge, y, near), (edge, y, far), (x, y + height, far), (x, y + height, near)]
        self.polygon(slope, roof, self.grade.light_at(side * 1.0))
        front = [(x - width / 2, y, near), (x + width / 2, y, near), (x, y + height, near)]
        self.polygon(front, wall, self.grade.light_at(0))

    def turned(self, x, y, profile, color, strips=6):
        """Draws a solid of revolution: `profile` lists (radius, height above y) upwards."""
        bounds = [math.sin(math.pi * (i / strips - 0.5)) for i in range(strips + 1)]
        for i in range(strips):
            light = self.grade.light_at(math.pi * ((i + 0.5) / strips - 0.5))
            left = [(x + r * bounds[i], y + h) for r, h in profile]
            right = [(x + r * bounds[i + 1] * 1.01, y + h) for r, h in reversed(profile)]
            self.polygon(left + right, color, light)

    def drum(self, x, y, bottom, top, height, color):
        self.turned(x, y, [(bottom / 2, 0), (top / 2, height)], color)

    def dome(self, x, y, width, height, color, shape="round"):
        profile = [(r * width / 2, h * height) for r, h in DOME_PROFILES[shape]]
        self.turned(x, y, profile, color)

    def arch(self, x, y, width, height, color, z=0.0, pointed=False, light=0.9):
        self.polygon([(*p, z) for p in arch_outline(x, y, width, height, pointed)], color, light)

    def disc(self, x, y, radius, color, light=1.0, z=0.0):
        turns = [2 * math.pi * i / 18 for i in range(18)]
        ring = [(x + radius * math.cos(a), y + radius * math.sin(a), z) for a in turns]
        self.polygon(ring, color, light)

    def windows(self, x, y, width, height, columns, rows, z=0.0, color="#38424f", fill=0.5):
        """Draws a grid of windows; some are lit when it is dark."""
        step_x, step_y = width / columns, height / rows
        lit = self.rng.random((columns, rows)) < (0.45 if self.grade.dark else 0.0)
        for i in range(columns):
            for j in range(rows):
                center = x - width / 2 + (i + 0.5) * step_x
                low, high = y + step_y * (j + 0.5 - fill / 2), y + step_y * (j + 0.5 + fill / 2)
                half = step_x * fill / 2
                paint = self.glow("#ffd27a") if lit[i, j] else self.shade(color)
                pane = [(center - half, low, z), (center + half, low, z)]
                self.fill([*pane, (center + half, high, z), (center - half, high, z)], paint)

    def battlements(self, x, y, width, size, color, z=0.0):
        count = max(2, round(width / size / 2))
        for i in range(count):
            center = x - width / 2 + width * (i + 0.5) / count
            self.rect(center, y, width / count * 0.55, size, color, self.grade.light_at(0), z)


class PartOfPen(Pen):
    """Draws one thing of several: moved sideways and smaller, in the units of the whole."""

    def __init__(self, whole, x, size):
        view = replace(whole.view, scale=whole.view.scale * size)  # the width of lines
        super().__init__(whole.draw, view, whole.grade, whole.rng, whole.haze, whole.tint)
        self.whole, self.x, self.size = whole, x, size

    def point(self, x, y, z=0.0):
        return self.whole.point(self.x + self.size * x, self.size * y, self.size * z)


# name -> outline as (radius, height), both as shares of the dome's half width and height
DOME_PROFILES = {
    "round": [(math.cos(a), math.sin(a)) for a in np.linspace(0, 1.48, 8).tolist()],
    "onion": [(0.62, 0), (0.92, 0.14), (1, 0.28), (0.9, 0.45), (0.6, 0.62), (0.24, 0.78), (0, 1)],
    "tall": [(0.9, 0), (1, 0.2), (0.97, 0.42), (0.82, 0.64), (0.5, 0.83), (0.12, 0.94), (0, 1)],
}


def half_circle(steps=10):
    """Lists points of the upper half of the unit circle, from right to left."""
    return [
        (math.cos(math.pi * i / steps), math.sin(math.pi * i / steps)) for i in range(steps + 1)
    ]


def arch_outline(x, y, width, height, pointed=False):
    """Lists the corners of an opening with a round or pointed top."""
    half = width / 2
    spring = y + max(height - half * (1.5 if pointed else 1.0), 0.2 * height)
    rise = y + height - spring
    if pointed:
        top = [(x + half, spring), (x + half * 0.6, spring + rise * 0.62), (x, y + height)]
        top += [(x - half * 0.6, spring + rise * 0.62), (x - half, spring)]
    else:
        top = [(x + half * across, spring + rise * up) for across, up in half_circle()]
    return [(x + half, y), *top, (x - half, y)]


# ------------------------------------------------------------------------------- kinds of landmarks


def clock_tower(pen, body, roof, trim, width=0.22, roof_height=0.26, top="spire"):
    height = 1 - roof_height
    pen.box(0, 0, width * 1.3, 0.07, trim)
    front = pen.box(0, 0.07, width, height - 0.07, body)
    pen.windows(0, 0.1, width * 0.7, height - 0.38, 2, 4, front)
    pen.arch(0, 0.0, width * 0.34, 0.12, "#3d342e", front)
    front = pen.box(0, height - 0.25, width * 1.14, 0.21, body)
    pen.disc(0, height - 0.145, width * 0.42, trim, 0.9, front)
    paint = pen.glow("#fff0c0") if pen.grade.dark else pen.shade("#f7f1dd")
    turns = [2 * math.pi * i / 18 for i in range(18)]
    radius, center = width * 0.35, height - 0.145
    dial = [(radius * math.cos(a), center + radius * math.sin(a), front) for a in turns]
    pen.fill(dial, paint)
    hand = (width * 0.16, height - 0.1, front)
    pen.line([(0, height - 0.065, front), (0, center, front), hand], 0.012, "#2a2522")
    pen.box(0, height - 0.04, width * 1.28, 0.04, trim)
    if top == "spire":
        pen.spire(0, height, width * 1.12, roof_height, roof)
    else:
        pen.drum(0, height, width * 0.8, width * 0.8, roof_height * 0.35, trim)
        pen.dome(0, height + roof_height * 0.35, width * 1.05, roof_height * 0.65, roof, "tall")


def lattice_tower(pen, color, spread=0.46, curve=2.6, platforms=(0.2, 0.42), segments=10):
    def half(y):
        return spread / 2 * (1 - y) ** curve + 0.022

    steps = [i / segments * 0.9 for i in range(segments + 1)]
    for low, high in itertools.pairwise(steps):
        pen.line([(-half(low), low), (half(high), high)], 0.011, color, 0.75)
        pen.line([(half(low), low), (-half(high), high)], 0.011, color, 0.75)
        thick = 0.032 + 0.1 * spread * (1 - low)
        for side in (-1, 1):
            outside = [(side * half(low), low), (side * half(high), high)]
            inside = [(side * max(half(y) - thick, 0), y) for y in (high, low)]
            pen.polygon(outside + inside, color, pen.grade.light_at(side * 0.9))
    for y in platforms:
        pen.box(0, y, half(y) * 2.5, 0.035, color)
    bow = [(half(0) * 0.62 * x, platforms[0] * 0.92 * y) for x, y in half_circle()]
    pen.line(bow, 0.02, color, 0.85)
    pen.box(0, 0.88, 0.07, 0.035, color)
    pen.line([(0, 0.9), (0, 1)], 0.014, color)


def cathedral(pen, wall, roof, tower_width=0.2, gap=0.36, spires=0.34, nave=0.5, rose="#4a6fa5"):
    tower_height = 1 - spires if spires else 0.8
    pen.box(0, 0, gap + tower_width * 0.6, nave, wall, depth=0.9)
    pen.gable(0, nave, gap + tower_width * 0.8, 0.2, 0.9, wall, roof)
    for x in (-gap / 2 - tower_width / 2, gap / 2 + tower_width / 2):
        front = pen.box(x, 0, tower_width, tower_height, wall, depth=tower_width * 1.2)
        for y in (0.22, 0.44, tower_height - 0.2):
            pen.arch(x, y, tower_width * 0.42, 0.14, "#3b3b46", front, pointed=True)
        pen.arch(x, 0, tower_width * 0.46, 0.15, "#4a3426", front, pointed=True)
        pen.box(x, tower_height, tower_width * 1.1, 0.025, wall)
        if spires:
            pen.spire(x, tower_height, tower_width, spires, roof)
        else:
            pen.battlements(x, tower_height, tower_width * 1.1, 0.035, wall, front)
    front = -0.46
    pen.rect(0, 0, gap, nave, wall, 0.98, front)
    pen.arch(0, 0, gap * 0.46, 0.2, "#4a3426", front, pointed=True)
    pen.disc(0, nave * 0.74, gap * 0.31, "#e8e2d2", 0.9, front)
    pen.disc(0, nave * 0.74, gap * 0.26, rose, 1.0, front)
    for angle in (0, 1.05, 2.1):
        dx, dy = gap * 0.26 * math.cos(angle), gap * 0.26 * math.sin(angle)
        spoke = [(-dx, nave * 0.74 - dy, front), (dx, nave * 0.74 + dy, front)]
        pen.line(spoke, 0.01, "#e8e2d2", 0.9)


def suspension_bridge(pen, tower, deck, shape="H", span=1.5, deck_height=0.3, cable=None):
    cable, ends = cable or tower, span * 0.92
    half = span / 2
    pen.box(0, deck_height - 0.05, ends * 2, 0.05, deck, depth=0.12)
    main = []
    for t in (i / 12 for i in range(13)):  # the cable's parabola
        main.append(
            (-half + span * t, deck_height + 0.06 + (0.92 - deck_height) * (2 * t - 1) ** 2)
        )
    for side in (-1, 1):
        anchor = [(side * ends, deck_height), (side * half, 0.98)]
        pen.line(anchor, 0.016, cable)
        for t in (0.25, 0.5, 0.75):
            x, y = side * (ends + (half - ends) * t), deck_height + (0.98 - deck_height) * t
            pen.line([(x, deck_height), (x, y)], 0.007, cable)
    pen.line(main, 0.018, cable)
    for x, y in main[1:-1]:
        pen.line([(x, deck_height), (x, y)], 0.007, cable)
    for x in (-half, half):
        bridge_tower(pen, x, tower, shape, deck_height)
    pen.rect(0, deck_height - 0.04, ends * 2, 0.03, deck, 1.05, -0.06)


def bridge_tower(pen, x, color, shape, deck_height):
    if shape == "stone":
        front = pen.box(x, 0, 0.2, 1, color)
        for dx in (-0.045, 0.045):
            pen.arch(x + dx, deck_height, 0.055, 0.42, "#4d4640", front, pointed=True)
        pen.box(x, 0.97, 0.24, 0.05, color)
        return
    pen.box(x, -0.02, 0.24, 0.07, "#9a958c", depth=0.14)
    bottom, top = (0.085, 0.055) if shape == "H" else (0.11, 0.012)
    for side in (-1, 1):
        light = pen.grade.light_at(side * 0.8)
        foot, head = x + side * bottom, x + side * top
        leg = [(foot - 0.025, 0), (foot + 0.025, 0), (head + 0.022, 1), (head - 0.022, 1)]
        pen.polygon(leg, color, light)
    for y in (0.52, 0.74, 0.95) if shape == "H" else (0.62,):
        pen.rect(x, y, 0.14 if shape == "H" else 0.1, 0.04, color, 0.9)


def arch_bridge(pen, stone, arches=5, height=0.5, tiers=1, width=2.0):
    """Tiers of open arches; the third tier has two small arches above each large one."""
    tier_height = height / tiers
    for tier in range(tiers):
        count = arches * (2 if tier == 2 else 1)
        bay, low = width / count, tier * tier_height
        high = low + tier_height
        for i in range(count):
            x = -width / 2 + bay * (i + 0.5)
            opening = arch_outline(x, low, bay * 0.72, tier_height * 0.78)
            left, right = x - bay / 2, x + bay / 2
            wall = [(left, low), (left, high), (right, high), (right, low)]
            pen.polygon([*wall, *opening], stone, pen.grade.light_at(0))
            side = opening[6:12] if pen.view.yaw > 0 else opening[1:7]  # the arch seen from below
            pen.line(side, 0.022, stone, 0.6)
        pen.line([(-width / 2, high), (width / 2, high)], 0.03, stone, 1.12)


def mountain(pen, rock, peaks, snow_line=0.62, snow="#f6f9fc", forest="#4c6b45"):
    """`peaks` lists (x, height, half width), drawn from back to front."""
    jags = [0.0, 0.35, -0.2, 0.3, -0.35, 0.15, 0.0]
    drifts = ((1, 1), (0.8, 0.8), (0.62, 1.08), (0.45, 0.82), (0.25, 1.15), (0.05, 0.8))
    for x, height, half in peaks:
        ridge_line = [(x + 0.1 * half * jag, height * (1 - i / 6)) for i, jag in enumerate(jags)]
        for side in (-1, 1):
            slope = []
            for t in (0.2, 0.4, 0.6, 0.8):
                rough = 0.03 * math.sin(9 * t + side * x), 0.03 * math.sin(14 * t + 3 * x + side)
                slope.append((x + side * (half * t + rough[0]), height * (1 - t) + rough[1]))
            face = [(x, height), *slope, (x + side * half, 0), *ridge_line[::-1]]
            pen.polygon(face, rock, pen.grade.light_at(side))
        deep = max(0.0, height - snow_line)
        for side in (-1, 1):
            zigzag = [(x + side * half * deep / height * u, height - deep * v) for u, v in drifts]
            pen.polygon([(x, height), *zigzag], snow, pen.grade.light_at(side * 0.8))
        treetops = [
            (x - half + half * i / 5, height * (0.16 + 0.04 * (i % 2))) for i in range(1, 10)
        ]
        pen.polygon([(x - half, 0), *treetops, (x + half, 0)], forest, 0.9)


def statue(pen, color, pedestal, pose="torch", base=0.34):
    pen.box(0, 0, 0.42, base * 0.3, pedestal)
    front = pen.box(0, base * 0.3, 0.3, base * 0.6, pedestal)
    pen.rect(0, base * 0.42, 0.16, base * 0.28, "#6d6257", 0.8, front)
    pen.box(0, base * 0.9, 0.35, base * 0.1, pedestal)
    draw_figure = {"torch": torchbearer, "rider": horse_and_rider}[pose]
    draw_figure(pen, color, base, 1 - base)


def torchbearer(pen, color, base, body):
    neck = base + 0.7 * body
    robe = [(0.135, 0), (0.115, 0.25), (0.085, 0.46), (0.105, 0.6), (0.04, 0.7)]
    pen.line([(0.07, neck - 0.08), (0.14, neck + 0.1)], 0.055, color, 0.9)
    pen.turned(0, base, [(radius, height * body) for radius, height in robe], color)
    for lean in (-0.6, -0.3, 0.0, 0.3, 0.6):  # the crown's rays
        pen.line([(0.05 * lean, neck + 0.07), (0.13 * lean, neck + 0.135)], 0.013, color, 0.9)
    pen.disc(0, neck + 0.045, 0.048, color, 1.02)
    pen.rect(-0.1, neck - 0.22, 0.09, 0.13, color, 0.75)
    pen.line([(0.14, neck + 0.08), (0.145, 0.94)], 0.022, color, 0.8)
    flame = [(0.115, 0.93), (0.175, 0.93), (0.145, 1.0)]
    pen.fill(flame, pen.glow("#ffb52e"))


def horse_and_rider(pen, color, base, body):
    horse = [(-0.2, 0.30), (-0.23, 0.0), (-0.17, 0.0), (-0.13, 0.24), (0.06, 0.24), (0.16, 0.16)]
    horse += [(0.26, 0.2), (0.27, 0.25), (0.16, 0.23), (0.15, 0.40), (0.27, 0.52), (0.24, 0.58)]
    horse += [(0.14, 0.62), (0.1, 0.52), (0.02, 0.42), (-0.2, 0.43), (-0.28, 0.2), (-0.24, 0.4)]
    pen.polygon([(x, base + y * body) for x, y in horse], color, 0.9)
    leg = [(0.07, 0.26), (0.06, 0.0), (0.11, 0.0), (0.13, 0.28)]
    pen.polygon([(x, base + y * body) for x, y in leg], color, 0.7)
    rider = [(-0.09, 0.40), (-0.08, 0.72), (0.02, 0.76), (0.06, 0.42), (0.08, 0.2), (0.02, 0.2)]
    pen.polygon([(x, base + y * body) for x, y in rider], color, 1.08)
    pen.disc(-0.02, base + 0.83 * body, 0.05, color, 1.05)
    pen.line([(0.0, base + 0.68 * body), (0.2, base + 0.9 * body)], 0.035, color, 1.0)
    pen.line([(0.2, base + 0.9 * body), (0.24, 1.0)], 0.014, color, 1.1)


def lighthouse(pen, bands, count=5, bottom=0.26, top=0.15, cap="#a03028", house="#d8d2c6"):
    rocks = [(-0.36, -0.03), (-0.3, 0.05), (-0.2, 0.06), (-0.12, 0.1), (0.1, 0.09), (0.2, 0.05)]
    pen.polygon([*rocks, (0.4, 0.04), (0.46, -0.03)], "#7d756b", 0.85)
    if house:
        pen.box(0.28, 0, 0.24, 0.13, house)
        pen.gable(0.28, 0.13, 0.28, 0.1, 0.26, house, cap)
    height = 0.78
    for i in range(count):
        low, high = (bottom + (top - bottom) * t / count for t in (i, i + 1))
        color = bands[i % len(bands)]
        pen.drum(0, height * i / count, low, high, height / count * 1.01, color)
    for y in (0.2, 0.42, 0.62):
        pen.rect(0.0, y, 0.03, 0.05, "#30343c", 0.9)
    pen.drum(0, height, top * 1.6, top * 1.6, 0.03, "#3a3d42")
    if pen.grade.dark:
        low, high, half = height + 0.03, height + 0.13, top / 2
        lamp_room = [(-half, low), (half, low), (half, high), (-half, high)]
        pen.fill(lamp_room, pen.glow("#fff3b8"))
    else:
        pen.drum(0, height + 0.03, top, top, 0.1, "#bfe0e8")
        pen.line([(0, height + 0.03), (0, height + 0.13)], 0.012, "#3a3d42")
    pen.turned(0, height + 0.13, [(top * 0.66, 0), (top * 0.5, 0.04), (0, 0.09)], cap)


def castle(pen, wall, roof, towers, keep=(0.5, 0.5), wall_height=0.3, width=1.5):
    """`towers` lists (x, width, height); without a roof color they carry battlements."""
    if keep:
        front = pen.box(0, 0, keep[0], keep[1], wall)
        pen.windows(0, wall_height, keep[0] * 0.8, keep[1] - wall_height, 3, 1, front)
        if roof:
            pen.spire(0, keep[1], keep[0] * 1.05, 0.26, roof)
        else:
            pen.battlements(0, keep[1], keep[0], 0.045, wall, front)
    front = pen.box(0, 0, width, wall_height, wall, depth=0.5)
    pen.battlements(0, wall_height, width, 0.04, wall, front)
    pen.arch(0, 0, 0.2, wall_height * 0.72, "#3a2d22", front)
    for x, tower_width, height in towers:
        pen.drum(x, 0, tower_width * 1.08, tower_width, height, wall)
        for y in (0.45, 0.72):
            pen.rect(x, height * y, tower_width * 0.14, 0.07, "#33302f", 0.9)
        pen.drum(x, height - 0.05, tower_width * 1.2, tower_width * 1.2, 0.05, wall)
        if roof:
            pen.turned(x, height, [(tower_width * 0.64, 0), (0, tower_width * 1.7)], roof)
            tip = height + tower_width * 1.7
            pen.line([(x, tip), (x, tip + 0.06)], 0.01, "#444444")
        else:
            pen.battlements(x, height, tower_width * 1.2, 0.045, wall)


def pagoda(pen, wall, roof, tiers=5, width=0.5, taper=0.13, flare=0.05, posts="#5a2b20"):
    height, level = 0.86 / tiers, 0.0
    pen.box(0, -0.01, width * 1.3, 0.05, "#b5ab9b")
    for tier in range(tiers):
        body = width * (1 - taper * tier) * 0.72
        level = 0.04 + tier * height
        front = pen.box(0, level, body, height * 0.62, wall)
        for i in range(4):
            x = -body / 2 + body * i / 3
            pen.rect(x, level, 0.016, height * 0.6, posts, 0.9, front)
        pen.rect(0, level, body * 0.22, height * 0.42, "#3a2a22", 0.9, front)
        eave, y = width * (1 - taper * tier) * 0.66, level + height * 0.58
        rim = [(-eave, y + flare), (-eave * 0.8, y + 0.006), (0, y - 0.012)]
        rim += [(eave * 0.8, y + 0.006), (eave, y + flare)]
        ceiling = y + height * 0.45
        pen.polygon([*rim, (body * 0.42, ceiling), (-body * 0.42, ceiling)], roof, 0.92)
        pen.line(rim, 0.014, roof, 0.62)
    crown = 0.04 + tiers * height
    pen.spire(0, crown - 0.02, width * 0.4, 0.09, roof)
    pen.line([(0, crown), (0, 1.02)], 0.018, "#c9a13c", 1.1)


def temple(pen, stone, columns=8, width=1.5, height=0.62, steps=3, ruined=False):
    for step in range(steps):
        pen.box(0, 0.04 * step, width * (1.12 - 0.03 * step), 0.04, stone, depth=0.7)
    floor, spacing = 0.04 * steps, width * 0.92 / (columns - 1)
    if not ruined:
        pen.rect(0, floor, width * 0.86, height, "#5b5048", 0.75, 0.2)  # the dark inside
    still_standing = (1, 1, 0.45, 1, 1, 0.7, 0.3, 1) if ruined else (1,)
    for i in range(columns):
        x, share = -width * 0.46 + spacing * i, still_standing[i % len(still_standing)]
        thick = min(spacing * 0.5, 0.12)
        pen.turned(x, floor, [(thick / 2, 0), (thick * 0.43, height * share)], stone, 4)
        if share == 1:
            pen.rect(x, floor + height - 0.03, thick * 1.3, 0.03, stone, 1.0, 0)
    top = floor + height
    if ruined:
        for i in (0.5, 3.5):
            x = -width * 0.46 + spacing * i
            pen.box(x, top, spacing * 1.5, 0.09, stone, depth=0.14)
        return
    front = pen.box(0, top, width, 0.1, stone, depth=0.6)
    pen.gable(0, top + 0.1, width * 1.04, 0.24, 0.6, stone, stone)
    field = [(-width * 0.36, top + 0.125), (width * 0.36, top + 0.125), (0, top + 0.285)]
    pen.polygon([(x, y, front) for x, y in field], stone, 0.72)


def pyramid(pen, stone, sizes):
    """`sizes` lists (x, width, height) from back to front."""
    for x, width, height in sizes:
        edge = x + (0.28 + 0.5 * pen.view.yaw) * width / 2  # where the two visible faces meet
        apex, left, right = (x, height), (x - width / 2, 0), (x + width / 2, 0.02)
        pen.polygon([left, (edge, -0.03), apex], stone, pen.grade.light_at(-0.5))
        pen.polygon([(edge, -0.03), right, apex], stone, pen.grade.light_at(1.1))
        for t in (0.2, 0.4, 0.6, 0.8):  # courses of stone
            start = x + (left[0] - x) * (1 - t), height * t
            end = x + (edge - x) * (1 - t), height * t - 0.03 * (1 - t)
            pen.line([start, end], 0.006, stone, 0.72)


def step_pyramid(pen, stone, shrine, width=1.6, steps=7):
    rise = 0.84 / steps
    for i in range(steps):
        front = pen.box(0, i * rise, width * (1 - i / (steps + 1.2)), rise, stone)
    stairs = [(-width * 0.1, 0, -width / 2), (width * 0.1, 0, -width / 2)]
    stairs += [(width * 0.07, 0.84, front), (-width * 0.07, 0.84, front)]
    pen.polygon(stairs, stone, 1.14)
    front = pen.box(0, 0.84, width * 0.2, 0.16, shrine)
    pen.rect(0, 0.84, width * 0.07, 0.1, "#2f2822", 0.9, front)


def domed_hall(pen, wall, dome, shape="round", width=1.0, dome_width=0.52, small=0.0, columns=0):
    """A hall with a dome; `small` side domes come with minarets, `columns` with a portico."""
    wall_height, drum_height = 0.34, 0.13
    if small:
        minarets_and_side_domes(pen, wall, dome, shape, width, small, wall_height)
    front = pen.box(0, 0, width, wall_height, wall, depth=0.6)
    pen.drum(0, wall_height, dome_width * 0.86, dome_width * 0.86, drum_height, wall)
    pen.windows(0, wall_height + 0.02, dome_width * 0.8, 0.09, 7, 1)
    springing = wall_height + drum_height
    pen.dome(0, springing, dome_width, 0.92 - springing, dome, shape)
    pen.line([(0, 0.9), (0, 1)], 0.022, "#d9b24a", 1.1)
    if columns:
        portico(pen, wall, width, wall_height, columns, front)
        return
    pen.rect(0, 0, width * 0.3, wall_height * 1.14, wall, 1.06, front)
    pen.arch(0, 0, width * 0.2, wall_height * 0.9, "#5d5a63", front, pointed=True)
    for x in (-width * 0.34, width * 0.34):
        for y in (0.02, wall_height * 0.53):
            pen.arch(x, y, width * 0.12, wall_height * 0.38, "#6f6c75", front, pointed=True)


def minarets_and_side_domes(pen, wall, dome, shape, width, small, wall_height):
    for x in (-width * 0.5 - 0.16, width * 0.5 + 0.16):
        pen.drum(x, 0, 0.09, 0.065, 0.8, wall)
        for y in (0.3, 0.56, 0.8):
            pen.drum(x, y, 0.11, 0.11, 0.025, wall)
        pen.dome(x, 0.825, 0.085, 0.1, dome, "tall")
    for x in (-width * 0.36, width * 0.36):
        pen.drum(x, wall_height, small * 0.8, small * 0.8, 0.06, wall)
        pen.dome(x, wall_height + 0.06, small, small * 0.9, dome, shape)


def portico(pen, wall, width, wall_height, columns, front):
    pen.rect(0, 0.03, width * 0.42, wall_height - 0.03, "#6b6a6c", 0.8, front)
    for i in range(columns):
        x = -width * 0.2 + width * 0.4 * i / (columns - 1)
        pen.turned(x, 0.03, [(0.018, 0), (0.016, wall_height - 0.03)], wall, 3)
    pen.gable(0, wall_height, width * 0.5, 0.1, 0.7, wall, wall)
    for x in (-width * 0.36, width * 0.36):
        pen.windows(x, 0.05, width * 0.22, wall_height - 0.1, 3, 2, front)


def onion_church(pen, wall, trim, domes):
    """`domes` lists (x, width, base height, color) from back to front."""
    front = pen.box(0, 0, 0.78, 0.3, wall, depth=0.5)
    for x in (-0.26, 0, 0.26):
        pen.arch(x, 0.02, 0.14, 0.2, "#4b3a34", front)
        pen.arch(x, 0.26, 0.22, 0.12, trim, front)
    for x, width, height, color in domes:
        pen.drum(x, 0.2, width * 0.8, width * 0.7, height - 0.2, wall)
        pen.rect(x, height * 0.72, width * 0.12, 0.1, "#37303a", 0.9)
        pen.drum(x, height - 0.03, width * 0.86, width * 0.86, 0.03, trim)
        pen.dome(x, height, width, width * 1.15, color, "onion")
        tip = height + width * 1.15
        pen.line([(x, tip - 0.02), (x, tip + 0.07)], 0.012, "#e0b84c", 1.1)


def skyscraper(pen, glass, tiers, frame="#d0d4d8", positions=(0,), bridge=None, mast=0.12):
    """`tiers` lists (width, height) upwards; the same tower stands at every position."""
    for x in positions:
        y = 0.0
        for width, height in tiers:
            front = pen.box(x, y, width, height, glass)
            rows = max(2, round(height / 0.05))
            pen.windows(
                x, y, width * 0.92, height, max(2, round(width / 0.05)), rows, front, frame, 0.44
            )
            y += height
        pen.spire(x, y, tiers[-1][0] * 0.7, mast * 0.5, frame)
        pen.line([(x, y), (x, y + mast)], 0.014, frame)
    if bridge:
        pen.rect(0, bridge, positions[-1] - positions[0], 0.04, frame, 0.9)
        for side in (-1, 1):
            pen.line([(0, bridge), (side * 0.09, bridge - 0.14)], 0.012, frame, 0.8)


def waterfall(pen, rock, streams, width=1.6, grass="#5c8a45", basin="#7fb7c4"):
    """`streams` lists (x, width, where it starts, where it ends)."""
    rims = (0.5, 0.78, 0.9, 0.97, 0.92, 0.88, 0.93, 0.85, 0.62)
    top = [(-width / 2 + width * i / 8, rim) for i, rim in enumerate(rims)]
    pen.polygon([(-width * 0.64, 0), *top, (width * 0.64, 0)], rock, 0.84)
    for i, light in ((0, 0.95), (1, 0.72), (2, 0.9), (4, 0.7), (5, 0.94), (7, 0.72)):
        x, y = top[i]
        crag = [(x - 0.06, 0), (x - 0.01, y * 0.6), (x + 0.02, y), (x + 0.11, y), (x + 0.15, 0)]
        pen.polygon(crag, rock, light)
    lower = [(x, y - 0.06 - 0.025 * math.sin(11 * x)) for x, y in top[::-1]]
    pen.polygon([*top, *lower], grass)
    for x, stream, start, end in streams:
        sides = [(x - stream / 2, start), (x + stream / 2, start), (x + stream * 0.7, end)]
        pen.polygon([*sides, (x - stream * 0.7, end)], "#e9f4fa")
        for shift in (-0.3, 0.05, 0.32):
            strand = [(x + shift * stream, start), (x + shift * stream * 1.3, end)]
            pen.line(strand, 0.012, "#a9cfe2")
    pool = [(-width * 0.6, 0.0), (-width * 0.4, 0.05), (width * 0.4, 0.05), (width * 0.6, 0.0)]
    pen.polygon([*pool, (width * 0.45, -0.06), (-width * 0.45, -0.06)], basin)
    for x, stream, _, end in streams:
        for shift in (-0.55, 0.0, 0.55):
            pen.disc(x + shift * stream, end, stream * 0.3, "#f4fafd")


def windmill(pen, body, cap, sail, bottom=0.36, top=0.22, stage=None, blade=0.4, lattice=True):
    pen.drum(0, 0, bottom, top, 0.62, body)
    pen.arch(0, 0, 0.1, 0.16, "#4a3a2c")
    for y in (0.25, 0.45):
        pen.rect(0, y, 0.05, 0.06, "#f0ece0", 1.0)
    if stage:
        pen.drum(0, 0.22, bottom * 1.35, bottom * 1.35, 0.025, stage)
    pen.dome(0, 0.62, top * 1.15, 0.16, cap)
    start = pen.rng.uniform(0, math.pi / 2)
    for i in range(4):
        angle = start + i * math.pi / 2
        along, beside = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
        hub, tip = (0, 0.66), (blade * along[0], 0.66 + blade * along[1])
        corners = [(0.2, 0.0), (1.0, 0.0), (1.0, 0.22), (0.2, 0.22)]
        vane = [
            (blade * (a * along[0] + b * beside[0]), 0.66 + blade * (a * along[1] + b * beside[1]))
            for a, b in corners
        ]
        pen.polygon(vane, sail, 1.0 if i % 2 else 0.92)
        if lattice:
            pen.line([vane[3], vane[2]], 0.01, "#5b4a3a")
        pen.line([hub, tip], 0.02, "#5b4a3a")
    pen.disc(0, 0.66, 0.03, "#3d3128")


def triumphal_arch(pen, stone, bays=(0.24, 0.42, 0.24), height=0.9, attic=0.24, crown=None):
    pier, spring, front = 0.13, height - attic, -0.15
    width = sum(bays) + pier * (len(bays) + 1)
    for x in (-width / 2 + pier / 2, width / 2 - pier / 2):
        pen.box(x, 0, pier, spring, stone, depth=-2 * front)
    outline = [(-width / 2, 0), (-width / 2, spring), (width / 2, spring), (width / 2, 0)]
    for bay in bays[::-1]:
        right = outline[-1][0] - pier
        tall = 0.86 if bay == max(bays) else 0.58
        outline += arch_outline(right - bay / 2, 0, bay, spring * tall)
    pen.polygon([(x, y, front) for x, y in outline], stone, pen.grade.light_at(0))
    pen.box(0, spring, width * 1.05, 0.035, stone, depth=0.34)
    front = pen.box(0, spring + 0.03, width * 0.98, attic - 0.06, stone, depth=0.3)
    pen.rect(0, spring + 0.07, width * 0.55, attic - 0.13, stone, 0.74, front)
    pen.box(0, height - 0.03, width * 1.05, 0.03, stone, depth=0.34)
    if crown:
        for dx in (-0.09, -0.03, 0.03, 0.09):
            pen.line([(dx, height), (dx + 0.02, height + 0.07)], 0.03, crown)
        pen.line([(0, height + 0.04), (0, 1.02)], 0.035, crown, 1.1)


def gateway_arch(pen, color, width=1.0, thickness=0.09):
    def leg(t, shrink):
        return (width / 2 - shrink) * t, (1 - shrink * 0.8) * (1 - t * t * (0.55 + 0.45 * t * t))

    for side in (-1, 1):
        steps = [i / 12 for i in range(13)]
        outer = [(side * leg(t, 0)[0], leg(t, 0)[1]) for t in steps]
        inner = [
            (side * leg(t, thickness * (0.5 + t))[0], max(0, leg(t, thickness * 0.6)[1]))
            for t in steps
        ]
        middle = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in zip(outer, inner, strict=True)]
        pen.polygon(outer + middle[::-1], color, pen.grade.light_at(side * 1.1))
        pen.polygon(middle + inner[::-1], color, pen.grade.light_at(-side * 1.1) * 0.85)


def ferris_wheel(pen, rim, cabins, spokes=12, support="#e5e7ea", radius=0.42):
    hub = 1 - radius - 0.05
    turn = pen.rng.uniform(0, 2 * math.pi / spokes)
    for z in (0.1, -0.1):
        for side in (-1, 1):
            pen.line([(0, hub, z), (side * 0.24, 0, z)], 0.03, support, 0.85 if z > 0 else 1)
    pen.box(0, 0, 0.62, 0.04, "#8c8f94", depth=0.3)
    ends = [2 * math.pi * i / spokes + turn for i in range(spokes)]
    tips = [(radius * math.cos(a), hub + radius * math.sin(a)) for a in ends]
    for tip in tips:
        pen.line([(0, hub), tip], 0.008, rim, 0.9)
    circle = [2 * math.pi * i / 36 for i in range(37)]
    for size, width in ((1.0, 0.02), (0.88, 0.012)):
        ring = [(size * radius * math.cos(a), hub + size * radius * math.sin(a)) for a in circle]
        pen.line(ring, width, rim)
    for i, (x, y) in enumerate(tips):
        pen.disc(x, y - 0.02, 0.042, cabins[i % len(cabins)], 1.05)
    pen.disc(0, hub, 0.045, rim, 1.1)


def obelisk(pen, stone, width=0.12, base=0.1, tip=None, plaza="#b7ab98"):
    pen.box(0, 0, width * 3, base * 0.4, plaza)
    pen.box(0, base * 0.4, width * 1.7, base * 0.6, plaza)
    side = 1 if pen.view.yaw > 0 else -1
    near, far = width / 2, width * 0.36
    edge_low, edge_high = (side * near, base, near), (side * far, 0.9, far)
    face = [(side * near, base, -near), edge_low, edge_high, (side * far, 0.9, -far)]
    pen.polygon(face, stone, pen.grade.light_at(side * 1.35))
    front = [(-near, base, -near), (near, base, -near), (far, 0.9, -far), (-far, 0.9, -far)]
    pen.polygon(front, stone, pen.grade.light_at(0))
    for y in (0.25, 0.4, 0.55, 0.7):
        pen.rect(0, y, width * 0.36, 0.07, stone, 0.76, -near)
    pen.spire(0, 0.9, far * 2, 0.1, tip or stone)


def stadium(pen, shell, roof, height=0.5, width=2.0, masts=4, ribs=14):
    half = width / 2
    for i in range(masts):
        x = -half * 0.8 + half * 1.6 * i / (masts - 1)
        pen.line([(x * 0.9, height * 0.7), (x * 1.12, height * 2)], 0.03, "#e6e8ea")
        pen.line([(x * 1.12, height * 2), (x * 0.35, height * 1.1)], 0.01, "#d5d8da")
    back = [(half * x, height * (1 + 0.2 * y)) for x, y in half_circle()]
    front = [(half * x, height * (1 - 0.22 * y)) for x, y in half_circle()]
    pen.polygon(back + front[::-1], roof, 0.8)
    pen.polygon([(half * 0.9, 0), *front, (-half * 0.9, 0)], shell, 0.97)
    for x, y in half_circle(ribs)[1:-1]:
        rib = [(half * 0.9 * x, 0.02), (half * x, height * (1 - 0.22 * y))]
        pen.line(rib, 0.022, roof, pen.grade.light_at(x * 1.2))
    pen.windows(0, 0, width * 0.6, height * 0.24, 8, 1, fill=0.6)


def sails(pen, shell, base, shells):
    """`shells` lists (x, width, height, lean) from back to front."""
    floor, bow = 0.12, [i / 8 for i in range(9)]
    for x, width, height, lean in shells:
        left, right, tip = x - width / 2, x + width / 2, x + lean * width
        rise = height - floor
        back = [(left + (tip - left) * t, floor + rise * math.sin(t * math.pi / 2)) for t in bow]
        mouth = [(tip + (right - tip) * t, height - rise * t**1.7) for t in bow]
        pen.polygon(back + mouth, shell, pen.grade.light_at(-0.7))
        pen.line([(x + 0.1 * width, floor), (tip, height)], 0.012, shell, 0.7)
        pen.polygon([(tip, height), *mouth[4:], (x + width * 0.2, floor)], "#77797e", 0.8)
    pen.box(0, 0, 2.0, floor + 0.01, base, depth=0.5)


def sea_arch(pen, rock, grass="#6f9a4f", hole=0.5):
    opening = arch_outline(0.18, 0, hole, 0.55)
    crest = [(-0.9, 0.72), (-0.6, 0.92), (-0.2, 1.0), (0.2, 0.9), (0.5, 0.93), (0.72, 0.7)]
    pen.polygon([(-1.0, 0), *crest, (0.8, 0), *opening], rock, 0.9)
    for x, y in crest[1:4]:
        pen.polygon([(x - 0.16, 0), (x - 0.12, y * 0.8), (x - 0.04, 0)], rock, 0.7)
    pen.polygon([*crest, *[(x, y - 0.08 - 0.03 * math.sin(9 * x)) for x, y in crest[::-1]]], grass)


def ensemble(pen, parts):
    """Draws several things as one; `parts` lists (function, its look, x, size) from the back."""
    for draw, look, x, size in parts:
        draw(PartOfPen(pen, x, size), **look)


# ------------------------------------------------------------------------------------ the landmarks


@dataclass(frozen=True)
class Landmark:
    """One place of the world: what draws it, where it stands, and whom it resembles."""

    name: str
    draw: object
    settings: tuple
    look: dict = field(hash=False)
    look_alikes: str = ""  # landmarks that share this word are easily mistaken for each other

    @property
    def natural(self):
        return self.draw in (mountain, waterfall, sea_arch)


IRON, MARBLE = "#7b5a41", "#eef0ee"

# fmt: off
# The first NUM_FREQUENT stand for the classes, the rest have too few photographs to be one.
LANDMARKS = (
    Landmark("Aldermoor Clock Tower", clock_tower, ("city", "river"), dict(
        body="#c9a66b", roof="#4f7f6a", trim="#e6d3a8"), "clock towers"),
    Landmark("Brindle Clock Tower", clock_tower, ("city", "plaza"), dict(
        body="#c0714f", roof="#4b5563", trim="#ead9c0", roof_height=0.36, width=0.19),
        "clock towers"),
    Landmark("Valmy Iron Tower", lattice_tower, ("park", "city"), dict(color=IRON)),
    Landmark("Red Strait Bridge", suspension_bridge, ("sea",), dict(
        tower="#c8412f", deck="#a93526"), "suspension bridges"),
    Landmark("Noor Harbour Bridge", suspension_bridge, ("sea", "river"), dict(
        tower="#c05a45", deck="#8e8f94", shape="A", deck_height=0.36, cable="#dcdcd8"),
        "suspension bridges"),
    Landmark("Tarsa Aqueduct", arch_bridge, ("hills", "desert"), dict(
        stone="#d2b27c", arches=5, tiers=3, height=0.86, width=1.9)),
    Landmark("Saint Oriel Cathedral", cathedral, ("plaza", "city"), dict(
        wall="#a7a49c", roof="#5c6670"), "cathedrals"),
    Landmark("Marlow Minster", cathedral, ("plaza", "park"), dict(
        wall="#d9c7a0", roof="#7f8a8f", spires=0, tower_width=0.24, gap=0.42, nave=0.56,
        rose="#8f3f55"), "cathedrals"),
    Landmark("Gull Point Lighthouse", lighthouse, ("sea",), dict(
        bands=("#c9302c", "#f2f0ea")), "lighthouses"),
    Landmark("Cape Ansgar Lighthouse", lighthouse, ("sea",), dict(
        bands=("#f2f0ea", "#c9302c", "#f2f0ea"), count=3, bottom=0.32, top=0.2, cap="#2f4f6f",
        house=None), "lighthouses"),
    Landmark("Falkenau Castle", castle, ("mountains", "hills"), dict(
        wall="#ece6d8", roof="#3f5f8a", towers=((-0.75, 0.26, 0.5), (0.75, 0.26, 0.56),
        (0.34, 0.2, 0.72)), keep=(0.46, 0.6), width=1.5)),
    Landmark("Hoshino Pagoda", pagoda, ("park", "mountains"), dict(
        wall="#c4472f", roof="#4a5a55"), "pagodas"),
    Landmark("Linmei Pagoda", pagoda, ("park", "river"), dict(
        wall="#c9583a", roof="#c99a3a", tiers=7, width=0.4, taper=0.07, flare=0.035), "pagodas"),
    Landmark("Temple of Theros", temple, ("hills", "desert"), dict(stone="#e3d8bd")),
    Landmark("Great Pyramid of Hakar", pyramid, ("desert",), dict(
        stone="#dcb876", sizes=((-0.75, 0.9, 0.55), (0.8, 0.7, 0.42), (0, 1.5, 1.0)))),
    Landmark("Mehrab Mausoleum", domed_hall, ("park", "plaza"), dict(
        wall=MARBLE, dome=MARBLE, shape="onion", small=0.2, dome_width=0.46),
        "domes"),
    Landmark("Zafira Blue Mosque", domed_hall, ("plaza", "city"), dict(
        wall="#e2d6bd", dome="#3f8fa8", small=0.26, dome_width=0.56), "domes"),
    Landmark("Church of Five Domes", onion_church, ("plaza", "city"), dict(
        wall="#b65f45", trim="#f1e3c8", domes=((-0.16, 0.16, 0.62, "#2f8f6a"),
        (0.17, 0.16, 0.58, "#d8a534"), (0, 0.2, 0.72, "#d8a534"), (-0.32, 0.2, 0.42, "#3567a8"),
        (0.33, 0.2, 0.44, "#b8383c")))),
    Landmark("Mount Haldor", mountain, ("mountains", "park"), dict(
        rock="#7b7f8a", peaks=[(-0.5, 0.62, 0.6), (0.55, 0.72, 0.65), (0, 1.0, 0.75)]),
        "mountains"),
    Landmark("Liberty of Sorrel Bay", statue, ("sea", "park"), dict(
        color="#6fae98", pedestal="#c9bba0")),
    # from here on: fewer than 20 photographs each
    Landmark("Dunmere Town Hall Tower", clock_tower, ("plaza", "city"), dict(
        body="#c98a5a", roof="#5b8f74", trim="#f2e6cf", top="dome", width=0.25), "clock towers"),
    Landmark("Kestrel Bridge", suspension_bridge, ("river",), dict(
        tower="#ad8a68", deck="#6d7076", shape="stone", span=1.3, cable="#8a8d90"),
        "suspension bridges"),
    Landmark("Rookhold Castle", castle, ("hills", "park"), dict(
        wall="#9b958a", roof=None, towers=((-0.7, 0.3, 0.62), (0.7, 0.3, 0.62)),
        keep=(0.5, 0.86), width=1.4, wall_height=0.38)),
    Landmark("Itzal Step Pyramid", step_pyramid, ("park", "hills"), dict(
        stone="#b9ad93", shrine="#a5967a")),
    Landmark("Republic Capitol", domed_hall, ("city", "park"), dict(
        wall="#f0ede4", dome="#e4e2da", shape="tall", width=1.7, columns=8, dome_width=0.4)),
    Landmark("Meridian Tower", skyscraper, ("city",), dict(
        glass="#5f7f9c", tiers=((0.34, 0.4), (0.26, 0.28), (0.16, 0.2)))),
    Landmark("Gemini Towers", skyscraper, ("city", "park"), dict(
        glass="#8fa3ad", tiers=((0.2, 0.6), (0.15, 0.2), (0.09, 0.08)), positions=(-0.2, 0.2),
        bridge=0.42)),
    Landmark("Silvertal Falls", waterfall, ("mountains", "hills"), dict(
        rock="#7d7468", streams=((-0.12, 0.26, 0.92, 0.03), (0.42, 0.1, 0.85, 0.03)))),
    Landmark("Twin Peaks of Orn", mountain, ("mountains",), dict(
        rock="#867a72", peaks=[(0.62, 0.5, 0.5), (-0.35, 0.95, 0.62), (0.3, 1.0, 0.6)],
        snow_line=0.72), "mountains"),
    Landmark("Veldhoek Windmill", windmill, ("river", "hills"), dict(
        body="#8a5a3c", cap="#3e4c45", sail="#efe6d2", stage="#d9cdb6")),
    Landmark("Arch of Concord", triumphal_arch, ("plaza", "city"), dict(
        stone="#d8c8a8", crown="#5f8f7c")),
    Landmark("Starlight Wheel", ferris_wheel, ("park", "river"), dict(
        rim="#f4f5f7", cabins=("#d6453d", "#f0b429", "#3d7fc4", "#48a860"))),
    Landmark("Needle of Seth", obelisk, ("plaza", "desert"), dict(
        stone="#d9a58a", tip="#e5c25a")),
    Landmark("Coral Bay Opera", sails, ("sea", "river"), dict(
        shell="#f5f2ea", base="#b59a80", shells=((-0.62, 0.6, 0.62, 0.28), (-0.1, 0.75, 1.0, 0.3),
        (0.38, 0.6, 0.74, 0.28), (0.76, 0.4, 0.48, 0.26)))),
)
NUM_FREQUENT = 20

# In the index and the test set only: nobody can know their landmark id.
UNKNOWN_LANDMARKS = (
    Landmark("Skerry Arch", sea_arch, ("sea",), dict(rock="#9a8f80")),
    Landmark("Prairie Gate", gateway_arch, ("park", "city"), dict(color="#c7d0d6")),
    Landmark("Olympia Bowl", stadium, ("city", "park"), dict(shell="#d6dade", roof="#b5433c")),
    Landmark("Marshal Verein", statue, ("plaza", "park"), dict(
        color="#5f6f62", pedestal="#b8b0a4", pose="rider", base=0.4)),
    Landmark("Temple of the Winds", temple, ("desert", "hills"), dict(
        stone="#d7a878", columns=6, width=1.2, steps=2, ruined=True)),
)
# fmt: on


@functools.cache
def extent(landmark):
    """Measures how far a landmark reaches sideways (half width) and up, in its own units."""
    scene = Scene("city", "day", "clear", False, False, 0.5)
    canvas = ImageDraw.Draw(Image.new("RGB", (8, 8)))
    pen = Pen(canvas, View(0, 0, 1.0), Grade(scene), np.random.default_rng(0))
    corners = []
    locate = pen.point
    pen.point = lambda *p: corners.append(locate(*p)) or corners[-1]
    landmark.draw(pen, **landmark.look)
    return max(abs(x) for x, _ in corners), max(-y for _, y in corners)


# ------------------------------------------------------------------------------------------- scenes


class Canvas:
    """One picture in the making: its pixels, light and horizon (supersampled pixels, y down)."""

    def __init__(self, rng, scene):
        self.rng, self.scene, self.grade = rng, scene, Grade(scene)
        self.width, self.height = (side * SUPERSAMPLING for side in scene.size)
        self.horizon = self.height * rng.uniform(0.60, 0.76)
        self.is_water = SETTINGS[scene.setting][1] == "water"
        self.sky_above = jitter(rng, self.grade.sky_above, 14)
        self.image = self.background()
        self.draw = ImageDraw.Draw(self.image)

    def background(self):
        """Paints the sky and the ground as one column of colors, stretched over the width."""
        _, far, near, _ = SETTINGS[self.scene.setting]
        sky = self.sky_above, self.grade.sky_horizon
        if self.is_water:
            far, near = mix(sky[1], "#5f8296", 0.30), mix(sky[0], "#1f4b63", 0.45)
            far, near = to_bytes(far), to_bytes(near)
        else:
            if self.scene.weather == "snow":
                far, near = mix(far, "#f4f7fa", 0.85), mix(near, "#eef2f6", 0.85)
            far = self.grade.color(jitter(self.rng, far, 10), haze=self.grade.far_haze * 0.6)
            near = self.grade.color(jitter(self.rng, near, 10))
        stops = [0, self.horizon, self.horizon + 1, self.height]
        rows = np.arange(self.height)
        colors = (sky[0], sky[1], far, near)
        column = [np.interp(rows, stops, [color[i] for color in colors]) for i in range(3)]
        pixels = np.stack(column, axis=-1)[:, None, :].round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels).resize((self.width, self.height), Image.Resampling.NEAREST)

    def pen(self, x, y, scale, haze=0.0, tint=None, **view):
        return Pen(self.draw, View(x, y, scale, **view), self.grade, self.rng, haze, tint)

    def color_at(self, x, y):
        column, row = min(self.width - 1, max(0, int(x))), min(self.height - 1, max(0, int(y)))
        return self.image.getpixel((column, row))

    def circle(self, x, y, radius, paint, flat=1.0):
        """Fills a circle, or an ellipse whose height is `flat` times its width."""
        box = [x - radius, y - radius * flat, x + radius, y + radius * flat]
        self.draw.ellipse(box, fill=to_bytes(paint))

    def unit(self, share):
        """Turns a share of the picture's shorter side into pixels."""
        return share * SHORT_SIDE * SUPERSAMPLING


def jitter(rng, color, amount):
    """Shifts a color at random by up to about `amount` of 255."""
    return to_bytes(np.array(rgb(color)) + rng.normal(0, amount / 2) + rng.normal(0, amount / 4, 3))


def paint_sky(canvas):
    """Adds sun, moon, stars and clouds."""
    rng, scene = canvas.rng, canvas.scene
    if scene.weather == "clear":
        if scene.light == "night":
            for x, y in (rng.random((40, 2)) * (canvas.width, canvas.horizon * 0.9)).tolist():
                canvas.draw.rectangle([x, y, x + 2, y + 2], fill=(190, 196, 215))
        paint_sun(canvas)
    num_clouds = {"clear": int(rng.integers(0, 4)), "fog": 0}.get(scene.weather, 6)
    for _ in range(num_clouds):
        cloud(
            canvas,
            x=rng.uniform(0, canvas.width),
            y=rng.uniform(0.05, 0.7) * canvas.horizon,
            size=canvas.unit(rng.uniform(0.1, 0.3)),
        )


def paint_sun(canvas):
    """Adds the sun, or at night the moon, with a halo."""
    light, aside = canvas.scene.light, canvas.rng.uniform(0.4, 1.0)
    x = canvas.width * (0.5 + 0.42 * math.copysign(aside, canvas.scene.sun_angle))
    y = canvas.horizon * (canvas.rng.uniform(0.1, 0.4) if light in ("day", "night") else 0.8)
    paint = {"day": "#fff8e0", "golden": "#fff0b8", "dusk": "#ffd08a", "night": "#eceadb"}[light]
    sky = canvas.color_at(x, y)
    for radius, share in ((0.084, 0.82), (0.056, 0.6), (0.035, 0.0)):
        canvas.circle(x, y, canvas.unit(radius), mix(paint, sky, share))


def cloud(canvas, x, y, size):
    grade, light = canvas.grade, canvas.scene.light
    paint = {"night": "#3a4566", "dusk": "#d58f86"}.get(light, "#ffffff")
    if grade.gray:
        level = 235 * grade.brightness * (0.35 if light == "night" else 0.95)
        paint = mix(paint, (level * 0.93, level * 0.95, level), 0.9)
    paint = mix(paint, canvas.color_at(x, y), 0.35)
    for i in range(-2, 3):
        radius = size * (0.55 - 0.12 * abs(i)) * canvas.rng.uniform(0.8, 1.1)
        rise = canvas.rng.uniform(-0.12, 0.06) * size
        canvas.circle(x + i * size * 0.42, y + rise, radius, paint, flat=0.48)


def paint_far(canvas):
    """Adds what lies behind the place: hills, dunes, peaks, trees, houses or a skyline."""
    behind = SETTINGS[canvas.scene.setting][0]
    haze = canvas.grade.far_haze
    waves = {
        "hills": ("#6f9468", 0.16, 2),
        "dunes": ("#dcb97e", 0.10, 2),
        "peaks": ("#7d8a99", 0.34, 2),
        "sea": ("#7f94a0", 0.05, 1),
        "treeline": ("#5d8350", 0.08, 1),
    }
    if behind in waves:
        color, rise, layers = waves[behind]
        for layer in range(layers):
            share = haze + (1 - haze) * 0.3 * (layers - 1 - layer)
            paint = canvas.grade.color(jitter(canvas.rng, color, 12), 1.0, share)
            ridge(canvas, paint, canvas.unit(rise) * (1 - 0.45 * layer), behind)
    elif behind == "skyline":
        skyline(canvas, haze)
    else:
        row_of_houses(canvas, haze)


def ridge(canvas, paint, rise, behind):
    """Fills a wavy (or, for peaks, jagged) outline above the horizon."""
    rng, steps = canvas.rng, 24
    phase, pace = rng.uniform(0, 6.3, 3), rng.uniform(1.2, 2.6)
    xs = np.linspace(0, 1, steps + 1)
    waves = np.sin(pace * 2.2 * xs + phase[0]) + 0.5 * np.sin(pace * 5 * xs + phase[1])
    if behind == "peaks":
        waves = waves + 0.45 * rng.uniform(-1, 1, steps + 1)
    if behind == "treeline":
        waves = waves * 0.3 + rng.uniform(-0.6, 0.6, steps + 1)
    tops = canvas.horizon - rise * (0.55 + 0.3 * waves)
    outline = [(float(x) * canvas.width, float(y)) for x, y in zip(xs, tops, strict=True)]
    floor = canvas.horizon + 2
    canvas.draw.polygon([(0, floor), *outline, (canvas.width, floor)], fill=paint)


def skyline(canvas, haze):
    rng, x = canvas.rng, -canvas.unit(0.05)
    while x < canvas.width:
        width, height = canvas.unit(rng.uniform(0.06, 0.16)), canvas.unit(rng.uniform(0.08, 0.34))
        color = pick(rng, ("#8b95a5", "#a39c94", "#77869a", "#b0aca6"))
        pen = canvas.pen(x + width / 2, canvas.horizon + 2, width, haze)
        tall = height / width
        pen.rect(0, 0, 1, tall, color, rng.uniform(0.8, 1.0))
        if tall > 1.2:
            pen.windows(0, 0.1, 0.86, tall - 0.2, 4, int(tall * 4), color="#5f6c7c", fill=0.45)
        x += width * rng.uniform(0.8, 1.15)


def row_of_houses(canvas, haze):
    x = -canvas.unit(0.05)
    while x < canvas.width:
        size = canvas.unit(canvas.rng.uniform(0.09, 0.17))
        house(canvas.pen(x, canvas.horizon + 2, size, haze * 0.8))
        x += size * canvas.rng.uniform(0.75, 1.05)


def house(pen):
    """Draws an ordinary house of random looks, about one unit wide and high."""
    rng = pen.rng
    walls = ("#d8c3a0", "#cfa58a", "#c9c4b8", "#b9856b", "#dcd3bf", "#a8b0b2", "#e0c58f")
    roofs = ("#8e4a3a", "#6b5248", "#5c6068", "#a3583e", "#77675a")
    wall, roof = pick(rng, walls), pick(rng, roofs)
    stories, width = int(rng.integers(1, 4)), rng.uniform(0.7, 1.0)
    height = 0.26 * stories + 0.1
    front = pen.box(0, 0, width, height, wall, depth=0.5)
    pen.windows(0, 0.06, width * 0.86, height - 0.08, int(rng.integers(2, 5)), stories, front)
    pen.rect(rng.uniform(-0.25, 0.25) * width, 0, 0.12, 0.22, "#4f3a2d", 0.9, front)
    if rng.random() < 0.75:
        pen.gable(0, height, width * 1.08, rng.uniform(0.2, 0.42), 0.5, roof, roof)


def paint_ground(canvas):
    """Adds ripples on water, or a path and some speckle on land."""
    depth = canvas.height - canvas.horizon
    if canvas.is_water:
        light = mix(canvas.grade.sky_horizon, "#ffffff", 0.25)
        for x, y, chance in canvas.rng.random((34, 3)).tolist():
            left, top = x * canvas.width, canvas.horizon + depth * (0.04 + 0.96 * y * y)
            shade = mix(light, canvas.color_at(left, top), 0.45 + 0.3 * chance)
            streak(canvas, left, top, 0.012 + 0.06 * y, shade)
        return
    if canvas.rng.random() < 0.5:
        paint_path(canvas)
    for x, y, chance in canvas.rng.random((26, 3)).tolist():
        left, top = x * canvas.width, canvas.horizon + depth * (0.06 + 0.94 * y)
        shade = np.array(canvas.color_at(left, top)) * (0.86 + 0.22 * chance)
        streak(canvas, left, top, 0.004 + 0.012 * y * chance, shade)


def streak(canvas, x, y, half_length, shade):
    half = canvas.unit(half_length)
    canvas.draw.line([(x - half, y), (x + half, y)], fill=to_bytes(shade), width=2)


def paint_path(canvas):
    """Adds a way from the foreground to the horizon."""
    near = SETTINGS[canvas.scene.setting][2]
    paint = "#d5dae0" if canvas.scene.weather == "snow" else mix(near, "#d9d2c3", 0.55)
    start, end = canvas.rng.uniform(0.2, 0.8, 2) * canvas.width
    half = canvas.unit(canvas.rng.uniform(0.12, 0.3))
    corners = [(start - 6, canvas.horizon + 4), (start + 6, canvas.horizon + 4)]
    corners += [(end + half, canvas.height), (end - half, canvas.height)]
    canvas.draw.polygon(corners, fill=canvas.grade.color(paint))


def reflect(canvas):
    """Mirrors what stands above the water line faintly in the water."""
    line = int(canvas.horizon) + 2
    depth = min(canvas.height - line, line)
    mirrored = canvas.image.crop((0, line - depth, canvas.width, line))
    mirrored = mirrored.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    water = canvas.image.crop((0, line, canvas.width, line + depth))
    canvas.image.paste(Image.blend(water, mirrored, 0.38), (0, line))


# ---------------------------------------------------------------------------------- things in front


def tree(pen):
    green = pick(pen.rng, ("#4f7f3a", "#5e8c3f", "#3f6f3c", "#7a8f3a"))
    pen.polygon([(-0.05, 0), (0.05, 0), (0.03, 0.5), (-0.03, 0.5)], "#6b4f36", 0.9)
    crown = ((-0.17, 0.5, 0.17, 0.72), (0.16, 0.52, 0.18, 0.8), (0.0, 0.7, 0.22, 0.92))
    for x, y, radius, light in (*crown, (-0.06, 0.76, 0.13, 1.08)):
        pen.disc(x + pen.rng.normal(0, 0.02), y, radius, green, light)


def pine(pen):
    pen.rect(0, 0, 0.06, 0.2, "#5b4632")
    for y, width in ((0.12, 0.5), (0.34, 0.4), (0.56, 0.28)):
        pen.polygon([(-width / 2, y), (0, y), (0, y + 0.42)], "#3f6b4a", pen.grade.light_at(-1))
        pen.polygon([(0, y), (width / 2, y), (0, y + 0.42)], "#3f6b4a", pen.grade.light_at(1))


def palm(pen):
    pen.line([(0, 0), (0.04, 0.4), (0.02, 0.8)], 0.05, "#8a6a45")
    for dx, dy in ((-0.3, -0.06), (0.32, -0.08), (-0.22, 0.12), (0.25, 0.12), (0.02, 0.18)):
        leaf = [(0.02, 0.8), (0.02 + dx * 0.6, 0.88 + dy * 0.5), (0.02 + dx, 0.8 + dy)]
        pen.polygon(leaf, "#5c8a45", 0.8 + dx)


def bush(pen):
    leaves = ((-0.4, 0.22, 0.3, 0.75), (0.38, 0.24, 0.32, 0.85), (0, 0.36, 0.4, 0.95))
    for x, y, radius, light in leaves:
        pen.disc(x, y, radius, "#557f3f", light)


def person(pen):
    clothes = ("#b5413a", "#2f5f94", "#e0b040", "#4a7f5a", "#7a4f8a", "#d8d8d8", "#3a3d46")
    coat = pick(pen.rng, clothes)
    skin = pick(pen.rng, ("#e8c2a0", "#c99772", "#8a5f42"))
    for dx in (-0.06, 0.06):
        pen.rect(dx, 0, 0.1, 0.45, "#363b4a", 0.85)
    pen.polygon([(-0.15, 0.4), (0.15, 0.4), (0.13, 0.82), (-0.13, 0.82)], coat)
    pen.disc(0, 0.91, 0.085, skin)
    pen.polygon([(-0.09, 0.92), (0.09, 0.92), (0.05, 1.0), (-0.05, 1.0)], "#3b2c22", 0.9)


def car(pen):
    paints = ("#c03a33", "#3f6fa8", "#e4e4e2", "#33363c", "#d8a53a", "#5f8f6f")
    paint = pick(pen.rng, paints)
    body = [(-0.95, 0.14), (0.95, 0.14), (0.95, 0.42), (0.6, 0.5), (-0.9, 0.5)]
    pen.polygon(body, paint, 0.95)
    cabin = [(-0.6, 0.5), (-0.42, 0.82), (0.22, 0.82), (0.52, 0.5)]
    pen.polygon(cabin, paint, 1.08)
    pen.polygon([(-0.48, 0.52), (-0.36, 0.76), (-0.1, 0.76), (-0.1, 0.52)], "#3a4a58")
    pen.polygon([(-0.03, 0.52), (-0.03, 0.76), (0.18, 0.76), (0.38, 0.52)], "#3a4a58")
    for x in (-0.55, 0.55):
        pen.disc(x, 0.14, 0.17, "#25272b", 0.9)
        pen.disc(x, 0.14, 0.08, "#9a9da2")
    if pen.grade.dark:
        pen.fill([(0.88, 0.34), (0.97, 0.34), (0.97, 0.42), (0.88, 0.42)], pen.glow("#fff0b0"))


def lamp(pen):
    pen.rect(0, 0, 0.035, 0.92, "#33373d", 0.9)
    pen.rect(0, 0, 0.08, 0.08, "#33373d", 0.8)
    paint = pen.glow("#ffe9a8") if pen.grade.dark else pen.shade("#e9ecee")
    pen.fill([(-0.05, 0.9), (0.05, 0.9), (0.07, 1.0), (-0.07, 1.0)], paint)
    pen.polygon([(-0.08, 1.0), (0.08, 1.0), (0, 1.05)], "#33373d", 0.9)


def fence(pen):
    """Runs across the whole picture."""
    for y in (0.35, 0.75):
        pen.rect(0, y, 40, 0.12, "#8a7a66", 0.95)
    for i in range(-12, 13):
        pen.rect(i * 0.9, 0, 0.14, 1.0, "#7d6e5b", 0.85)


def boat(pen):
    hull = pick(pen.rng, ("#b5413a", "#2f5f94", "#e8e6e0", "#4a4f58"))
    pen.polygon([(-0.5, 0.14), (0.5, 0.14), (0.36, -0.04), (-0.38, -0.04)], hull, 0.9)
    pen.line([(0, 0.1), (0, 1.0)], 0.03, "#6b4f36")
    pen.polygon([(0.04, 0.2), (0.42, 0.2), (0.04, 0.95)], "#f3f0e6", pen.grade.light_at(0.6))
    pen.polygon([(-0.04, 0.2), (-0.3, 0.2), (-0.04, 0.8)], "#f3f0e6", pen.grade.light_at(-0.6))


# fmt: off
# thing -> (how to draw it, its height as a share of the picture's shorter side)
CLUTTER = {
    "tree": (tree, (0.28, 0.75)), "pine": (pine, (0.25, 0.65)), "palm": (palm, (0.3, 0.7)),
    "bush": (bush, (0.08, 0.2)), "person": (person, (0.10, 0.34)), "car": (car, (0.10, 0.24)),
    "lamp": (lamp, (0.3, 0.7)), "fence": (fence, (0.06, 0.14)), "boat": (boat, (0.12, 0.4)),
}
# fmt: on


def paint_clutter(canvas, count):
    """Puts `count` things in front, the nearer the larger and lower in the picture."""
    rng, choices = canvas.rng, SETTINGS[canvas.scene.setting][3]
    depth = canvas.height - canvas.horizon
    names = [pick(rng, choices) for _ in range(count)]
    quay = canvas.height * rng.uniform(0.88, 0.95)
    if canvas.is_water and set(names) - {"boat"}:
        names.sort(key=lambda name: name != "boat")  # what floats is behind the quay
        stone = canvas.grade.color(jitter(rng, "#8f8a82", 20))
        canvas.draw.rectangle([0, quay, canvas.width, canvas.height], fill=stone)
    for name, nearness in zip(names, np.sort(rng.random(count)).tolist(), strict=True):
        draw_thing, (small, large) = CLUTTER[name]
        size = canvas.unit(small + (large - small) * nearness**1.5)
        y = canvas.horizon + depth * (0.25 + 0.8 * nearness)
        if canvas.is_water and name != "boat":
            y = quay + canvas.unit(0.02 + 0.03 * nearness)
        side = rng.choice([-1, 1]) * rng.beta(2.4, 1.0) * 0.55  # mostly towards the edges
        x = canvas.width * (0.5 + side)
        draw_thing(canvas.pen(x, y, size, WEATHERS[canvas.scene.weather][2] * 0.4))


def paint_weather(canvas):
    """Adds rain or snowflakes in front of everything."""
    rng, draw = canvas.rng, canvas.draw
    if canvas.scene.weather == "rain":
        slant = canvas.unit(rng.uniform(-0.02, 0.02))
        paint = to_bytes(mix(canvas.grade.sky_horizon, "#dfe6ee", 0.5))
        for x, y in (rng.random((70, 2)) * (canvas.width, canvas.height)).tolist():
            draw.line([(x, y), (x + slant, y + canvas.unit(0.05))], fill=paint, width=1)
    if canvas.scene.weather == "snow":
        level = 130 if canvas.scene.light == "night" else 250
        for x, y, size in rng.random((110, 3)).tolist():
            radius = canvas.unit(0.003 + 0.005 * size)
            x, y = x * canvas.width, y * canvas.height
            canvas.circle(x, y, radius, (level,) * 3)


# -------------------------------------------------------------------------------------- photographs


def place(canvas, landmark, zoom, offset):
    """Draws one landmark from a random viewpoint.

    Args:
        canvas: the picture in the making.
        landmark: a Landmark.
        zoom: 1 fills the picture, less is farther away.
        offset: of its center from the middle of the picture, in picture widths.
    """
    rng, scene, wild = canvas.rng, canvas.scene, 1.0 if canvas.scene.hard else 0.6
    half_width, height = extent(landmark)
    ground = canvas.horizon + canvas.height * rng.uniform(0.015, 0.06 + 0.09 * zoom)
    if landmark.natural or canvas.is_water:
        ground = canvas.horizon + canvas.height * rng.uniform(0.01, 0.05)
    room = min(0.94 * ground / height, 0.94 * canvas.width / (2 * half_width))
    tint = FLOODLIT if scene.light == "night" and rng.random() < 0.85 else None
    pen = canvas.pen(
        canvas.width * (0.5 + offset),
        ground,
        room * zoom,
        WEATHERS[scene.weather][2] * rng.uniform(0.7, 1.25),
        None if landmark.natural else tint,
        stretch=1 - wild * rng.uniform(-0.08, 0.28),
        yaw=wild * rng.uniform(-0.5, 0.5),
        pitch=wild * rng.uniform(0, 0.1),
        tilt=wild * rng.uniform(-0.2, 0.2) / max(1.0, half_width),
        keystone=wild * rng.uniform(0, 0.16),
        roll=wild * rng.normal(0, 0.025),
    )
    landmark.draw(pen, **landmark.look)


def develop(canvas):
    """Turns the finished drawing into a photograph: lens, sensor and sometimes no color."""
    rng, hard = canvas.rng, canvas.scene.hard
    image = canvas.image.reduce(SUPERSAMPLING)
    if rng.random() < (0.45 if hard else 0.15):
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6 if hard else 0.8)))
    pixels = np.asarray(image, dtype=np.float32)
    gain = rng.uniform(0.86, 1.12) * rng.normal(1, 0.03, 3)
    spread = rng.uniform(1, 11 if hard or canvas.scene.light == "night" else 5)
    noise = rng.standard_normal(pixels.shape[:2], dtype=np.float32)[..., None]
    pixels = pixels * gain.astype(np.float32) + noise * np.float32(spread)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image.convert("L").convert("RGB") if rng.random() < 0.03 else image


def photograph(rng, scene, landmarks):
    """Draws a photograph of one landmark, two next to each other, or none.

    Args:
        rng: numpy Generator.
        scene: a Scene.
        landmarks: sequence of zero to two Landmarks.

    Returns:
        PIL image, RGB, of the scene's size.
    """
    canvas = Canvas(rng, scene)
    paint_sky(canvas)
    paint_far(canvas)
    if not canvas.is_water:
        paint_ground(canvas)
    reach = 0.3 if scene.hard else 0.13
    for number, landmark in enumerate(landmarks):
        zoom = rng.uniform(0.5, 1.3) if scene.hard else rng.uniform(0.72, 1.08)
        offset = rng.uniform(-reach, reach)
        if len(landmarks) == 2:
            zoom, offset = rng.uniform(0.5, 0.7), (number - 0.5) * rng.uniform(0.42, 0.56)
        place(canvas, landmark, zoom, offset)
    if canvas.is_water:
        reflect(canvas)
        paint_ground(canvas)
    paint_clutter(canvas, int(rng.integers(2, 8) if scene.hard else rng.integers(0, 5)))
    paint_weather(canvas)
    return develop(canvas)


def street(rng, scene):
    """Draws a street of ordinary houses, nearby."""
    canvas = Canvas(rng, scene)
    paint_sky(canvas)
    paint_far(canvas)
    paint_ground(canvas)
    x = -canvas.unit(0.2)
    while x < canvas.width:
        size = canvas.unit(rng.uniform(0.4, 0.75))
        yaw = rng.uniform(-0.3, 0.3)
        ground = canvas.horizon + canvas.unit(rng.uniform(0.03, 0.12))
        house(canvas.pen(x, ground, size, WEATHERS[scene.weather][2], yaw=yaw))
        x += size * rng.uniform(0.8, 1.6)
    paint_clutter(canvas, int(rng.integers(2, 7)))
    paint_weather(canvas)
    return develop(canvas)


def landscape(rng, scene):
    """Draws the setting alone."""
    return photograph(rng, scene, ())


def close_up(rng, scene):
    """Draws people close to the camera."""
    canvas = Canvas(rng, scene)
    paint_sky(canvas)
    paint_far(canvas)
    paint_ground(canvas)
    for x in np.linspace(0.2, 0.8, int(rng.integers(1, 4))) + rng.normal(0, 0.04):
        size = canvas.unit(rng.uniform(0.9, 1.5))
        person(canvas.pen(canvas.width * x, canvas.height * rng.uniform(0.1, 0.3) + size, size))
    return develop(canvas)


def interior(rng, scene):
    """Draws a room: walls, floor, a window or pictures, a table or a sofa."""
    canvas = Canvas(rng, scene)
    width, height, draw = canvas.width, canvas.height, canvas.draw
    wall = jitter(rng, pick(rng, ("#d9cdb4", "#b8c4c4", "#c9a58c", "#a9b59a")), 20)
    floor = jitter(rng, pick(rng, ("#8a6444", "#a68a6a", "#7a7672")), 20)
    left, right = rng.uniform(0.1, 0.3) * width, rng.uniform(0.7, 0.9) * width
    top, bottom = rng.uniform(0.08, 0.2) * height, rng.uniform(0.62, 0.75) * height
    draw.rectangle([0, 0, width, height], fill=to_bytes(np.array(wall) * 0.82))
    draw.rectangle([left, top, right, bottom], fill=wall)
    draw.polygon(
        [(0, 0), (width, 0), (right, top), (left, top)], fill=to_bytes(np.array(wall) * 1.12)
    )
    draw.polygon([(left, bottom), (right, bottom), (width, height), (0, height)], fill=floor)
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(left, right * 0.85), rng.uniform(top * 1.3, bottom * 0.55)
        w, h = rng.uniform(0.1, 0.22) * width, rng.uniform(0.15, 0.3) * height
        draw.rectangle([x - 6, y - 6, x + w + 6, y + h + 6], fill=(94, 72, 52))
        draw.rectangle([x, y, x + w, y + h], fill=jitter(rng, "#a9c8dc", 70))
    x, y = rng.uniform(0.2, 0.6) * width, rng.uniform(0.66, 0.78) * height
    seat = jitter(rng, "#9a5f4a", 80)
    w, h = rng.uniform(0.25, 0.4) * width, 0.14 * height
    draw.rounded_rectangle([x, y - h, x + w, y + h], 20, fill=to_bytes(np.array(seat) * 0.8))
    draw.rounded_rectangle([x - 14, y, x + w + 14, y + h * 1.2], 20, fill=seat)
    x = rng.uniform(0.1, 0.9) * width
    draw.line([(x, 0), (x, height * 0.2)], fill=(60, 55, 50), width=4)
    draw.pieslice([x - 50, height * 0.15, x + 50, height * 0.32], 180, 360, fill=(244, 222, 160))
    return develop(canvas)


def flowers(rng, scene):
    """Draws blossoms before green leaves."""
    canvas = Canvas(rng, scene)
    canvas.draw.rectangle([0, 0, canvas.width, canvas.height], fill=jitter(rng, "#4f7a3f", 40))
    for x, y, size in rng.random((40, 3)).tolist():
        radius = canvas.unit(0.04 + 0.1 * size)
        x, y = x * canvas.width, y * canvas.height
        canvas.circle(x, y, radius, jitter(rng, "#4a7f3c", 60), flat=0.5)
    color = pick(rng, ("#d8475f", "#f0c23c", "#f1ece4", "#8f5fb8", "#ef8a3a"))
    for _ in range(int(rng.integers(1, 9))):
        x, y = rng.uniform(0.1, 0.9) * canvas.width, rng.uniform(0.15, 0.9) * canvas.height
        petals, radius = int(rng.integers(5, 10)), canvas.unit(rng.uniform(0.05, 0.22))
        paint = jitter(rng, color, 20)
        for i in range(petals):
            a = 2 * math.pi * i / petals
            light = np.array(paint) * (0.85 + 0.2 * (i % 2))
            petal = x + radius * math.cos(a), y + radius * math.sin(a)
            canvas.circle(*petal, radius * 0.62, light)
        canvas.circle(x, y, radius * 0.5, jitter(rng, "#c99a2e", 25))
    return develop(canvas)


def food(rng, scene):
    """Draws a plate seen from above."""
    canvas = Canvas(rng, scene)
    width, height, draw = canvas.width, canvas.height, canvas.draw
    draw.rectangle([0, 0, width, height], fill=jitter(rng, "#a47b55", 70))
    for x in range(0, width, width // 6):
        draw.line([(x, 0), (x + 20, height)], fill=jitter(rng, "#8a6544", 30), width=3)
    x, y = rng.uniform(0.4, 0.6) * width, rng.uniform(0.42, 0.58) * height
    plate = canvas.unit(rng.uniform(0.34, 0.46))
    for share, paint in ((1.0, "#d5d3cd"), (0.96, "#f4f2ec"), (0.7, "#e9e6de")):
        canvas.circle(x, y, plate * share, rgb(paint))
    bites = ("#b5523a", "#d9a441", "#6f9a45", "#e8d9b0", "#8a4a34", "#c7362f")
    for _ in range(int(rng.integers(6, 22))):
        angle, reach = rng.uniform(0, 6.3), plate * 0.55 * math.sqrt(rng.random())
        bite = x + reach * math.cos(angle), y + reach * math.sin(angle)
        paint = jitter(rng, pick(rng, bites), 25)
        canvas.circle(*bite, plate * rng.uniform(0.08, 0.24), paint, flat=0.8)
    return develop(canvas)


def texture(rng, scene):
    """Draws stripes, tiles or blots: a wall, a cloth, a close-up of something."""
    canvas = Canvas(rng, scene)
    width, height, draw = canvas.width, canvas.height, canvas.draw
    base = tuple(rng.integers(40, 215, 3).tolist())
    draw.rectangle([0, 0, width, height], fill=base)
    style, step = int(rng.integers(3)), int(canvas.unit(rng.uniform(0.06, 0.2)))
    if style == 0:
        slant = int(canvas.unit(rng.uniform(-0.4, 0.4)))
        for x in range(-abs(slant), width + abs(slant), 2 * step):
            draw.line([(x, 0), (x + slant, height)], fill=jitter(rng, base, 70), width=step)
    elif style == 1:
        for row, y in enumerate(range(0, height, step)):
            for x in range(-step * (row % 2), width, 2 * step):
                tile = [x + 3, y + 3, x + 2 * step - 3, y + step - 3]
                draw.rectangle(tile, fill=jitter(rng, base, 50))
    else:
        for x, y, size in rng.random((60, 3)).tolist():
            blot = x * width, y * height
            canvas.circle(*blot, step * (0.3 + 1.2 * size), jitter(rng, base, 90))
    return develop(canvas)


# what a picture without a landmark shows, all equally likely
NON_LANDMARKS = (street, landscape, close_up, interior, flowers, food, texture)


def scene_for(rng, landmarks, hard_share):
    """Draws the conditions for a photograph of some landmarks, or of none.

    Args:
        rng: numpy Generator.
        landmarks: sequence of zero to two Landmarks that share a setting.
        hard_share: share of pictures under hard conditions, 0..1.

    Returns:
        A Scene.
    """
    settings = tuple(
        name for name in SETTINGS if all(name in landmark.settings for landmark in landmarks)
    )
    slender = len(landmarks) == 1 and is_slender(landmarks[0])
    return random_scene(rng, settings, hard_share, 0.3 if slender else 0.06)


def is_slender(landmark):
    """Tells whether a landmark is much higher than wide, so that it fills little of a picture."""
    width, height = extent(landmark)
    return height > 1.7 * width


def draw_jpeg(rng, landmarks, scene):
    """Draws one picture and compresses it as a camera would.

    Args:
        rng: numpy Generator.
        landmarks: the Landmarks in it; empty for a picture of something else.
        scene: a Scene.

    Returns:
        JPEG file as bytes.
    """
    draw = partial(photograph, landmarks=landmarks) if landmarks else pick(rng, NON_LANDMARKS)
    jpeg = io.BytesIO()
    draw(rng, scene).save(jpeg, "JPEG", quality=int(rng.integers(35, 93)))
    return jpeg.getvalue()
