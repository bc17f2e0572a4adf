"""The embedded network, its confidence, its files, and depth of a sensor in its place."""

from __future__ import annotations

from dataclasses import replace
import json
import math
from pathlib import Path
import pickle

from corner import HEIGHT, WIDTH, cameras_at, estimate_of, readout_of, standing
import pytest
from safetensors.torch import load_file, save_file
import torch

from mirage_model.camera import resized
from mirage_model.memory import Readout
from mirage_model.perception import Estimate, with_sensor_depth
from mirage_model.perception.embedded import (
    EmbeddedPerception,
    MemoryDepth,
    Network,
    NetworkConfig,
    NetworkOutput,
    load_network,
    save_network,
)
from mirage_model.training.simulated_memory import over_pixels

TINY = NetworkConfig(widths=(4, 8, 8, 8))


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
    """Network that predicts brightness as log depth, plus a ramp over the columns."""

    def __init__(self, log_spread: float, ramp: float = 0.0):
        super().__init__(TINY)
        self.log_spread, self.ramp = log_spread, ramp

    def forward(self, frames, cameras, memory_depth=None) -> NetworkOutput:
        grey = frames.mean(dim=1)
        return NetworkOutput(
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
