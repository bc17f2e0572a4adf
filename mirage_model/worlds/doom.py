"""Freedoom maps as simulated worlds: frames from ViZDoom, exact depth from the map's own geometry.

ViZDoom's depth buffer has eight bits. Depth is therefore computed: a ray per pixel is cast against
the map's lines, with the current heights of floors and ceilings. Sprites always face the camera
and middle textures of two-sided lines have holes, so neither has an exact depth.

The world frame is Doom's, in metres: x east, y north, z up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import no_type_check

import cv2
import numba
import numpy as np
from omg import WAD
from omg.mapedit import Linedef, MapEditor
import torch
import vizdoom

from mirage_model.camera import Cameras
from mirage_model.clip import Clip
from mirage_model.worlds.trajectory import FloorPlan, crossings, plan, world_from_optical

UNITS_PER_METRE = 32.0
FRAME_RATE = 8.0
HEIGHT, WIDTH = 96, 160

_TICS_PER_FRAME = 4  # at 35 tics per second this is nearly FRAME_RATE
_SETTLING_TICS = 20  # a new player cannot turn during them
_SUPERSAMPLING = 4
_RENDER_HEIGHT, _RENDER_WIDTH = 480, 640
_CROP_TOP = (_RENDER_HEIGHT - _SUPERSAMPLING * HEIGHT) // 2
_MAX_STEP = 24.0  # Doom units
_WALKER_HEIGHT = 56.0  # Doom units
_EYE_HEIGHT = 1.28  # metres over the floor, approximate


def intrinsics() -> np.ndarray:
    """Return K (3, 3) of the recorded frames [px].

    ViZDoom renders 640x480 with fx = 320, fy = 384 (its pixels are 1.2 times as high as wide),
    cx = 320 and cy = 239. Recorded frames are cropped from it and averaged over 4x4 pixels.
    """
    s = _SUPERSAMPLING
    cx = (320.0 + 0.5) / s - 0.5
    cy = (239.0 + 0.5 - _CROP_TOP) / s - 0.5
    return np.array([[320.0 / s, 0.0, cx], [0.0, 384.0 / s, cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True, kw_only=True)
class DoomMap:
    """n lines and m sectors of a map; lengths are in Doom units."""

    lines: np.ndarray
    """(n, 4) x1 y1 x2 y2."""
    front: np.ndarray
    """(n,) index of the sector to the right of a line."""
    back: np.ndarray
    """(n,) index of the sector to the left of a line; -1 for a solid wall."""
    middle: np.ndarray
    """(n,) bool: a two-sided line with a middle texture."""
    impassable: np.ndarray
    """(n,) bool: a two-sided line that blocks a walker."""
    floor: np.ndarray
    """(m,) height of the floor at the start of the map."""
    ceiling: np.ndarray
    """(m,) height of the ceiling at the start of the map."""
    sky: np.ndarray
    """(m,) bool: the ceiling is open sky."""

    def blocking(self) -> np.ndarray:
        """Return the lines (k, 4) that a walker cannot cross."""
        f, b = self.front, self.back
        solid = (b < 0) | self.impassable
        rise = np.abs(self.floor[f] - self.floor[b])
        gap = np.minimum(self.ceiling[f], self.ceiling[b]) - np.maximum(
            self.floor[f], self.floor[b]
        )
        return self.lines[solid | (rise > _MAX_STEP) | (gap < _WALKER_HEIGHT)]


def wad_path(map_name: str) -> Path:
    """Return the WAD of a map: Freedoom 1 for E1M1 to E4M9, Freedoom 2 for MAP01 to MAP32."""
    number = '1' if map_name.startswith('E') else '2'
    return Path(vizdoom.__file__).parent / f'freedoom{number}.wad'


def read_map(map_name: str) -> DoomMap:
    """Read the lines and sectors of a map.

    Raises:
        ValueError: If Freedoom has no map of that name.
    """
    wad = WAD(str(wad_path(map_name)))
    if map_name not in wad.maps:
        raise ValueError(f'map: {map_name!r} is unknown, must be in {wad_path(map_name).name}')
    editor = MapEditor(wad.maps[map_name])
    position = np.array([(v.x, v.y) for v in editor.vertexes], dtype=np.float64)
    sector_of = np.array([side.sector for side in editor.sidedefs] + [-1])
    front, back, middle, ends = [], [], [], []
    for line in editor.linedefs:
        if line.front == Linedef.NONE:
            continue
        two_sided = line.back != Linedef.NONE
        sides = [editor.sidedefs[line.front]] + ([editor.sidedefs[line.back]] if two_sided else [])
        ends.append((line.vx_a, line.vx_b, line.impassable))
        front.append(sector_of[line.front])
        back.append(sector_of[line.back] if two_sided else -1)
        middle.append(two_sided and any(_text(side.tx_mid) != '-' for side in sides))
    vertices = np.array(ends, dtype=np.int64)
    return DoomMap(
        lines=np.concatenate([position[vertices[:, 0]], position[vertices[:, 1]]], axis=1),
        front=np.array(front, dtype=np.int64),
        back=np.array(back, dtype=np.int64),
        middle=np.array(middle, dtype=np.bool_),
        impassable=vertices[:, 2].astype(np.bool_),
        floor=np.array([s.z_floor for s in editor.sectors], dtype=np.float64),
        ceiling=np.array([s.z_ceil for s in editor.sectors], dtype=np.float64),
        sky=np.array([_text(s.tx_ceil) == 'F_SKY1' for s in editor.sectors], dtype=np.bool_),
    )


def _text(name: bytes | str) -> str:
    return (name.decode('ascii') if isinstance(name, bytes) else name).rstrip('\0').upper()


@numba.njit(cache=True)
@no_type_check
def _cast(
    x,
    y,
    z,
    forward_x,
    forward_y,
    K,
    height,
    width,
    lines,
    front,
    back,
    middle,
    floor,
    ceiling,
    sky,
):
    """Return depth [Doom units] and sky (height, width) of a level camera.

    Depth is NaN in the sky, outside the map and behind a middle texture.
    """
    depth = np.full((height, width), np.nan)
    is_sky = np.zeros((height, width), dtype=np.bool_)
    for column in range(width):
        across = (column - K[0, 2]) / K[0, 0]
        dx = forward_x + across * forward_y
        dy = forward_y - across * forward_x
        distances, crossed = crossings(x, y, dx, dy, lines)
        for row in range(height):
            slope = (K[1, 2] - row) / K[1, 1]
            exact = True
            for k in range(len(distances)):
                t, i = distances[k], crossed[k]
                side = (lines[i, 2] - lines[i, 0]) * (y - lines[i, 1])
                side -= (lines[i, 3] - lines[i, 1]) * (x - lines[i, 0])
                near, far = front[i], back[i]
                if side > 0.0:  # the camera is on the left, the back of the line
                    near, far = far, near
                if near < 0:
                    break  # the back of a solid wall: the ray left the map
                h = z + slope * t
                if h < floor[near]:
                    if exact:
                        depth[row, column] = (floor[near] - z) / slope
                    break
                if h > ceiling[near]:
                    if sky[near]:
                        is_sky[row, column] = True
                    elif exact:
                        depth[row, column] = (ceiling[near] - z) / slope
                    break
                if far < 0 or h < floor[far]:
                    if exact:
                        depth[row, column] = t
                    break
                if h > ceiling[far]:
                    if sky[near] and sky[far]:
                        is_sky[row, column] = True
                    elif exact:
                        depth[row, column] = t
                    break
                if middle[i]:
                    exact = False
    return depth, is_sky


def cast_depth(
    doom_map: DoomMap,
    position: tuple[float, float, float],
    yaw: float,
    floor: np.ndarray,
    ceiling: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return exact depth [m] and sky (HEIGHT, WIDTH) of a level camera.

    Args:
        doom_map: Lines and sectors.
        position: x, y, z of the camera [Doom units].
        yaw: Viewing direction [rad], from east to north.
        floor: (m,) current heights of the floors [Doom units].
        ceiling: (m,) current heights of the ceilings [Doom units].

    Returns:
        Depth along the optical axis, NaN where it is undefined or not exact; and a mask of sky.
    """
    depth, sky = _cast(
        *position,
        np.cos(yaw),
        np.sin(yaw),
        intrinsics(),
        HEIGHT,
        WIDTH,
        doom_map.lines,
        doom_map.front,
        doom_map.back,
        doom_map.middle,
        floor,
        ceiling,
        doom_map.sky,
    )
    return (depth / UNITS_PER_METRE).astype(np.float32), sky


class DoomWorld:
    """Running game on a map. A context manager: it starts and ends the process of the game.

    Clips are reproducible: the same map, seed and sequence of calls give the same clips.
    """

    def __init__(self, map_name: str, *, seed: int = 0):
        self.map_name = map_name
        self.map = read_map(map_name)
        corners = self.map.lines.reshape(-1, 2) / UNITS_PER_METRE
        self._floor = FloorPlan(
            walls=self.map.blocking() / UNITS_PER_METRE,
            low=corners.min(axis=0),
            high=corners.max(axis=0),
            inside=lambda x, y: self._sector(x * UNITS_PER_METRE, y * UNITS_PER_METRE) >= 0,
            clearance=0.75,
            min_ahead=5.0,
            min_around=4.6875,
        )
        game = vizdoom.DoomGame()
        game.set_doom_game_path(str(wad_path(map_name)))
        game.set_doom_map(map_name)
        game.set_seed(seed)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_640X480)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        for switch_off in (
            game.set_window_visible,
            game.set_sound_enabled,
            game.set_render_hud,
            game.set_render_weapon,
            game.set_render_crosshair,
            game.set_render_messages,
            game.set_render_screen_flashes,
            game.set_render_particles,
            game.set_render_decals,
        ):
            switch_off(False)
        game.set_labels_buffer_enabled(True)
        game.set_sectors_info_enabled(True)
        game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA])
        variables = vizdoom.GameVariable
        game.set_available_game_variables(
            [
                variables.CAMERA_POSITION_X,
                variables.CAMERA_POSITION_Y,
                variables.CAMERA_POSITION_Z,
                variables.CAMERA_ANGLE,
            ]
        )
        game.set_episode_timeout(0)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.add_game_args('+sv_cheats 1')
        self._game = game

    def __enter__(self) -> DoomWorld:
        self._game.init()
        for command in ('god', 'notarget'):
            self._game.send_game_command(command)
        self._game.make_action([0], _SETTLING_TICS)
        return self

    def __exit__(self, *_) -> None:
        self._game.close()

    def plan(self, kind: str, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Return world_from_camera (frames, 4, 4) of a random trajectory of one of the `KINDS`.

        The height is approximate; `record` returns the height that the game used.
        """
        return plan(self._floor, kind, frames, rng, rate=FRAME_RATE, height=_EYE_HEIGHT)

    def record(
        self,
        world_from_camera: np.ndarray,
        times: np.ndarray,
        *,
        name: str,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Clip:
        """Render frames along level poses and return them with the cameras that the game reports.

        The game places the camera to within a Doom unit (3 cm) in x and y, at eye height over the
        local floor.

        Args:
            world_from_camera: (n, 4, 4) level poses.
            times: (n,) times of the frames [s].
            name: Name of the clip.
            progress: Called with the number of rendered frames after each frame.

        Raises:
            ValueError: If the numbers of poses and times differ.
        """
        if len(times) != len(world_from_camera):
            raise ValueError(
                f'times: {len(times)} for {len(world_from_camera)} poses, one per pose is needed'
            )
        rendered = []
        for done, pose in enumerate(world_from_camera):
            rendered.append(self._render(pose))
            progress(done + 1)
        frames, depth, sky, moving, poses = (
            np.stack(part) for part in zip(*rendered, strict=True)
        )
        n = len(times)
        cameras = Cameras(
            K=torch.from_numpy(intrinsics()).float().expand(n, 3, 3),
            world_from_camera=torch.from_numpy(poses).float(),
            times=torch.from_numpy(np.asarray(times, dtype=np.float64)),
            height=HEIGHT,
            width=WIDTH,
        )
        return Clip(
            name=name,
            frames=torch.from_numpy(frames),
            cameras=cameras,
            depth=torch.from_numpy(depth),
            sky=torch.from_numpy(sky),
            moving=torch.from_numpy(moving),
        )

    def _render(self, world_from_camera: np.ndarray):
        x, y = world_from_camera[:2, 3] * UNITS_PER_METRE
        yaw = np.degrees(np.arctan2(world_from_camera[1, 2], world_from_camera[0, 2]))
        # infrared lights the map evenly but wears off, so every frame renews it
        self._game.send_game_command('give infrared')
        self._game.send_game_command(f'warp {x:.3f} {y:.3f}')
        current = self._game.get_game_variable(vizdoom.GameVariable.CAMERA_ANGLE)
        self._game.make_action([(current - yaw + 180.0) % 360.0 - 180.0], 1)
        # after a warp the eye needs a tic to rise from the floor
        self._game.make_action([0.0], _TICS_PER_FRAME - 1)
        state = self._game.get_state()
        assert state is not None and state.game_variables is not None
        assert state.labels is not None and state.labels_buffer is not None
        x, y, z, angle = state.game_variables
        floor = np.array([sector.floor_height for sector in state.sectors])
        ceiling = np.array([sector.ceiling_height for sector in state.sectors])
        depth, sky = cast_depth(self.map, (x, y, z), np.radians(angle), floor, ceiling)
        crop = slice(_CROP_TOP, _CROP_TOP + _SUPERSAMPLING * HEIGHT)
        frame = cv2.resize(
            state.screen_buffer[crop], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA
        )
        sprites = [label.value for label in state.labels]
        sprite = np.isin(state.labels_buffer[crop], sprites)
        moving = sprite.reshape(HEIGHT, _SUPERSAMPLING, WIDTH, _SUPERSAMPLING).any(axis=(1, 3))
        depth[moving] = np.nan
        x, y, z = (length / UNITS_PER_METRE for length in (x, y, z))
        pose = world_from_optical(x, y, z, np.radians(angle))
        return frame, depth, sky & ~moving, moving, pose

    def _sector(self, x: float, y: float) -> int:
        """Return the index of the walkable sector at (x, y) [Doom units].

        It is -1 outside the map and where a walker does not fit under the ceiling.
        """
        _, crossed = crossings(x, y, 1.0, 1e-3, self.map.lines)
        if len(crossed) == 0:
            return -1
        x1, y1, x2, y2 = self.map.lines[crossed[0]]
        left = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) > 0
        sector = int((self.map.back if left else self.map.front)[crossed[0]])
        fits = sector >= 0 and self.map.ceiling[sector] - self.map.floor[sector] >= _WALKER_HEIGHT
        return sector if fits else -1
