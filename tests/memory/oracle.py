"""Oracle of the memory: its rules as plain loops over scalars."""

from __future__ import annotations

import math

import numpy as np
import torch

from mirage_model.camera import unproject
from mirage_model.memory.visibility import CameraArrays, Splats, VisibilityRule


def scalar_project(position, rotation, translation, focal, centre):
    """Return x, y and depth in float32, in the order of operations of `visibility.project`."""
    x, y, z = (np.float32(value) for value in position)
    in_camera = [
        np.float32(np.float32(np.float32(a * x) + np.float32(b * y)) + np.float32(c * z)) + shift
        for (a, b, c), shift in zip(rotation, translation)
    ]
    u = np.float32(np.float32(in_camera[0] / in_camera[2]) * focal[0]) + centre[0]
    v = np.float32(np.float32(in_camera[1] / in_camera[2]) * focal[1]) + centre[1]
    return u, v, in_camera[2]


def nearest(points: Splats, views: CameraArrays, rule: VisibilityRule):
    """Return what `visibility.nearest` must return."""
    half = np.float32(0.5)
    cameras = len(views.focal)
    index = np.full((cameras, views.height, views.width), -1)
    won = np.full(index.shape, np.inf, dtype=np.float32)
    reach = rule.splat_size // 2
    position, size = points.position.numpy(), points.size.numpy()
    with np.errstate(all='ignore'):
        for camera in range(cameras):
            pose = [getattr(views, name)[camera].numpy() for name in ('rotation', 'translation')]
            focal, centre = views.focal[camera].numpy(), views.centre[camera].numpy()
            for point in range(len(points)):
                u, v, depth = scalar_project(position[point], *pose, focal, centre)
                if not (rule.near <= depth < rule.far) or not np.isfinite([u, v]).all():
                    continue
                column, row = math.floor(u + half), math.floor(v + half)
                for y in range(row - reach, row + reach + 1):
                    for x in range(column - reach, column + reach + 1):
                        if not (0 <= x < views.width and 0 <= y < views.height):
                            continue
                        off_x, off_y = abs(u - np.float32(x)), abs(v - np.float32(y))
                        if x != column and not off_x < size[point] * focal[0] / depth * half:
                            continue
                        if y != row and not off_y < size[point] * focal[1] / depth * half:
                            continue
                        rank = depth
                        if rule.splat_size > 1:
                            rank = depth + depth * max(off_x / focal[0], off_y / focal[1])
                        if not points.observed[point]:
                            rank = rank + rank * np.float32(rule.tolerance)
                        best = index[camera, y, x]
                        if best >= 0:
                            ours = (rank, not points.observed[point], -point)
                            theirs = (won[camera, y, x], not points.observed[best], -best)
                            if theirs < ours:
                                continue
                        index[camera, y, x], won[camera, y, x] = point, rank
    return torch.from_numpy(index), torch.from_numpy(won)


def in_free_space(points: Splats, depth, views: CameraArrays, rule: VisibilityRule):
    """Return what `visibility.in_free_space` must return."""
    depth = depth.numpy()
    gone = np.zeros(len(points), dtype=bool)
    with np.errstate(all='ignore'):
        for camera in range(len(depth)):
            pose = [getattr(views, name)[camera].numpy() for name in ('rotation', 'translation')]
            focal, centre = views.focal[camera].numpy(), views.centre[camera].numpy()
            for point in range(len(points)):
                u, v, distance = scalar_project(
                    points.position[point].numpy(), *pose, focal, centre
                )
                if not distance >= rule.near or not np.isfinite([u, v]).all():
                    continue
                column, row = math.floor(u + np.float32(0.5)), math.floor(v + np.float32(0.5))
                if not (0 < column < views.width - 1 and 0 < row < views.height - 1):
                    continue  # the border has no whole neighbourhood
                around = depth[camera, row - 1 : row + 2, column - 1 : column + 2]
                if not (np.isfinite(around) & (around > 0)).all():
                    continue
                surface = around.min() - around.min() * np.float32(rule.tolerance)
                gone[point] |= distance + points.size[point].numpy() < surface
    return torch.from_numpy(gone)


def voxel_of(cell, voxel, level=None):
    """Return the level and coordinates of a point's voxel, in the grid of its size or a level."""
    if level is None:
        level = min(max(math.floor(math.log2(cell['size'])), -12), 20)
    edge = voxel * 2.0**level
    return (level, *(math.floor(value / edge) for value in cell['position']))


def in_observed_voxel(cell, held, voxel):
    return any(
        other['observed']
        and voxel_of(other, voxel) == voxel_of(cell, voxel, voxel_of(other, voxel)[0])
        for other in held
    )


def merge(held, new, voxel, *, displace=True):
    """Return the points after a write that is all observed or all imagined, in writing order.

    Points are dictionaries with ``position``, ``size``, ``observed``, ``camera`` (index in the
    write) and others.
    """

    def key(cell):
        return voxel_of(cell, voxel)

    new = [cell for cell in new if cell['observed'] or not in_observed_voxel(cell, held, voxel)]
    entered = []
    for cell in new:
        if cell['camera'] == max(other['camera'] for other in new if key(other) == key(cell)):
            entered.append(cell)
    taken = {key(cell) for cell in entered} if displace else set()
    return [cell for cell in held if key(cell) not in taken] + entered


class LoopMemory:
    """`LatentMemory` as a list of dictionaries in the order of writing."""

    def __init__(self, config):
        self.config, self.held, self.origin, self.written = config, [], None, 0

    def write(self, latents, depth, cameras, *, valid, observed, confidence):
        self.origin = float(cameras.times[0]) if self.origin is None else self.origin
        if observed:
            views = CameraArrays.from_cameras(cameras)
            gone = in_free_space(self.points(), depth, views, self.config.rule())
            self.held = [cell for cell, lost in zip(self.held, gone) if not lost]
            self.add(latents, depth, cameras, valid, confidence, observed=True)
            return
        for k in range(len(cameras)):
            one = slice(k, k + 1)
            room, too_coarse = self.open_to_imagination(valid[one], depth[one], cameras[one])
            self.held = [cell for at, cell in enumerate(self.held) if at not in too_coarse]
            parts = (latents[one], depth[one], cameras[one], room, confidence[one])
            self.add(*parts, observed=False)

    def add(self, latents, depth, cameras, valid, confidence, *, observed):
        position = unproject(torch.where(valid, depth, 1.0), cameras)
        new = []
        for camera, row, column in valid.nonzero().tolist():
            place = (camera, row, column)
            time = float(cameras.times[camera]) - self.origin
            new.append(
                {
                    'position': position[place].numpy(),
                    'size': np.float32(depth[place]) / focal_of(cameras, camera),
                    'observed': observed,
                    'confidence': round(float(confidence[place]) * 255),
                    'camera': camera,
                    'latents': latents[camera, :, row, column],
                    'depth': np.float32(depth[place]),
                    'time': np.float32(time),
                }
            )
        if self.config.voxel == 0:
            self.held = self.held + new
            return
        displace = observed or not self.config.finer
        self.held = merge(self.held, new, self.config.voxel, displace=displace)

    def open_to_imagination(self, valid, depth, cameras):
        """Return the mask of cells that imagination may enter, and the points to remove."""
        config, views = self.config, CameraArrays.from_cameras(cameras)
        seen = self.points(only_observed=True)
        _, surface = nearest(seen, views, config.rule(splat_size=max(3, config.splat_size)))
        shown, rank = nearest(self.points(), views, config.rule())
        position = unproject(torch.where(valid, depth, 1.0), cameras)
        too_coarse = set()
        room = torch.zeros_like(depth, dtype=torch.bool)
        for place in np.ndindex(*depth.shape):
            d = np.float32(depth[place])
            with np.errstate(all='ignore'):
                own = d + d * np.float32(config.tolerance)
                hides = own < surface[place].numpy()
                size = np.float32(config.finer) * (d / focal_of(cameras, place[0]))
            winner = shown[place]
            coarse = math.inf if winner < 0 else self.held[winner]['size']
            finer = not config.finer or coarse > size
            room[place] = bool(
                not (hides and surface[place] < math.inf) and finer and valid[place]
            )
            new = {'position': position[place].numpy()}
            if config.voxel and room[place]:
                room[place] = not in_observed_voxel(new, self.held, config.voxel)
            if not room[place] or winner < 0 or not config.finer:
                continue
            if not self.held[winner]['observed'] and rank[place].numpy() < own:
                too_coarse.add(int(winner))
        return room, too_coarse

    def points(self, *, only_observed=False):
        held = [cell for cell in self.held if cell['observed'] or not only_observed]
        return Splats(
            position=torch.tensor([cell['position'].tolist() for cell in held]).view(-1, 3),
            size=torch.tensor([float(cell['size']) for cell in held]),
            observed=torch.tensor([cell['observed'] for cell in held], dtype=torch.bool),
        )

    def readout(self, cameras):
        """Return a dictionary of the visible point at each (camera, row, column)."""
        views = CameraArrays.from_cameras(cameras)
        index, _ = nearest(self.points(), views, self.config.rule())
        result = {}
        for place in np.ndindex(*index.shape):
            if index[place] < 0:
                continue
            cell, camera = self.held[index[place]], place[0]
            pose = [getattr(views, name)[camera].numpy() for name in ('rotation', 'translation')]
            focal, centre = views.focal[camera].numpy(), views.centre[camera].numpy()
            u, v, depth = scalar_project(cell['position'], *pose, focal, centre)
            result[place] = {
                'latents': cell['latents'].to(getattr(torch, self.config.dtype)).float(),
                'observed': cell['observed'],
                'depth': depth,
                'age': np.float32(float(cameras.times[camera]) - self.origin) - cell['time'],
                'offset': (u - np.float32(place[2]), v - np.float32(place[1])),
                'depth_ratio': depth / cell['depth'],
            }
        return result


def focal_of(cameras, camera):
    fx, fy = cameras.K[camera, 0, 0].numpy(), cameras.K[camera, 1, 1].numpy()
    return np.sqrt(np.float32(fx * fy))
