"""Landmarks made up by a seed: the kinds of art.py with proportions, colors and names of chance.

The demo draws the 34 landmarks of art.py; `python -m demo --landmarks 300` adds these, for runs
where the number of classes matters. Landmarks of a kind differ as those of art.py do, in shape and
color; some have a smaller thing beside them.
"""

import itertools
from typing import NamedTuple

import numpy as np

from demo import art

STREAM = 4  # of the seed: 0 to 3 are the world's own
COMPANION_SHARE = 0.35  # of the landmarks have a smaller thing beside them

STARTS = (
    "Al", "Bel", "Bor", "Cal", "Cor", "Dal", "Dorn", "El", "Esk", "Fal", "Fen", "Gar", "Gol", "Hal",
    "Hest", "Il", "Jar", "Kal", "Kir", "Lan", "Lor", "Mal", "Mer", "Nar", "Nor", "Or", "Pel",
    "Quar", "Ros", "Sal", "Ser", "Tal", "Tor", "Ul", "Val", "Ver", "Wen", "Yar", "Zan", "Zel",
)  # fmt: skip
ENDS = (
    "ana", "beck", "bury", "dale", "denza", "ersk", "feld", "ford", "garde", "holm", "ika", "iria",
    "ley", "mere", "mont", "moor", "nova", "ora", "rath", "stead", "thorn", "vik", "wick", "zano",
)  # fmt: skip

# What colors scatter around.
STONES = (
    "#c9a66b", "#c0714f", "#a7a49c", "#d9c7a0", "#ece6d8", "#8f8a80", "#e3d8bd", "#b65f45",
    "#7d7468", "#d8a99a",
)  # fmt: skip
ROOFS = (
    "#4f7f6a", "#4b5563", "#3f5f8a", "#c99a3a", "#a03028", "#7a3f58", "#8e4a3a", "#3fa0a8",
    "#e4e2da",
)  # fmt: skip
PAINTS = (
    "#c9302c", "#f2f0ea", "#2f5f94", "#e0a030", "#3f8f5a", "#30343c", "#7a4f8a", "#d8693a",
    "#5fa8c8",
)  # fmt: skip
METALS = ("#7b5a41", "#8e8f94", "#d0d4d8", "#5f6f62", "#c05a45", "#5f7f9c", "#b89a5a")
ROCKS = ("#7b7f8a", "#867a72", "#9a8f80", "#8a6a58", "#6a6f68")
GREENS = ("#4c6b45", "#5c8a45", "#6f9a4f", "#7a8450")


class Dice:
    """Draws proportions and colors."""

    def __init__(self, rng):
        self.rng = rng

    def between(self, low, high):
        return float(self.rng.uniform(low, high))

    def whole(self, low, high):
        return int(self.rng.integers(low, high, endpoint=True))

    def one_of(self, *options):
        return art.pick(self.rng, options)

    def color(self, palette):
        return art.jitter(self.rng, self.one_of(*palette), 34)

    def colors(self, palette, count):
        """Draws colors of different words of a palette."""
        order = self.rng.permutation(len(palette))[:count]
        return tuple(art.jitter(self.rng, palette[i], 34) for i in order)


class Kind(NamedTuple):
    """A kind of landmark.

    Attributes:
        noun: its name's second half.
        draw: function of art.py.
        settings: where it may stand.
        look: function, `Dice` -> what `draw` takes.
    """

    noun: str
    draw: object
    settings: tuple
    look: object


def castle(dice):
    width = dice.between(1.2, 1.7)
    places = ((-width / 2, width / 2), (-width / 2, width / 2, 0.34), (-0.7, -0.28, 0.28, 0.7))
    return {
        "wall": dice.color(STONES),
        "roof": dice.one_of(None, dice.color(ROOFS)),
        "towers": tuple(
            (x, dice.between(0.18, 0.3), dice.between(0.45, 0.75)) for x in dice.one_of(*places)
        ),
        "keep": (dice.between(0.36, 0.6), dice.between(0.5, 0.86)),
        "width": width,
        "wall_height": dice.between(0.24, 0.4),
    }


def mountain(dice):
    sides = [
        (side * dice.between(0.3, 0.7), dice.between(0.45, 0.95), dice.between(0.45, 0.7))
        for side in (-1, 1)[: dice.whole(1, 2)]
    ]
    return {
        "rock": dice.color(ROCKS),
        "peaks": [*sides, (dice.between(-0.15, 0.15), 1.0, dice.between(0.55, 0.85))],
        "snow_line": dice.between(0.45, 0.9),
        "forest": dice.color(GREENS),
    }


def onion_church(dice):
    colors = dice.colors(ROOFS + PAINTS, dice.whole(1, 4))
    wall, trim = dice.color(STONES), dice.color(STONES)
    places = dice.one_of((0,), (-0.2, 0.2, 0), (-0.16, 0.17, 0, -0.32, 0.33))
    domes = tuple(
        (x, dice.between(0.15, 0.24), 0.72 - dice.between(0.5, 1) * abs(x), color)
        for x, color in zip(places, itertools.cycle(colors), strict=False)
    )
    return {"wall": wall, "trim": trim, "domes": domes}


def skyscraper(dice):
    count, twin = dice.whole(1, 4), dice.one_of(False, False, True)
    widths = np.linspace(dice.between(0.2, 0.4), dice.between(0.08, 0.18), count)
    widths *= 0.7 if twin else 1
    heights = dice.rng.uniform(0.5, 1.5, count)
    heights *= 0.88 / heights.sum()
    return {
        "glass": dice.color(METALS + PAINTS),
        "frame": dice.color(METALS),
        "tiers": tuple(zip(widths.tolist(), heights.tolist(), strict=True)),
        "positions": (-0.2, 0.2) if twin else (0,),
        "bridge": dice.between(0.3, 0.55) if twin else None,
        "mast": dice.between(0.04, 0.14),
    }


def sails(dice):
    count, lean = dice.whole(2, 5), dice.one_of(-1, 1) * dice.between(0.15, 0.35)
    return {
        "shell": dice.color(STONES + PAINTS),
        "base": dice.color(STONES),
        "shells": tuple(
            (x, dice.between(0.4, 0.8), dice.between(0.45, 1), lean)
            for x in np.linspace(-0.65, 0.65, count).tolist()
        ),
    }


def waterfall(dice):
    places = dice.rng.permutation([-0.45, -0.15, 0.15, 0.45])[: dice.whole(1, 3)].tolist()
    return {
        "rock": dice.color(ROCKS),
        "grass": dice.color(GREENS),
        "basin": dice.color(("#7fb7c4", "#4f8fa0", "#8fa8b8")),
        "streams": tuple((x, dice.between(0.08, 0.28), 0.88, 0.03) for x in places),
        "width": dice.between(1.3, 1.8),
    }


# fmt: off
KINDS = (
    Kind("Clock Tower", art.clock_tower, ("city", "plaza", "river"), lambda dice: dict(
        body=dice.color(STONES), roof=dice.color(ROOFS), trim=dice.color(STONES),
        width=dice.between(0.17, 0.3), roof_height=dice.between(0.18, 0.4),
        top=dice.one_of("spire", "dome"))),
    Kind("Iron Tower", art.lattice_tower, ("park", "city", "river"), lambda dice: dict(
        color=dice.color(METALS + PAINTS), spread=dice.between(0.3, 0.62),
        curve=dice.between(1.7, 3.2), segments=dice.whole(6, 12),
        platforms=(dice.between(0.14, 0.28), dice.between(0.36, 0.6)))),
    Kind("Bridge", art.suspension_bridge, ("sea", "river"), lambda dice: dict(
        tower=dice.color(PAINTS + METALS), deck=dice.color(METALS), cable=dice.color(METALS),
        shape=dice.one_of("H", "A", "stone"), span=dice.between(1.1, 1.7),
        deck_height=dice.between(0.2, 0.45))),
    Kind("Viaduct", art.arch_bridge, ("hills", "desert", "river"), lambda dice: dict(
        stone=dice.color(STONES), arches=dice.whole(3, 7), tiers=dice.whole(1, 3),
        height=dice.between(0.4, 0.9), width=dice.between(1.5, 2.2))),
    Kind("Cathedral", art.cathedral, ("plaza", "city", "park"), lambda dice: dict(
        wall=dice.color(STONES), roof=dice.color(ROOFS), rose=dice.color(PAINTS),
        tower_width=dice.between(0.15, 0.28), gap=dice.between(0.28, 0.5),
        spires=dice.one_of(0, dice.between(0.2, 0.45)), nave=dice.between(0.4, 0.62))),
    Kind("Lighthouse", art.lighthouse, ("sea",), lambda dice: dict(
        bands=dice.colors(PAINTS, dice.whole(1, 3)), count=dice.whole(2, 7),
        bottom=dice.between(0.2, 0.36), top=dice.between(0.12, 0.2), cap=dice.color(ROOFS),
        house=dice.one_of(None, dice.color(STONES)))),
    Kind("Castle", art.castle, ("mountains", "hills", "park"), castle),
    Kind("Pagoda", art.pagoda, ("park", "mountains", "river"), lambda dice: dict(
        wall=dice.color(PAINTS + STONES), roof=dice.color(ROOFS), tiers=(tiers := dice.whole(3, 8)),
        width=dice.between(0.36, 0.66), taper=dice.between(0.2, 0.75) / tiers,
        flare=dice.between(0.02, 0.07), posts=dice.color(METALS))),
    Kind("Temple", art.temple, ("hills", "desert", "park"), lambda dice: dict(
        stone=dice.color(STONES), columns=dice.whole(4, 10), width=dice.between(1.0, 1.7),
        height=dice.between(0.45, 0.8), steps=dice.whole(1, 5),
        ruined=dice.one_of(False, False, True))),
    Kind("Pyramid", art.pyramid, ("desert", "hills"), lambda dice: dict(
        stone=dice.color(STONES), sizes=tuple(
            (side * dice.between(0.5, 0.95), dice.between(0.5, 1), dice.between(0.3, 0.7))
            for side in (-1, 1)[:dice.whole(0, 2)]) + ((0, dice.between(1.1, 1.7), 1.0),))),
    Kind("Step Pyramid", art.step_pyramid, ("park", "hills", "desert"), lambda dice: dict(
        stone=dice.color(STONES), shrine=dice.color(STONES + ROOFS), steps=dice.whole(3, 10),
        width=dice.between(1.1, 1.9))),
    Kind("Hall", art.domed_hall, ("plaza", "city", "park"), lambda dice: dict(
        wall=dice.color(STONES), dome=dice.color(ROOFS), shape=dice.one_of(*art.DOME_PROFILES),
        width=dice.between(0.9, 1.6), dome_width=dice.between(0.34, 0.62),
        small=dice.one_of(0.0, dice.between(0.16, 0.28)), columns=dice.one_of(0, 0, 6, 10))),
    Kind("Church", art.onion_church, ("plaza", "city", "hills"), onion_church),
    Kind("Tower", art.skyscraper, ("city", "park"), skyscraper),
    Kind("Windmill", art.windmill, ("river", "hills"), lambda dice: dict(
        body=dice.color(STONES + PAINTS), cap=dice.color(ROOFS), sail=dice.color(PAINTS),
        bottom=dice.between(0.26, 0.42), top=dice.between(0.16, 0.25),
        stage=dice.one_of(None, dice.color(METALS)), blade=dice.between(0.28, 0.46))),
    Kind("Arch", art.triumphal_arch, ("plaza", "city", "desert"), lambda dice: dict(
        stone=dice.color(STONES), attic=dice.between(0.16, 0.34), height=dice.between(0.7, 0.95),
        bays=dice.one_of((0.42,), (0.3, 0.3), (0.24, 0.42, 0.24)),
        crown=dice.one_of(None, dice.color(METALS)))),
    Kind("Gate", art.gateway_arch, ("park", "city"), lambda dice: dict(
        color=dice.color(METALS + PAINTS), width=dice.between(0.6, 1.5),
        thickness=dice.between(0.05, 0.14))),
    Kind("Wheel", art.ferris_wheel, ("park", "river", "city"), lambda dice: dict(
        rim=dice.color(PAINTS), cabins=dice.colors(PAINTS, dice.whole(1, 4)),
        spokes=dice.whole(7, 18), support=dice.color(METALS), radius=dice.between(0.34, 0.45))),
    Kind("Needle", art.obelisk, ("plaza", "desert", "city"), lambda dice: dict(
        stone=dice.color(STONES), width=dice.between(0.08, 0.2), base=dice.between(0.06, 0.24),
        tip=dice.color(ROOFS), plaza=dice.color(STONES))),
    Kind("Monument", art.statue, ("sea", "park", "plaza"), lambda dice: dict(
        color=dice.color(METALS + ROOFS), pedestal=dice.color(STONES),
        pose=dice.one_of("torch", "rider"), base=dice.between(0.24, 0.48))),
    Kind("Bowl", art.stadium, ("city", "park"), lambda dice: dict(
        shell=dice.color(METALS + STONES), roof=dice.color(PAINTS), masts=dice.whole(2, 6),
        height=dice.between(0.4, 0.7), width=dice.between(1.5, 2.2), ribs=dice.whole(8, 20))),
    Kind("Opera", art.sails, ("sea", "river"), sails),
    Kind("Falls", art.waterfall, ("mountains", "hills"), waterfall),
    Kind("Peak", art.mountain, ("mountains", "park"), mountain),
    Kind("Sea Arch", art.sea_arch, ("sea",), lambda dice: dict(
        rock=dice.color(ROCKS + STONES), grass=dice.color(GREENS), hole=dice.between(0.3, 0.7))),
)
# fmt: on
COMPANIONS = ("Clock Tower", "Pagoda", "Windmill", "Needle", "Monument", "Wheel", "Tower")
# The number of the landmark names its kind and its place: all are different up to here, the least
# number that both counts divide.
MOST = int(np.lcm(len(KINDS), len(STARTS) * len(ENDS)))


def generate_landmarks(seed, count):
    """Makes up landmarks; the first ones are the same whatever the count.

    Args:
        seed: integer >= 0, of the world.
        count: how many, up to `MOST`.

    Returns:
        Tuple of art.Landmark; those of a kind have its noun as `look_alikes`.
    """
    words = [start + end for start in STARTS for end in ENDS]
    order = np.random.default_rng([seed, STREAM]).permutation(len(words))
    return tuple(
        generate_landmark(
            np.random.default_rng([seed, STREAM, number]),
            KINDS[number % len(KINDS)],
            words[order[number % len(words)]],
        )
        for number in range(count)
    )


def generate_landmark(rng, kind, word):
    """Makes up one landmark of a kind, with a word for a name."""
    dice = Dice(rng)
    settings = tuple(rng.permutation(kind.settings)[: dice.whole(1, 2)].tolist())
    landmark = art.Landmark(f"{word} {kind.noun}", kind.draw, settings, kind.look(dice), kind.noun)
    others = [one for one in KINDS if one.noun in COMPANIONS and one is not kind]
    if landmark.natural or rng.random() >= COMPANION_SHARE:
        return landmark
    other = dice.one_of(*others)
    beside = art.Landmark(other.noun, other.draw, settings, other.look(dice))
    size, gap = dice.between(0.4, 0.65), dice.between(0.7, 0.95)
    x = gap * (art.extent(landmark)[0] + size * art.extent(beside)[0]) * dice.one_of(-1, 1)
    parts = ((beside.draw, beside.look, x, size), (landmark.draw, landmark.look, 0.0, 1.0))
    return art.Landmark(landmark.name, art.ensemble, settings, {"parts": parts}, kind.noun)
