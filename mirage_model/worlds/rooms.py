"""Generated rooms, rendered off screen by MuJoCo with exact depth and labels.

The scene `room-0012` is `house.build_house(12)`. The light is fixed and casts no shadows, so
a surface has the same colour from every viewpoint. The world frame is the house's: metres, z up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import re

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
import torch

from mirage_model.camera import Cameras
from mirage_model.clip import Clip
from mirage_model.worlds.house import House, Solid, build_house
from mirage_model.worlds.photographs import cut_texture
from mirage_model.worlds.textures import SIZE, paint
from mirage_model.worlds.trajectory import FloorPlan, plan

NAME = re.compile(r'room-(\d{4})')

PHOTOGRAPHIC = 0.7
"""Share of the surfaces that photographs cover, if photographs are given."""

_SUPERSAMPLING = 3  # odd, so that a sample lies in the centre of the pixel
_NEAR, _FAR = 0.05, 200.0
_FLIP = np.diag([1.0, -1.0, -1.0])  # OpenGL's cameras look along -z with y up


def load_mujoco():
    """Import MuJoCo; it renders off screen unless ``MUJOCO_GL`` is set.

    Raises:
        ImportError: If MuJoCo or the system's OpenGL is missing; the message names the packages.
    """
    os.environ.setdefault('MUJOCO_GL', 'egl')
    try:
        import mujoco
    except (ImportError, AttributeError) as error:  # PyOpenGL without the system's library
        raise ImportError(
            f'MuJoCo cannot draw with MUJOCO_GL={os.environ["MUJOCO_GL"]}: pip install mujoco, '
            'and on Debian or Ubuntu apt-get install libegl1 libgl1 libgl1-mesa-dri'
        ) from error
    return mujoco


def intrinsics(view_angle: float, height: int, width: int) -> np.ndarray:
    """Return K (3, 3) [px] of a centred camera with square pixels.

    ``view_angle`` is the horizontal field of view [degrees].
    """
    focal = width / 2 / np.tan(np.radians(view_angle) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


class RoomWorld:
    """Renderer of one generated house. A context manager: it holds an OpenGL context.

    Clips are reproducible: the same arguments and sequence of calls give the same clips.
    """

    def __init__(
        self,
        scene: str,
        *,
        seed: int = 0,
        height: int = 96,
        width: int = 160,
        rate: float = 8.0,
        photographs: Sequence[Path] = (),
    ):
        """Build the scene.

        Args:
            scene: 'room-' and the four digits of the house's number.
            seed: Random seed of the positions of dynamic objects at time 0.
            height: Height of the frames [px].
            width: Width of the frames [px].
            rate: Frames per second of planned trajectories.
            photographs: Pictures that cover most surfaces; without them textures are procedural.

        Raises:
            ValueError: If the name does not have this form.
        """
        match = NAME.fullmatch(scene)
        if match is None:
            raise ValueError(f'scene: {scene!r} is unknown, must be room-0000 to room-9999')
        self.scene = scene
        self.house = build_house(int(match[1]))
        self.height, self.width, self.rate = height, width, rate
        self._photographs = photographs
        corners = self.house.walls.reshape(-1, 2)
        self._floor = FloorPlan(
            walls=self.house.walls,
            low=corners.min(axis=0),
            high=corners.max(axis=0),
            inside=self.house.inside,
            clearance=0.4,
            min_ahead=3.0,
            min_around=1.4,
        )
        rng = np.random.default_rng(seed)
        self.time_offsets = rng.uniform(0, 100, len(self.house.dynamic_objects))

    def __enter__(self) -> RoomWorld:
        mujoco = load_mujoco()
        spec = _specification(mujoco, self.house, self._photographs)
        K = intrinsics(self.house.view_angle, self.height, self.width)
        size = (self.height * _SUPERSAMPLING, self.width * _SUPERSAMPLING)
        spec.visual.global_.offheight, spec.visual.global_.offwidth = size
        fovy = 2 * np.degrees(np.arctan(self.height / 2 / K[1, 1]))
        spec.worldbody.add_camera(name='eye', fovy=fovy)
        self._mujoco = mujoco
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._renderer = mujoco.Renderer(self._model, *size)
        bodies = self._model.geom_bodyid
        self._moving = self._model.body_mocapid[bodies] >= 0
        return self

    def __exit__(self, *_) -> None:
        self._renderer.close()

    def plan(self, kind: str, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Return world_from_camera (frames, 4, 4) of a random trajectory of one of the `KINDS`.

        In half of the trajectories the camera is pitched by a constant angle, between 40 degrees
        down and 30 degrees up.
        """
        poses = plan(self._floor, kind, frames, rng, rate=self.rate, height=self.house.eye)
        pitch = rng.uniform(-40.0, 30.0) if rng.random() < 0.5 else 0.0
        tilt = np.eye(4)
        tilt[:3, :3] = Rotation.from_euler('x', pitch, degrees=True).as_matrix()
        return poses @ tilt

    def record(
        self,
        world_from_camera: np.ndarray,
        times: np.ndarray,
        *,
        name: str,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Clip:
        """Render frames along poses, with dynamic objects at their positions at these times.

        Args:
            world_from_camera: (n, 4, 4) poses.
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
        for done, (pose, time) in enumerate(zip(world_from_camera, times)):
            rendered.append(self._render(pose, float(time)))
            progress(done + 1)
        frames, depth, sky, moving = (np.stack(part) for part in zip(*rendered, strict=True))
        K = intrinsics(self.house.view_angle, self.height, self.width)
        cameras = Cameras(
            K=torch.from_numpy(K).float().expand(len(times), 3, 3),
            world_from_camera=torch.from_numpy(np.asarray(world_from_camera)).float(),
            times=torch.from_numpy(np.asarray(times, dtype=np.float64)),
            height=self.height,
            width=self.width,
        )
        return Clip(
            name=name,
            frames=torch.from_numpy(frames),
            cameras=cameras,
            depth=torch.from_numpy(depth),
            sky=torch.from_numpy(sky),
            moving=torch.from_numpy(moving),
            text=self.house.text,
        )

    def _render(self, world_from_camera: np.ndarray, time: float):
        data, renderer = self._data, self._renderer
        for index, (item, offset) in enumerate(zip(self.house.dynamic_objects, self.time_offsets)):
            x, y, z, yaw = item.at(time + offset)
            data.mocap_pos[index] = x, y, z
            data.mocap_quat[index] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        self._mujoco.mj_kinematics(self._model, data)
        self._mujoco.mj_camlight(self._model, data)
        data.cam_xpos[0] = world_from_camera[:3, 3]
        data.cam_xmat[0] = (world_from_camera[:3, :3] @ _FLIP).reshape(9)
        renderer.update_scene(data, camera='eye')
        frame = renderer.render()
        frame = cv2.resize(frame, (self.width, self.height), interpolation=cv2.INTER_AREA)
        middle = slice(_SUPERSAMPLING // 2, None, _SUPERSAMPLING)
        renderer.enable_depth_rendering()
        depth = renderer.render()[middle, middle].copy()
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        geom = renderer.render()[..., 0]
        renderer.disable_segmentation_rendering()
        sky = geom[middle, middle] < 0
        # a pixel is moving if any of its samples is
        moving = (self._moving[geom] & (geom >= 0)).reshape(
            self.height, _SUPERSAMPLING, self.width, _SUPERSAMPLING
        )
        moving = moving.any(axis=(1, 3))
        depth[sky] = np.nan
        return frame, depth, sky & ~moving, moving


def _specification(mujoco, house: House, photographs: Sequence[Path]):
    """Return the house as a MuJoCo model without a camera; dynamic objects are mocap bodies."""
    spec = mujoco.MjSpec()
    spec.stat.extent = 1.0  # MuJoCo multiplies near and far by it
    spec.visual.map.znear, spec.visual.map.zfar = _NEAR, _FAR
    spec.visual.quality.offsamples = 0
    spec.visual.headlight.active = False
    for direction, strength in (((0.4, 0.7, -0.6), 0.45), ((-0.8, -0.3, 0.2), 0.25)):
        spec.worldbody.add_light(
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            dir=direction,
            pos=(0.0, 0.0, 10.0),
            castshadow=False,
            diffuse=(strength,) * 3,
            ambient=(0.25,) * 3,
            specular=(0.0,) * 3,
        )
    spec.add_texture(
        name='sky',
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=house.sky[0],
        rgb2=house.sky[1],
        width=128,
        height=128,
    )
    for index, finish in enumerate(house.finishes):
        rng = np.random.default_rng((index, round(1e6 * finish.base[0])))
        if photographs and (finish.painter == 'picture' or rng.random() < PHOTOGRAPHIC):
            picture = cut_texture(photographs, rng, 2 * SIZE, tiled=finish.metres > 0)
        else:
            picture = paint(finish.painter, rng, np.array(finish.base))
        texture = spec.add_texture(
            name=f'texture{index}',
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            width=picture.shape[1],
            height=picture.shape[0],
            nchannel=3,
        )
        texture.data = picture.tobytes()
        repeat = 1 / finish.metres if finish.metres else 1.0
        material = spec.add_material(
            name=f'finish{index}',
            texrepeat=(repeat, repeat),
            texuniform=finish.metres > 0,
            specular=0.0,
            shininess=0.0,
        )
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture.name
    for solid in house.solids:
        _add(mujoco, spec.worldbody, solid)
    for item in house.dynamic_objects:
        body = spec.worldbody.add_body(mocap=True)
        for solid in item.solids:
            _add(mujoco, body, solid)
    return spec


def _add(mujoco, body, solid: Solid) -> None:
    kinds = {
        'box': mujoco.mjtGeom.mjGEOM_BOX,
        'cylinder': mujoco.mjtGeom.mjGEOM_CYLINDER,
        'ellipsoid': mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    }
    size = solid.size
    x, y, z, w = Rotation.from_euler('xz', [solid.turn, solid.yaw]).as_quat()
    body.add_geom(
        type=kinds[solid.shape],
        pos=solid.centre,
        # MuJoCo's cylinder takes a radius and half a height
        size=(size[0], size[2], 0.0) if solid.shape == 'cylinder' else size,
        quat=(w, x, y, z),
        material=f'finish{solid.finish}',
        contype=0,
        conaffinity=0,
    )
