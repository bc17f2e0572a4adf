"""Solids, surfaces, and pieces built of them: furniture, plants, dynamic objects.

A piece is a list of solids around (0, 0) that stands on the floor with its back towards +y.
Lengths are in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mirage_model.worlds.textures import colour

WOOD, CLOTH, STONE = ('planks', 'plaster'), ('stripes', 'speckles', 'plaster'), ('speckles',)


@dataclass(frozen=True, kw_only=True)
class Solid:
    """Box, cylinder or ellipsoid."""

    shape: str
    """'box', 'cylinder' or 'ellipsoid'."""
    centre: tuple[float, float, float]
    """Centre [m]."""
    size: tuple[float, float, float]
    """Half sizes along x, y and z of the solid [m]."""
    finish: int
    """Index of its surface in the palette."""
    yaw: float = 0.0
    """Rotation about z, after ``turn`` [rad]."""
    turn: float = 0.0
    """Rotation about x of the solid [rad]."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Surface of a solid."""

    painter: str
    """Name of one of the `textures.PAINTERS`."""
    base: tuple[float, float, float]
    """Colour (r, g, b) in 0..1."""
    metres: float
    """Side of one texture tile [m]; 0 stretches one texture over the solid."""


class Palette:
    """Random surfaces of one scene."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.finishes: list[Finish] = []

    def pick(
        self,
        *painters: str,
        metres: float = 1.0,
        saturation: tuple[float, float] = (0.1, 0.8),
        value: tuple[float, float] = (0.3, 0.95),
    ) -> int:
        """Add a surface of random colour by one of the painters and return its index."""
        base = colour(self.rng, saturation=saturation, value=value)
        painter = str(self.rng.choice(painters))
        self.finishes.append(Finish(painter=painter, base=tuple(base.tolist()), metres=metres))
        return len(self.finishes) - 1


def table(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    x, y, height = rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.45, 0.8)
    wood = palette.pick(*WOOD)
    return _board(x, y, height, wood) + _legs(x - 0.05, y - 0.05, height - 0.04, wood)


def chair(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    side, height = rng.uniform(0.19, 0.25), rng.uniform(0.4, 0.5)
    wood = palette.pick(*WOOD)
    back = _box((0.0, side - 0.02, height + 0.24), (side, 0.02, 0.24), wood)
    seat = _board(side, side, height, palette.pick(*CLOTH))
    return seat + [back] + _legs(side - 0.03, side - 0.03, height - 0.04, wood)


def sofa(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    x = rng.uniform(0.6, 1.1)
    cloth = palette.pick(*CLOTH, metres=0.8)
    arms = [_box((s * (x - 0.09), 0.0, 0.28), (0.09, 0.42, 0.28), cloth) for s in (-1, 1)]
    back = _box((0.0, 0.32, 0.4), (x - 0.18, 0.1, 0.4), cloth)
    cushion = palette.pick(*CLOTH, metres=0.5)
    return [_box((0.0, -0.1, 0.2), (x - 0.18, 0.32, 0.2), cushion), back, *arms]


def shelf(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    """Return a bookshelf."""
    x, height, y = rng.uniform(0.35, 0.7), rng.uniform(1.0, 2.0), 0.15
    wood = palette.pick(*WOOD)
    books = [
        palette.pick('plaster', 'stripes', metres=0.2, saturation=(0.3, 1.0)) for _ in range(4)
    ]
    levels = int(rng.integers(3, 6))
    parts = [_box((s * x, 0.0, height / 2), (0.015, y, height / 2), wood) for s in (-1, 1)]
    parts.append(_box((0.0, y - 0.01, height / 2), (x, 0.01, height / 2), wood))
    for level in range(levels + 1):
        z = 0.02 + (height - 0.04) * level / levels
        parts.append(_box((0.0, 0.0, z), (x, y, 0.015), wood))
        left = -x + 0.02
        while level < levels and left < x * rng.uniform(0.2, 1.0):
            width, book_height = (
                rng.uniform(0.03, 0.12),
                (height / levels - 0.05) * rng.uniform(0.5, 0.9),
            )
            if left + width > x - 0.02:
                break
            centre = (left + width / 2, -0.02, z + 0.015 + book_height / 2)
            parts.append(
                _box(centre, (width / 2, y - 0.05, book_height / 2), int(rng.choice(books)))
            )
            left += width + 0.005
    return parts


def cabinet(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    """Return a chest with two doors and up to two objects on it."""
    x, y, z = rng.uniform(0.3, 0.7), rng.uniform(0.18, 0.3), rng.uniform(0.3, 0.6)
    parts = [_box((0.0, 0.0, z), (x, y, z), palette.pick(*WOOD, metres=1.5))]
    front = palette.pick('plaster', 'planks', 'stripes', metres=0.6)
    for s in (-1, 1):
        door = (x / 2 - 0.03, 0.008, z - 0.06)
        parts.append(_box((s * x / 2, -y - 0.004, z), door, front))
    for _ in range(rng.integers(0, 3)):
        height = rng.uniform(0.08, 0.2)
        centre = (rng.uniform(-0.8, 0.8) * x, 0.0, 2 * z + height)
        size = (rng.uniform(0.04, 0.1), rng.uniform(0.04, 0.1), height)
        parts.append(
            _random_shape(rng, centre, size, palette.pick('plaster', 'stripes', metres=0.3))
        )
    return parts


def plant(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    height = rng.uniform(0.5, 1.4)
    pot = palette.pick('plaster', 'bricks', metres=0.4)
    leaf = palette.pick('speckles', metres=0.5, saturation=(0.4, 0.9), value=(0.3, 0.7))
    parts = [Solid(shape='cylinder', centre=(0.0, 0.0, 0.15), size=(0.14, 0.14, 0.15), finish=pot)]
    for _ in range(rng.integers(3, 7)):
        x, y = rng.uniform(-0.12, 0.12, 2)
        size = rng.uniform([0.06, 0.06, 0.12], [0.14, 0.14, 0.3])
        z = rng.uniform(0.3 + size[2], 0.3 + height)
        parts.append(
            Solid(
                shape='ellipsoid', centre=(x, y, float(z)), size=tuple(size.tolist()), finish=leaf
            )
        )
    return parts


def column(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    radius = rng.uniform(0.12, 0.25)
    stone = palette.pick('bricks', 'plaster', 'stripes', metres=1.0)
    shape = str(rng.choice(['box', 'cylinder']))
    return [Solid(shape=shape, centre=(0.0, 0.0, 1.7), size=(radius, radius, 1.7), finish=stone)]


def crates(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    """Return a stack of one to three boxes."""
    parts, top = [], 0.0
    for _ in range(rng.integers(1, 4)):
        half = rng.uniform(0.12, 0.3)
        finish = palette.pick('planks', 'stripes', 'tiles', metres=2 * half)
        parts.append(_box((0.0, 0.0, top + half), (half, half, half), finish))
        top += 2 * half
    return parts


FURNITURE = {
    piece.__name__: piece for piece in (table, chair, sofa, shelf, cabinet, plant, column, crates)
}
AGAINST_WALLS = ('sofa', 'shelf', 'cabinet')


def person(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    trousers, shirt = (palette.pick('plaster', 'stripes', metres=0.5) for _ in range(2))
    skin = palette.pick('plaster', saturation=(0.2, 0.5), value=(0.5, 0.95))
    scale = rng.uniform(0.85, 1.1)
    legs = [
        Solid(
            shape='cylinder',
            centre=(0.0, s * 0.1, 0.4 * scale),
            size=(0.08, 0.08, 0.4 * scale),
            finish=trousers,
        )
        for s in (-1, 1)
    ]
    trunk = _ellipsoid((0.0, 0.0, 1.1 * scale), (0.16, 0.24, 0.36 * scale), shirt)
    return [*legs, trunk, _ellipsoid((0.0, 0.0, 1.58 * scale), (0.11, 0.1, 0.14), skin)]


def robot(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    height = rng.uniform(0.2, 0.6)
    body = palette.pick('plaster', 'stripes', metres=0.5, saturation=(0.3, 1.0))
    head = palette.pick('tiles', 'plaster', metres=0.3)
    tower = Solid(
        shape='cylinder', centre=(0.0, 0.0, 0.2 + height), size=(0.09, 0.09, height), finish=head
    )
    return [_box((0.0, 0.0, 0.14), (0.28, 0.2, 0.1), body), tower]


def ball(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    radius = rng.uniform(0.12, 0.3)
    skin = palette.pick('stripes', 'tiles', metres=0.0, saturation=(0.5, 1.0))
    return [_ellipsoid((0.0, 0.0, radius), (radius, radius, radius), skin)]


def cat(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    fur = palette.pick('speckles', 'stripes', metres=0.3)
    legs = _legs(0.14, 0.05, 0.18, fur, half_width=0.02)
    trunk = _ellipsoid((0.0, 0.0, 0.24), (0.24, 0.09, 0.1), fur)
    return [*legs, trunk, _ellipsoid((0.25, 0.0, 0.33), (0.08, 0.08, 0.08), fur)]


DYNAMIC_OBJECTS = {piece.__name__: piece for piece in (person, robot, ball, cat)}


def tree(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    height = rng.uniform(1.0, 2.5)
    bark = palette.pick('planks', saturation=(0.2, 0.5), value=(0.2, 0.5))
    leaf = palette.pick('speckles', saturation=(0.4, 0.9), value=(0.25, 0.7))
    stem = Solid(
        shape='cylinder', centre=(0.0, 0.0, height / 2), size=(0.15, 0.15, height / 2), finish=bark
    )
    size = rng.uniform([0.8, 0.8, 1.0], [1.8, 1.8, 2.5])
    return [
        stem,
        _ellipsoid((0.0, 0.0, height + 0.8 * float(size[2])), tuple(size.tolist()), leaf),
    ]


def building(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    x, y, z = rng.uniform([2, 2, 1.5], [5, 5, 5]).tolist()
    return [_box((0.0, 0.0, z), (x, y, z), palette.pick('bricks', 'tiles', 'stripes', metres=3.0))]


def hill(rng: np.random.Generator, palette: Palette) -> list[Solid]:
    size = rng.uniform([6, 6, 1], [14, 14, 5])
    green = palette.pick('speckles', metres=6.0, saturation=(0.2, 0.7), value=(0.3, 0.7))
    return [_ellipsoid((0.0, 0.0, 0.0), tuple(size.tolist()), green)]


OUTDOORS = {piece.__name__: piece for piece in (tree, building, hill)}


def footprint(solids: list[Solid]) -> tuple[float, float]:
    """Return half sizes in x and y [m] of the floor that unrotated solids cover around (0, 0)."""
    x = max(abs(s.centre[0]) + s.size[0] for s in solids)
    y = max(abs(s.centre[1]) + s.size[1] for s in solids)
    return x, y


def _box(centre, size, finish: int) -> Solid:
    return Solid(shape='box', centre=centre, size=size, finish=finish)


def _ellipsoid(centre, size, finish: int) -> Solid:
    return Solid(shape='ellipsoid', centre=centre, size=size, finish=finish)


def _random_shape(rng: np.random.Generator, centre, size, finish: int) -> Solid:
    shape = str(rng.choice(['box', 'cylinder', 'ellipsoid']))
    return Solid(shape=shape, centre=centre, size=size, finish=finish)


def _board(x: float, y: float, top: float, finish: int) -> list[Solid]:
    return [_box((0.0, 0.0, top - 0.02), (x, y, 0.02), finish)]


def _legs(
    x: float, y: float, height: float, finish: int, *, half_width: float = 0.025
) -> list[Solid]:
    return [
        _box((i * x, j * y, height / 2), (half_width, half_width, height / 2), finish)
        for i in (-1, 1)
        for j in (-1, 1)
    ]
