"""Cameras re-estimated by matched features."""

from __future__ import annotations

from dataclasses import replace
import math

from corner import cameras_at, estimate_of, pose, render
from models import CHANNELS, small_blocks
import torch

from mirage_model.camera import Cameras, invert, resized
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.codec import Codec
from mirage_model.perception.pose_refinement import (
    RefineConfig,
    near_plan,
    refine,
    refine_to_memory,
)
from mirage_model.write_filter import write_frames


class TestRefine:
    reference = cameras_at(torch.stack([pose((0, 0, 0), 0), pose((0.4, 0.0, 0.0), 5)]))
    true = cameras_at(torch.stack([pose((0.2, 0.0, 0.3), 2), pose((0.3, 0.1, 0.5), -3)]))

    def refined(
        self, frames: torch.Tensor, planned: Cameras, config: RefineConfig = RefineConfig()
    ):
        reference_frames, reference_depth = render(self.reference)
        return refine(
            frames,
            planned,
            reference_frames=reference_frames,
            reference_depth=reference_depth,
            reference_cameras=self.reference,
            config=config,
        )

    def test_recovers_a_displaced_camera(self):
        planned = replace(
            self.true, world_from_camera=self.true.world_from_camera @ pose((0.1, 0.05, 0), 3)
        )
        result = self.refined(render(self.true)[0], planned)
        assert result.refined.all() and result.reasons == ('', '')
        error = invert(self.true.world_from_camera) @ result.cameras.world_from_camera
        assert error[:, :3, 3].norm(dim=-1).max() < 0.02
        assert (error[:, :3, :3] - torch.eye(3)).abs().max() < math.radians(0.3)

    def test_is_repeatable(self):
        frames = render(self.true)[0]
        first, second = self.refined(frames, self.true), self.refined(frames, self.true)
        assert torch.equal(first.cameras.world_from_camera, second.cameras.world_from_camera)

    def test_keeps_the_planned_camera_without_matches(self):
        frames = render(self.true)[0]
        frames[1] = 0.5
        result = self.refined(frames, self.true)
        assert result.refined.tolist() == [True, False]
        assert '0 matches' in result.reasons[1]
        assert torch.equal(result.cameras.world_from_camera[1], self.true.world_from_camera[1])

    def test_keeps_the_planned_camera_if_the_solution_is_far(self):
        planned = replace(
            self.true, world_from_camera=self.true.world_from_camera @ pose((0, 0, -2), 0)
        )
        result = self.refined(render(self.true)[0], planned)
        assert not result.refined.any()
        assert 'from the plan' in result.reasons[0]
        assert torch.equal(result.cameras.world_from_camera, planned.world_from_camera)

    def test_keeps_the_planned_camera_without_depth(self):
        frames, depth = render(self.reference)
        result = refine(
            frames,
            self.reference,
            reference_frames=frames,
            reference_depth=torch.full_like(depth, torch.nan),
            reference_cameras=self.reference,
        )
        assert not result.refined.any()

    def test_cameras_of_a_perception_stay_near_the_plan(self):
        far = pose((0, 0, -2), 0)
        found = self.true.world_from_camera.clone()
        found[0] = found[0] @ pose((0.1, 0, 0), 1)
        found[1] = found[1] @ far
        result = near_plan(replace(self.true, world_from_camera=found), self.true)
        assert result.refined.tolist() == [True, False]
        assert torch.equal(result.cameras.world_from_camera[0], found[0])
        assert torch.equal(result.cameras.world_from_camera[1], self.true.world_from_camera[1])
        assert '2.00 m' in result.reasons[1]


class TestDrift:
    """Eight chunks of a walk whose planned cameras drift from those that the frames show."""

    chunks, frames = 8, 2
    codec = Codec(small_blocks())

    def walk(self) -> tuple[Cameras, Cameras]:
        """Return true cameras and planned ones, which drift by 2 cm and half a degree a frame."""
        count = self.chunks * self.frames + 1
        true = cameras_at(
            torch.stack([pose((0.08 * i, 0.01 * i, 0.12 * i), 0.5 * i) for i in range(count)])
        )
        drift = [pose((0.014 * i, 0.0, 0.014 * i), -0.5 * i) for i in range(count)]
        planned = true.world_from_camera @ torch.stack(drift)
        return true, replace(true, world_from_camera=planned)

    def error_after(self, *, refined: bool) -> float:
        """Return the distance of the last chunk's camera from the truth [m]."""
        true, planned = self.walk()
        frames, depth = render(true)
        memory = LatentMemory(MemoryConfig(channels=CHANNELS, splat_size=3))

        def write(at: slice, cameras: Cameras) -> None:
            estimate = replace(estimate_of(depth[at]), cameras=cameras)
            write_frames(memory, frames[at], estimate, codec=self.codec, observed=False)

        write(slice(0, 1), true[:1])
        context, camera = 0, true[:1]
        for chunk in range(self.chunks):
            at = slice(1 + chunk * self.frames, 1 + (chunk + 1) * self.frames)
            cameras = planned[at]
            if refined:
                readout = memory.readout(resized(camera, 24, 40), latents=False)
                frame = frames[context : context + 1]
                cameras = refine_to_memory(frames[at], cameras, frame, camera, readout).cameras
            write(at, cameras)
            context, camera = at.stop - 1, cameras[-1:]
        error = invert(true.world_from_camera[context]) @ camera.world_from_camera[0]
        return float(error[:3, 3].norm())

    def test_refined_cameras_drift_less_than_planned_ones(self):
        planned, refined = self.error_after(refined=False), self.error_after(refined=True)
        assert planned > 0.3 and refined < planned / 2
