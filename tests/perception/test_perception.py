"""The embedded network, its alignment to the memory, camera refinement and the adapters."""

from __future__ import annotations

from dataclasses import replace
import json
import math
from pathlib import Path
import pickle

from models import CHANNELS, save_depth_anything, small_blocks
import pytest
from safetensors.torch import load_file, save_file
import torch
from torch.nn import functional as F

from mirage_model.camera import Cameras, directions, invert, resized
from mirage_model.memory import Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.codec import Codec
from mirage_model.perception import Estimate, with_sensor_depth
from mirage_model.perception.adapters import DepthAnything
from mirage_model.perception.alignment import AlignmentConfig, align
from mirage_model.perception.embedded import (
    EmbeddedPerception,
    MemoryDepth,
    Network,
    NetworkConfig,
    Prediction,
    load_network,
    save_network,
)
from mirage_model.perception.pose_refinement import (
    RefineConfig,
    near_plan,
    refine,
    refine_to_memory,
)
from mirage_model.training.simulated_memory import over_pixels
from mirage_model.write_filter import write_frames

HEIGHT, WIDTH = 96, 160
TINY = NetworkConfig(widths=(4, 8, 8, 8))


def cameras_at(world_from_camera: torch.Tensor, *, focal: float = 80.0) -> Cameras:
    n = len(world_from_camera)
    K = torch.tensor([[focal, 0.0, 79.5], [0.0, focal, 47.5], [0.0, 0.0, 1.0]])
    return Cameras(
        K=K.expand(n, 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(n, dtype=torch.float64),
        height=HEIGHT,
        width=WIDTH,
    )


def standing(n: int) -> Cameras:
    return cameras_at(torch.eye(4).expand(n, 4, 4))


class TestNetwork:
    def test_is_small(self):
        parameters = sum(p.numel() for p in Network(NetworkConfig()).parameters())
        assert 400_000 < parameters < 800_000

    def test_estimates_every_pixel(self):
        torch.manual_seed(0)
        estimate = EmbeddedPerception(Network(TINY)).estimate(
            torch.rand(2, 3, HEIGHT, WIDTH), standing(2)
        )
        assert estimate.depth.shape == (2, HEIGHT, WIDTH)
        assert (estimate.depth.isnan() == estimate.sky).all()
        assert (estimate.depth[~estimate.sky] > 0).all()
        assert ((estimate.confidence >= 0) & (estimate.confidence <= 1)).all()
        assert not (estimate.moving & estimate.sky).any()
        assert not estimate.scaled.any()

    def test_frames_are_independent(self):
        torch.manual_seed(0)
        perception = EmbeddedPerception(Network(TINY))
        frames, cameras = torch.rand(3, 3, HEIGHT, WIDTH), standing(3)
        together = perception.estimate(frames, cameras)
        alone = perception.estimate(frames[1:2], cameras[1:2])
        torch.testing.assert_close(together.depth[1:2], alone.depth, equal_nan=True)

    def test_depth_scales_with_focal_length(self):
        torch.manual_seed(0)
        network = Network(TINY).eval()
        frames, cameras = torch.rand(1, 3, HEIGHT, WIDTH), standing(1)
        longer = cameras_at(cameras.world_from_camera, focal=160.0)
        with torch.inference_mode():
            base, changed = network(frames, cameras), network(frames, longer)
            # Without the rays' weights all that is left is the focal length in front.
            for weight in (network.stem[0].weight,):
                weight[:, 3 * 4 :] = 0
            plain, scaled = network(frames, cameras), network(frames, longer)
        torch.testing.assert_close(scaled.log_depth, plain.log_depth + math.log(2))
        assert not torch.allclose(changed.log_depth, base.log_depth + math.log(2))

    def test_uses_memory_depth_at_any_resolution(self):
        torch.manual_seed(0)
        network = Network(TINY).eval()
        frames, cameras = torch.rand(2, 3, HEIGHT, WIDTH), standing(2)
        depth = torch.rand(2, 12, 20) * 5 + 1
        depth[:, :, :10] = torch.nan
        observed = torch.rand(2, 12, 20) > 0.5
        fine = {
            'depth': over_pixels(depth, frames[:, 0]),
            'observed': over_pixels(observed, frames[:, 0]),
        }
        nothing = MemoryDepth(
            depth=torch.full((2, 1, 1), torch.nan), observed=torch.zeros(2, 1, 1, dtype=torch.bool)
        )
        with torch.inference_mode():
            known = network(frames, cameras, MemoryDepth(depth=depth, observed=observed))
            by_pixel = network(frames, cameras, MemoryDepth(**fine))
            alone, empty = network(frames, cameras), network(frames, cameras, nothing)
            unseen = network(frames, cameras, MemoryDepth(depth=depth, observed=~observed))
        assert torch.equal(known.log_depth, by_pixel.log_depth)
        assert torch.equal(alone.log_depth, empty.log_depth)
        assert not torch.allclose(known.log_depth, alone.log_depth)
        assert not torch.allclose(known.log_depth, unseen.log_depth)

    def test_rejects_sizes_that_do_not_fit(self):
        cameras = resized(standing(1), 90, 160)
        with pytest.raises(ValueError, match='90x160'):
            EmbeddedPerception(Network(TINY)).estimate(torch.rand(1, 3, 90, 160), cameras)


class BrightnessNetwork(Network):
    """Predicts brightness as log depth, plus a ramp over the columns that no picture justifies."""

    def __init__(self, log_spread: float, ramp: float = 0.0):
        super().__init__(TINY)
        self.log_spread, self.ramp = log_spread, ramp

    def forward(self, frames, cameras, memory_depth=None) -> Prediction:
        grey = frames.mean(dim=1)
        return Prediction(
            log_depth=grey + self.ramp * torch.linspace(-1, 1, WIDTH),
            log_spread=torch.full_like(grey, self.log_spread),
            sky_logit=torch.full_like(grey, -9.0),
            moving_logit=torch.full_like(grey, -9.0),
        )


class TestConfidence:
    frames = torch.linspace(0, 2, HEIGHT)[:, None].expand(1, 3, HEIGHT, WIDTH) / 2

    def estimate(self, network: Network, readout: Readout | None = None) -> Estimate:
        return EmbeddedPerception(network).estimate(self.frames, standing(1), readout)

    def test_is_zero_where_a_constant_would_do_as_well(self):
        # brightness has a mean distance of 0.25 from its median
        assert (self.estimate(BrightnessNetwork(math.log(0.24))).confidence > 0.5).all()
        assert (self.estimate(BrightnessNetwork(math.log(0.26))).confidence == 0).all()

    def test_is_zero_where_the_mirrored_frame_disagrees(self):
        assert (self.estimate(BrightnessNetwork(-3.0, ramp=0.1)).confidence > 0.9).all()
        assert (self.estimate(BrightnessNetwork(-3.0, ramp=0.6)).confidence == 0).all()

    def test_with_a_memory_is_the_networks(self):
        no = torch.zeros(1, 12, 20, dtype=torch.bool)
        readout = readout_of(torch.ones(1, 12, 20), no, no)
        assert (self.estimate(BrightnessNetwork(-3.0, ramp=0.6), readout).confidence > 0.9).all()


class TestSensorDepth:
    def test_overrules_sky_and_all_but_certain_dynamic_objects(self):
        probability = torch.tensor([0.4, 0.9, 0.9995]).expand(1, 4, 3)
        network = replace(
            estimate_of(torch.full((1, 4, 3), 9.0)),
            sky=torch.ones(1, 4, 3, dtype=torch.bool),
            moving=probability > 0.5,
            moving_probability=probability,
        )
        depth = torch.tensor([[torch.nan, 0.0, -1.0]] * 3 + [[3.0, 3.0, 3.0]])[None]
        estimate = with_sensor_depth(network, depth)
        # there is no sky in the row beside the measured one
        assert estimate.sky[0, :, 0].tolist() == [True, True, False, False]
        assert estimate.moving[0, 0].tolist() == [False, False, True]
        assert estimate.confidence[0, :, 0].tolist() == [0, 0, 0, 1]
        assert estimate.scaled.all()
        torch.testing.assert_close(estimate.depth, depth, equal_nan=True)


class TestSaving:
    def test_read_back_as_written(self, tmp_path: Path):
        network = Network(TINY).eval()
        save_network(tmp_path, network, dtype=torch.float32)
        again = load_network(tmp_path)
        assert again.config == TINY
        for name, value in network.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)

    def test_half_precision_changes_little(self, tmp_path: Path):
        torch.manual_seed(0)
        network = Network(TINY).eval()
        save_network(tmp_path, network)
        frames, cameras = torch.rand(1, 3, HEIGHT, WIDTH), standing(1)
        with torch.inference_mode():
            expected, again = network(frames, cameras), load_network(tmp_path)(frames, cameras)
        torch.testing.assert_close(again.log_depth, expected.log_depth, rtol=0, atol=5e-3)
        assert load_file(tmp_path / 'model.safetensors')['head.weight'].dtype == torch.float16

    @pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
    def test_names_a_missing_file(self, tmp_path: Path, name: str):
        save_network(tmp_path, Network(TINY))
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=name):
            load_network(tmp_path)

    def test_names_a_tensor_of_the_wrong_shape(self, tmp_path: Path):
        save_network(tmp_path, Network(TINY))
        tensors = load_file(tmp_path / 'model.safetensors')
        tensors['head.bias'] = torch.zeros(3)
        save_file(tensors, tmp_path / 'model.safetensors')
        with pytest.raises(ValueError, match=r'model\.safetensors: head\.bias has shape \(3,\)'):
            load_network(tmp_path)

    def test_names_a_missing_tensor(self, tmp_path: Path):
        save_network(tmp_path, Network(TINY))
        tensors = load_file(tmp_path / 'model.safetensors')
        del tensors['head.bias']
        save_file(tensors, tmp_path / 'model.safetensors')
        with pytest.raises(ValueError, match='head.bias'):
            load_network(tmp_path)

    def test_rejects_a_pickle(self, tmp_path: Path):
        save_network(tmp_path, Network(TINY))
        (tmp_path / 'model.safetensors').write_bytes(pickle.dumps({'head.bias': [0.0]}))
        with pytest.raises(ValueError, match='not a valid safetensors file'):
            load_network(tmp_path)

    @pytest.mark.parametrize('fields', [{'widths': [4, 8], 'depth': 3}, {}, []])
    def test_rejects_another_configuration(self, tmp_path: Path, fields: object):
        save_network(tmp_path, Network(TINY))
        (tmp_path / 'config.json').write_text(json.dumps(fields))
        with pytest.raises(ValueError, match='config.json'):
            load_network(tmp_path)


def estimate_of(depth: torch.Tensor) -> Estimate:
    nothing = torch.zeros_like(depth, dtype=torch.bool)
    return Estimate(
        depth=depth,
        cameras=standing(len(depth)),
        confidence=torch.ones_like(depth),
        sky=nothing,
        moving=nothing,
        moving_probability=nothing.float(),
        scaled=torch.zeros(len(depth), dtype=torch.bool),
    )


def readout_of(depth: torch.Tensor, visible: torch.Tensor, observed: torch.Tensor) -> Readout:
    n, h, w = depth.shape
    return Readout(
        latents=torch.zeros(n, 2, h, w),
        visible=visible,
        observed=observed & visible,
        depth=torch.where(visible, depth, 0.0),
        age=torch.zeros(n, h, w),
        offset=torch.zeros(n, 2, h, w),
        depth_ratio=torch.zeros(n, h, w),
    )


class TestAlignment:
    """A wall five metres away, which the network sees at three."""

    config = AlignmentConfig(min_cells=12, max_scale=2.0)
    truth = torch.full((2, HEIGHT, WIDTH), 5.0)
    cells = torch.full((2, 12, 20), 5.0)
    yes = torch.ones(2, 12, 20, dtype=torch.bool)
    no = torch.zeros(2, 12, 20, dtype=torch.bool)

    def test_takes_the_scale_of_the_memory(self):
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, self.yes, self.yes), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)
        assert aligned.scaled.all()

    def test_without_a_memory_nothing_changes(self):
        estimate = estimate_of(self.truth * 0.6)
        assert align(estimate, None, self.config) is estimate
        aligned = align(estimate, readout_of(self.cells, self.no, self.no), self.config)
        torch.testing.assert_close(aligned.depth, estimate.depth)
        assert not aligned.scaled.any()

    def test_needs_enough_cells(self):
        few = self.no.clone()
        few[0, 0, :11] = True
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, few, few), self.config
        )
        assert not aligned.scaled.any()
        few[0, 0, 11] = True
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, few, few), self.config
        )
        assert aligned.scaled.all()

    def test_all_frames_take_one_scale(self):
        first = self.yes.clone()
        first[1] = False
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(self.cells, first, first), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)

    def test_is_robust_to_a_third_of_outliers(self):
        wrong = self.cells.clone()
        wrong[:, :4] = 1.0
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(wrong, self.yes, self.yes), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)

    def test_observed_points_take_precedence(self):
        drifted = self.cells.clone() * 1.3
        observed = self.no.clone()
        observed[:, 0, :12] = True
        drifted[observed] = 5.0
        aligned = align(
            estimate_of(self.truth * 0.6), readout_of(drifted, self.yes, observed), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth)

    def test_scale_is_bounded(self):
        aligned = align(
            estimate_of(self.truth * 0.1), readout_of(self.cells, self.yes, self.yes), self.config
        )
        torch.testing.assert_close(aligned.depth, self.truth * 0.2)

    def test_sky_dynamic_objects_and_edges_are_ignored(self):
        estimate = estimate_of(self.truth * 0.6)
        depth, sky, moving = estimate.depth.clone(), estimate.sky.clone(), estimate.moving.clone()
        sky[:, :32] = True
        depth[:, :32] = torch.nan
        moving[:, 32:64] = True
        depth[:, 32:64] = 1.0
        depth[:, 64:, 4::8] = 9.0
        depth[:, 64:, 128:] = 3.0
        estimate = replace(estimate, depth=depth, sky=sky, moving=moving)
        aligned = align(estimate, readout_of(self.cells, self.yes, self.yes), self.config)
        torch.testing.assert_close(aligned.depth[:, 64:, 128:], self.truth[:, 64:, 128:])
        assert aligned.depth[:, :32].isnan().all()


TEXTURES = F.interpolate(
    torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    scale_factor=8,
    mode='bicubic',
).clamp(0, 1)


def render(cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and depth of a painted corner: a wall at z = 5, one at x = 3 and a floor at y = 1.5
    metres.
    """
    normals = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    offsets = torch.tensor([5.0, 3.0, 1.5])
    in_plane = ((0, 1), (2, 1), (0, 2))
    rotation, origin = cameras.world_from_camera[:, :3, :3], cameras.world_from_camera[:, :3, 3]
    rays = directions(cameras) @ rotation[:, None].mT
    depths = (offsets - origin @ normals.T)[:, None, None] / (rays @ normals.T)
    depth, plane = torch.where(depths > 0, depths, torch.inf).min(dim=-1)
    points = origin[:, None, None] + rays * depth[..., None]
    frames = torch.zeros(*depth.shape, 3)
    for index, axes in enumerate(in_plane):
        at = (points[..., axes] / 4).clamp(-1, 1)
        painted = F.grid_sample(
            TEXTURES[index].expand(len(at), -1, -1, -1), at, align_corners=False
        )
        frames = torch.where((plane == index)[..., None], painted.movedim(1, -1), frames)
    return frames.movedim(-1, 1), depth


def moved(metres: tuple[float, float, float], degrees: float) -> torch.Tensor:
    matrix = torch.eye(4)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[0, 0], matrix[0, 2], matrix[2, 0], matrix[2, 2] = c, s, -s, c
    matrix[:3, 3] = torch.tensor(metres)
    return matrix


class TestRefine:
    reference = cameras_at(torch.stack([moved((0, 0, 0), 0), moved((0.4, 0.0, 0.0), 5)]))
    true = cameras_at(torch.stack([moved((0.2, 0.0, 0.3), 2), moved((0.3, 0.1, 0.5), -3)]))

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
            self.true, world_from_camera=self.true.world_from_camera @ moved((0.1, 0.05, 0), 3)
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
            self.true, world_from_camera=self.true.world_from_camera @ moved((0, 0, -2), 0)
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
        far = moved((0, 0, -2), 0)
        found = self.true.world_from_camera.clone()
        found[0] = found[0] @ moved((0.1, 0, 0), 1)
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
            torch.stack([moved((0.08 * i, 0.01 * i, 0.12 * i), 0.5 * i) for i in range(count)])
        )
        drift = [moved((0.014 * i, 0.0, 0.014 * i), -0.5 * i) for i in range(count)]
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


class TestAdapters:
    def test_depth_anything_from_a_folder(self, tmp_path: Path):
        save_depth_anything(tmp_path, 'metric')
        model = DepthAnything(tmp_path, process_size=28)
        estimate = model.estimate(torch.rand(2, 3, HEIGHT, WIDTH), standing(2))
        assert estimate.depth.shape == (2, HEIGHT, WIDTH)
        known = estimate.depth[~estimate.sky]
        assert ((known > 0) & (known < 20)).all()
        assert estimate.scaled.all() and not estimate.moving.any()

    def test_relative_depth_anything_is_rejected(self, tmp_path: Path):
        save_depth_anything(tmp_path, 'relative')
        with pytest.raises(ValueError, match='metric model is needed'):
            DepthAnything(tmp_path)
