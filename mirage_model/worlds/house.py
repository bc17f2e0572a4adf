"""Houses generated from a number: walls, doors, windows, furniture, dynamic objects, surroundings.

Lengths are in metres, z is up and the floor lies at 0. The module `rooms` renders a house. Some
rooms have no roof and windows have no glass, so that the sky is visible.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
import itertools

import numpy as np

from mirage_model.worlds.furniture import (
    AGAINST_WALLS,
    DYNAMIC_OBJECTS,
    FURNITURE,
    OUTDOORS,
    Finish,
    Palette,
    Solid,
    footprint,
)
from mirage_model.worlds.trajectory import clearance, crossings

_WALL_THICKNESS = 0.08
_YAW = {'N': 0.0, 'W': np.pi / 2, 'S': np.pi, 'E': -np.pi / 2}


@dataclass(frozen=True, kw_only=True)
class DynamicObject:
    """Solids that move back and forth between two places."""

    solids: tuple[Solid, ...]
    """Parts, in the frame of the object; the object faces along its x."""
    ends: tuple[tuple[float, float], tuple[float, float]]
    """Two points (x, y) between which the object moves [m]."""
    period: float
    """Time to the other end and back [s]."""
    hop: float
    """Height of its bounces [m]; 0 to stay on the floor."""

    def at(self, time: float) -> tuple[float, float, float, float]:
        """Return x, y, z [m] and yaw [rad] at a time [s]."""
        phase = time / self.period % 1.0
        ahead = phase < 0.5
        share = 2 * phase if ahead else 2 - 2 * phase
        (ax, ay), (bx, by) = self.ends
        yaw = np.arctan2(by - ay, bx - ax) + (0.0 if ahead else np.pi)
        height = self.hop * abs(np.sin(2 * np.pi * time))
        return ax + share * (bx - ax), ay + share * (by - ay), float(height), float(yaw)


@dataclass(frozen=True, kw_only=True)
class Room:
    """Rectangle from (x0, y0) to (x1, y1), ``roofed`` or under open sky."""

    x0: float
    y0: float
    x1: float
    y1: float
    roofed: bool

    def side(self, name: str) -> tuple[float, float, float]:
        """Return a wall (W, E, S or N): its fixed coordinate, start and end [m]."""
        if name in 'WE':
            return (self.x0 if name == 'W' else self.x1), self.y0, self.y1
        return (self.y0 if name == 'S' else self.y1), self.x0, self.x1


@dataclass(frozen=True, kw_only=True)
class House:
    """Geometry, surfaces and cameras of a generated house."""

    rooms: tuple[Room, ...]
    solids: tuple[Solid, ...]
    dynamic_objects: tuple[DynamicObject, ...]
    finishes: tuple[Finish, ...]
    walls: np.ndarray
    """(n, 4) segments x1 y1 x2 y2 that a walker cannot cross [m]."""
    footprints: np.ndarray
    """(m, 4) rectangles x0 y0 x1 y1 that furniture covers [m]."""
    sky: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Colours (r, g, b) in 0..1, overhead and at the horizon."""
    view_angle: float
    """Horizontal field of view of the cameras [degrees]."""
    eye: float
    """Height of the cameras [m]."""
    text: str
    """Description in English."""

    def inside(self, x: float, y: float) -> bool:
        """Return whether the point (x, y) lies in a room and outside furniture."""
        x0, y0, x1, y1 = self.footprints.T
        covered = (x0 < x) & (x < x1) & (y0 < y) & (y < y1)
        in_room = any(r.x0 < x < r.x1 and r.y0 < y < r.y1 for r in self.rooms)
        return in_room and not covered.any()


def build_house(number: int) -> House:
    """Generate a house; the same number gives the same house."""
    return _Builder(np.random.default_rng((1122, number))).build()


@dataclass(frozen=True)
class _Opening:
    """Hole in a wall, ``a`` to ``b`` along it and ``low`` to ``high`` up [m]; a door has low 0."""

    a: float
    b: float
    low: float
    high: float


class _Builder:
    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.palette = Palette(rng)
        self.height = rng.uniform(2.4, 3.3)
        self.solids: list[Solid] = []
        self.walls: list[tuple[float, float, float, float]] = []
        self.footprints: list[tuple[float, float, float, float]] = []
        self.names: set[str] = set()

    def build(self) -> House:
        rng = self.rng
        rooms = self._divide()
        openings = self._openings(rooms)
        for room in rooms:
            self._enclose(room, openings)
            self._furnish(room, openings)
        self._surround(rooms)
        walls = np.concatenate([np.array(self.walls), _outlines(self.footprints)])
        candidates = [self._dynamic_object(rooms, walls) for _ in range(rng.integers(1, 5))]
        blue = rng.uniform(0.0, 0.3)
        return House(
            rooms=tuple(rooms),
            solids=tuple(self.solids),
            dynamic_objects=tuple(c for c in candidates if c is not None),
            finishes=tuple(self.palette.finishes),
            walls=walls,
            footprints=np.array(self.footprints).reshape(-1, 4),
            sky=((0.2 + blue, 0.4 + blue, 0.9), (0.75, 0.85, rng.uniform(0.8, 1.0))),
            view_angle=rng.uniform(45.0, 100.0),
            eye=rng.uniform(0.3, 1.7),
            text=self._text(rooms),
        )

    def _divide(self) -> list[Room]:
        """Return one to three rooms that fill a rectangle around (0, 0)."""
        rng = self.rng
        w, d = rng.uniform(5.0, 11.0) / 2, rng.uniform(4.5, 8.0) / 2
        cells = [(-w, -d, w, d)]
        for _ in range(rng.integers(0, 3)):
            cells.sort(key=lambda c: max(c[2] - c[0], c[3] - c[1]))
            x0, y0, x1, y1 = cells.pop()
            share = rng.uniform(0.4, 0.6)
            if x1 - x0 >= y1 - y0:
                cut = x0 + share * (x1 - x0)
                cells += [(x0, y0, cut, y1), (cut, y0, x1, y1)]
            else:
                cut = y0 + share * (y1 - y0)
                cells += [(x0, y0, x1, cut), (x0, cut, x1, y1)]
        return [
            Room(x0=x0, y0=y0, x1=x1, y1=y1, roofed=bool(rng.random() > 0.35))
            for x0, y0, x1, y1 in cells
        ]

    def _openings(self, rooms: list[Room]) -> dict[tuple[Room, str], list[_Opening]]:
        """Return doors between adjacent rooms and windows in outer walls, by room and side."""
        rng = self.rng
        openings = defaultdict(list)
        inner = set()
        for (room, side), (neighbour, facing) in itertools.product(
            itertools.product(rooms, 'EN'), itertools.product(rooms, 'WS')
        ):
            position, a, b = room.side(side)
            facing_position, c, d = neighbour.side(facing)
            low, high = max(a, c), min(b, d)
            if side + facing not in ('EW', 'NS') or position != facing_position or high <= low:
                continue
            inner |= {(room, side), (neighbour, facing)}
            width = rng.uniform(0.9, 1.5)
            if high - low > width + 0.5:
                left = rng.uniform(low + 0.25, high - 0.25 - width)
                door = _Opening(left, left + width, 0.0, rng.uniform(2.0, 2.3))
                openings[room, side].append(door)
                openings[neighbour, facing].append(door)
        for room, side in itertools.product(rooms, 'WESN'):
            if (room, side) in inner:
                continue
            _, a, b = room.side(side)
            count = int(rng.integers(0, 3))
            for share in range(count):
                low, high = (a + (b - a) * (share + i) / count for i in (0.1, 0.9))
                left, right = sorted(rng.uniform(low, high, 2))
                if right - left > 0.5:
                    sill = rng.uniform(0.7, 1.1)
                    window = _Opening(left, right, sill, rng.uniform(sill + 0.6, 2.3))
                    openings[room, side].append(window)
        return openings

    def _enclose(self, room: Room, openings: dict[tuple[Room, str], list[_Opening]]) -> None:
        """Add the floor, the walls and, under a roof, the ceiling of a room."""
        pick = self.palette.pick
        floor = pick(
            'planks', 'tiles', 'speckles', metres=2.0, saturation=(0.0, 0.6), value=(0.3, 0.8)
        )
        size = ((room.x1 - room.x0) / 2, (room.y1 - room.y0) / 2, 0.05)
        middle = ((room.x0 + room.x1) / 2, (room.y0 + room.y1) / 2)
        self._add('box', (*middle, -0.05), size, floor)
        if room.roofed:
            ceiling = pick(
                'plaster', 'planks', metres=2.0, saturation=(0.0, 0.3), value=(0.7, 1.0)
            )
            self._add('box', (*middle, self.height + 0.05), size, ceiling)
        common = pick(
            'plaster', 'bricks', 'stripes', metres=1.5, saturation=(0.0, 0.6), value=(0.5, 1.0)
        )
        for side in 'WESN':
            accent = self.rng.random() < 0.3
            finish = pick('bricks', 'stripes', 'planks', metres=1.5) if accent else common
            self._wall(room, side, openings[room, side], finish)

    def _wall(self, room: Room, side: str, openings: list[_Opening], finish: int) -> None:
        """Add panels around the openings of a wall, inside the room, and its segments."""
        at, a, b = room.side(side)
        inwards = 1 if side in 'WS' else -1
        middle = at + inwards * _WALL_THICKNESS / 2

        def panel(left: float, right: float, low: float, high: float) -> None:
            along, z = (left + right) / 2, (low + high) / 2
            centre = (middle, along, z) if side in 'WE' else (along, middle, z)
            # the texture lies in the panel's x and y: rotate them along the wall and up
            size = ((right - left) / 2, (high - low) / 2, _WALL_THICKNESS / 2)
            yaw = np.pi / 2 if side in 'WE' else 0.0
            self._add('box', centre, size, finish, yaw=yaw, turn=np.pi / 2)

        def line(left: float, right: float) -> None:
            ends = ((at, left), (at, right)) if side in 'WE' else ((left, at), (right, at))
            self.walls.append((*ends[0], *ends[1]))

        start = a
        for hole in sorted(openings, key=lambda hole: hole.a):
            panel(start, hole.a, 0.0, self.height)
            panel(hole.a, hole.b, hole.high, self.height)
            line(start, hole.a)
            if hole.low > 0:
                panel(hole.a, hole.b, 0.0, hole.low)
                line(hole.a, hole.b)
            start = hole.b
        panel(start, b, 0.0, self.height)
        line(start, b)
        if not openings and self.rng.random() < 0.7:
            self._hang(at + inwards * _WALL_THICKNESS, a, b, side)

    def _hang(self, at: float, a: float, b: float, side: str) -> None:
        """Hang a picture on a wall."""
        half = (self.rng.uniform(0.25, 0.6), self.rng.uniform(0.2, 0.45))
        along = self.rng.uniform(a + half[0], b - half[0])
        z = self.rng.uniform(1.3, 1.7)
        centre = (at, along, z) if side in 'WE' else (along, at, z)
        finish = self.palette.pick('picture', metres=0.0, saturation=(0.1, 0.9))
        yaw = np.pi / 2 if side in 'WE' else 0.0
        self._add('box', centre, (*half, 0.02), finish, yaw=yaw, turn=np.pi / 2)

    def _furnish(self, room: Room, openings: dict[tuple[Room, str], list[_Opening]]) -> None:
        """Add a rug in half of the rooms, and furniture with space around doors and pieces."""
        rng = self.rng
        doors = []
        for side in 'WESN':
            at = room.side(side)[0]
            for hole in openings[room, side]:
                along = (hole.a + hole.b) / 2
                if hole.low == 0:
                    doors.append((at, along) if side in 'WE' else (along, at))
        width, depth = room.x1 - room.x0, room.y1 - room.y0
        if rng.random() < 0.5:
            size = (width * rng.uniform(0.15, 0.35), depth * rng.uniform(0.15, 0.35), 0.006)
            rug = self.palette.pick('stripes', 'tiles', 'picture', metres=0.0)
            self._add('box', ((room.x0 + room.x1) / 2, (room.y0 + room.y1) / 2, 0.0), size, rug)
        for _ in range(int(width * depth / 4) + 2):
            name = str(rng.choice(list(FURNITURE)))
            solids = FURNITURE[name](rng, self.palette)
            side = str(rng.choice(list('WESN')))
            half = footprint(solids)
            hx, hy = half if side in 'NS' else half[::-1]
            low = np.array(
                [room.x0 + _WALL_THICKNESS + 0.02 + hx, room.y0 + _WALL_THICKNESS + 0.02 + hy]
            )
            high = np.array(
                [room.x1 - _WALL_THICKNESS - 0.02 - hx, room.y1 - _WALL_THICKNESS - 0.02 - hy]
            )
            if (low > high).any():
                continue
            x, y = rng.uniform(low, high)
            if name in AGAINST_WALLS:
                x = {'W': low[0], 'E': high[0]}.get(side, x)
                y = {'S': low[1], 'N': high[1]}.get(side, y)
            box = (x - hx, y - hy, x + hx, y + hy)
            near_door = any(
                np.hypot(max(box[0] - u, 0, u - box[2]), max(box[1] - v, 0, v - box[3])) < 1.2
                for u, v in doors
            )
            if not near_door and not self._occupied(box, margin=0.5):
                self.footprints.append(box)
                self.names.add(name)
                self._place(solids, x, y, _YAW[side])

    def _occupied(self, box: tuple[float, float, float, float], *, margin: float) -> bool:
        x0, y0, x1, y1 = box
        return any(
            x0 - margin < u1 and u0 < x1 + margin and y0 - margin < v1 and v0 < y1 + margin
            for u0, v0, u1, v1 in self.footprints
        )

    def _surround(self, rooms: list[Room]) -> None:
        """Add the ground, and trees, buildings and hills around the house."""
        rng = self.rng
        ground = self.palette.pick('speckles', 'tiles', metres=4.0, value=(0.3, 0.7))
        self._add('box', (0.0, 0.0, -0.3), (60.0, 60.0, 0.2), ground)
        for angle in np.linspace(0, 2 * np.pi, 14, endpoint=False):
            angle, away = angle + rng.uniform(-0.2, 0.2), rng.uniform(14.0, 30.0)
            name = str(rng.choice(list(OUTDOORS), p=[0.5, 0.3, 0.2]))
            solids = OUTDOORS[name](rng, self.palette)
            self._place(solids, away * np.cos(angle), away * np.sin(angle), rng.uniform(0, 6.3))

    def _dynamic_object(self, rooms: list[Room], walls: np.ndarray) -> DynamicObject | None:
        """Return an object that moves along a free line, or None after 50 tries."""
        rng = self.rng
        name = str(rng.choice(list(DYNAMIC_OBJECTS)))
        solids = tuple(DYNAMIC_OBJECTS[name](rng, self.palette))
        for _ in range(50):
            room = rooms[rng.integers(len(rooms))]
            a, b = rng.uniform([room.x0, room.y0], [room.x1, room.y1], (2, 2))
            length = np.hypot(*(b - a))
            if length < 1.0 or min(clearance(*a, walls), clearance(*b, walls)) < 0.35:
                continue
            hit, _ = crossings(*a, *((b - a) / length), walls)
            if len(hit) and hit[0] > length:
                self.names.add(name)
                return DynamicObject(
                    solids=solids,
                    ends=((float(a[0]), float(a[1])), (float(b[0]), float(b[1]))),
                    period=float(2 * length / rng.uniform(0.3, 1.2)),
                    hop=float(rng.uniform(0.2, 0.8)) if name == 'ball' else 0.0,
                )
        return None

    def _place(self, solids: list[Solid], x: float, y: float, yaw: float) -> None:
        """Add a piece of furniture at (x, y), rotated about its origin by ``yaw``."""
        c, s = np.cos(yaw), np.sin(yaw)
        for solid in solids:
            u, v, z = solid.centre
            centre = (float(x + c * u - s * v), float(y + s * u + c * v), float(z))
            self.solids.append(replace(solid, centre=centre, yaw=float(solid.yaw + yaw)))

    def _add(self, shape: str, centre, size, finish: int, *, yaw=0.0, turn=0.0) -> None:
        self.solids.append(
            Solid(shape=shape, centre=centre, size=size, finish=finish, yaw=yaw, turn=turn)
        )

    def _text(self, rooms: list[Room]) -> str:
        sky = '' if all(room.roofed for room in rooms) else ', partly under open sky'
        return f'Inside a house{sky}, with {", ".join(sorted(self.names))}'


def _outlines(boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Return the four sides of each of n boxes as segments (4 n, 4)."""
    sides = []
    for x0, y0, x1, y1 in boxes:
        sides += [(x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)]
    return np.array(sides).reshape(-1, 4)
