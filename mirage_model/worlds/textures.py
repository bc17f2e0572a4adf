"""Procedural textures of generated rooms."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

SIZE = 256
"""Side of a texture [px]."""


def colour(
    rng: np.random.Generator, *, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    """Return a random RGB colour (3,) in 0..1 of any hue."""
    return np.array(
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    )


def noise(rng: np.random.Generator, *, coarsest: int = 4, octaves: int = 6) -> np.ndarray:
    """Return smooth noise (SIZE, SIZE) of about zero mean and unit range that tiles."""
    total = np.zeros((SIZE, SIZE))
    for octave in range(octaves):
        cells = coarsest * 2**octave
        grid = np.pad(rng.uniform(-1, 1, (cells, cells)), 2, mode='wrap')
        pixels = SIZE // cells
        fine = cv2.resize(grid, None, fx=pixels, fy=pixels, interpolation=cv2.INTER_CUBIC)
        total += 0.6**octave * fine[2 * pixels : -2 * pixels, 2 * pixels : -2 * pixels]
    return total / 2


def plaster(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Paint a plain wall with slight noise."""
    return _shaded(base, 0.10 * noise(rng))


def planks(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Paint boards along the rows, each with a random shade and grain, with dark joints."""
    count = int(rng.choice([4, 8]))
    board = np.arange(SIZE) * count // SIZE
    grain = np.stack([np.roll(row, rng.integers(SIZE)) for row in noise(rng, coarsest=2)])
    grain = cv2.blur(grain, (31, 1))
    shade = rng.uniform(-0.18, 0.18, count)[board][:, None] + 0.35 * grain
    ends = rng.integers(SIZE, size=count)[board][:, None]
    joint = np.arange(SIZE)[:, None] % (SIZE // count) < 2
    joint = joint | ((np.arange(SIZE)[None] - ends) % SIZE < 2)
    return _shaded(base, shade - 0.35 * joint)


def bricks(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Paint courses of bricks, shifted by half a brick, in lighter mortar."""
    rows, columns = int(rng.choice([8, 16])), 4
    row = np.arange(SIZE) * rows // SIZE
    along = (np.arange(SIZE)[None] + (row % 2)[:, None] * (SIZE // columns // 2)) % SIZE
    brick = along * columns // SIZE
    shade = rng.uniform(-0.2, 0.2, (rows, columns))[row[:, None], brick]
    mortar = (np.arange(SIZE)[:, None] % (SIZE // rows) < 3) | (along % (SIZE // columns) < 3)
    return _shaded(base, np.where(mortar, 0.3, shade) + 0.12 * noise(rng))


def tiles(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Paint a chequerboard of ``base`` and a random colour, with joints."""
    count = int(rng.choice([2, 4, 8]))
    cell = np.arange(SIZE) * count // SIZE
    odd = (cell[:, None] + cell[None]) % 2 == 1
    other = colour(rng, saturation=(0.0, 0.5), value=(0.3, 0.9))
    joint = np.arange(SIZE) % (SIZE // count) < 2
    shade = 0.06 * noise(rng) - 0.25 * (joint[:, None] | joint[None])
    return np.where(odd[..., None], _shaded(other, shade), _shaded(base, shade))


def stripes(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Paint wallpaper with vertical stripes of two colours, one of them dotted."""
    count = int(rng.choice([4, 8, 16]))
    band = (np.arange(SIZE) * count // SIZE % 2 == 0)[None]
    other = colour(rng, saturation=(0.2, 0.7), value=(0.4, 0.95))
    step = SIZE // count
    y, x = np.mgrid[:SIZE, :SIZE]
    dot = np.hypot(x % step - step / 2, y % step - step / 2) < 0.25 * step
    mix = (band ^ (dot & band))[..., None]
    return np.where(mix, base, other) * (1 + 0.06 * noise(rng)[..., None])


def speckles(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Paint fine mottling of two colours, like grass, carpet or stone."""
    other = np.clip(base + rng.uniform(-0.25, 0.25, 3), 0, 1)
    mix = np.clip(0.5 + 1.2 * noise(rng, coarsest=8, octaves=5), 0, 1)[..., None]
    return base * mix + other * (1 - mix)


def picture(rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Paint a framed picture of bright shapes."""
    canvas = np.ascontiguousarray(_shaded(base, 0.15 * noise(rng)).clip(0, 1))
    for _ in range(rng.integers(6, 14)):
        paint = colour(rng, saturation=(0.4, 1.0), value=(0.2, 1.0)).tolist()
        a, b = rng.integers(0, SIZE, (2, 2)).tolist()
        if rng.random() < 0.5:
            cv2.circle(canvas, a, int(rng.integers(10, 60)), paint, -1, cv2.LINE_AA)
        else:
            cv2.line(canvas, a, b, paint, int(rng.integers(4, 30)), cv2.LINE_AA)
    cv2.rectangle(canvas, (0, 0), (SIZE - 1, SIZE - 1), rng.uniform(0, 0.4, 3).tolist(), 20)
    return canvas


PAINTERS = {
    function.__name__: function
    for function in (plaster, planks, bricks, tiles, stripes, speckles, picture)
}


def paint(name: str, rng: np.random.Generator, base: np.ndarray) -> np.ndarray:
    """Return an RGB texture (SIZE, SIZE, 3) uint8 by one of the `PAINTERS`."""
    return (PAINTERS[name](rng, base).clip(0, 1) * 255).round().astype(np.uint8)


def _shaded(base: np.ndarray, shade: np.ndarray) -> np.ndarray:
    return base * (1 + shade[..., None])
