"""Adapters against stand-ins that have the signatures and conventions of the real packages.

The stand-ins see a wall; they check what they are given and answer as the packages do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import sys
from types import ModuleType, SimpleNamespace

from models import save_depth_anything
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mirage_model.camera import Cameras, invert
from mirage_model.perception.adapters import DepthAnything, DepthAnything3, MapAnything, UniDepth
from mirage_model.perception.alignment import align_cameras

HEIGHT, WIDTH, DISTANCE = 96, 160, 4.0


def cameras(count: int = 3, *, straight: bool = False) -> Cameras:
    """Return cameras that look at a wall four metres ahead and move beside it."""
    world_from_camera = torch.eye(4).repeat(count, 1, 1)
    world_from_camera[:, 0, 3] = 0.5 * torch.arange(count)
    if not straight:
        world_from_camera[:, 1, 3] = 0.3 * torch.arange(count) ** 2
    return Cameras(
        K=torch.tensor([[80.0, 0.0, 79.5], [0.0, 80.0, 47.5], [0.0, 0.0, 1.0]]).repeat(
            count, 1, 1
        ),
        world_from_camera=world_from_camera,
        times=torch.arange(count, dtype=torch.float64),
        height=HEIGHT,
        width=WIDTH,
    )


def package(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    for parent in (name.rpartition('.')[0], name):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    vars(sys.modules[name]).update(members)


class Loadable(torch.nn.Module):
    @classmethod
    def from_pretrained(cls, folder: str, *, local_files_only: bool):
        assert local_files_only and isinstance(folder, str)
        return cls()


class UniDepthV2(Loadable):
    """unidepth.models.UniDepthV2."""

    def infer(self, rgb: torch.Tensor, camera=None, normalize=True):
        assert normalize and rgb.dtype == torch.uint8 and rgb.shape[1:] == (3, HEIGHT, WIDTH)
        assert 0 <= self.resolution_level < 10
        assert camera.shape == (len(rgb), 3, 3)
        # its pixels have their centres at halves
        assert camera[0, 0, 2] == WIDTH / 2 and camera[0, 1, 2] == HEIGHT / 2
        depth = torch.full((len(rgb), 1, HEIGHT, WIDTH), DISTANCE)
        depth[:, :, 0] = 0.0
        return {'depth': depth, 'confidence': torch.rand_like(depth), 'intrinsics': camera}


def test_unidepth(monkeypatch, tmp_path):
    package(monkeypatch, 'unidepth.models', UniDepthV2=UniDepthV2)
    model = UniDepth(tmp_path)
    estimate = model.estimate(torch.rand(3, 3, HEIGHT, WIDTH), cameras())
    assert (estimate.depth[:, 1:] == DISTANCE).all() and estimate.depth[:, 0].isnan().all()
    assert estimate.scaled.all() and not (estimate.sky | estimate.moving).any()
    assert not model.segments_dynamic and not model.estimates_cameras


class MapAnythingModel(Loadable):
    """mapanything.models.MapAnything: answers in the first camera's frame, in half metres."""

    encoder = SimpleNamespace(data_norm_type='dinov2')
    allowed = {'img', 'data_norm_type', 'intrinsics', 'camera_poses', 'is_metric_scale'}

    def infer(
        self,
        views,
        memory_efficient_inference=True,
        minibatch_size=None,
        use_amp=True,
        amp_dtype='bf16',
        apply_mask=True,
        mask_edges=True,
    ):
        assert not apply_mask and not mask_edges  # both set depth to zero
        answers = []
        for view in views:
            assert set(view) == self.allowed and view['data_norm_type'] == ['dinov2']
            height, width = view['img'].shape[2:]
            assert width == 518 and height % 14 == 0 and view['is_metric_scale'].tolist() == [True]
            # its pixels have their centres at integers
            torch.testing.assert_close(view['intrinsics'][0, 0, 2], torch.tensor(width / 2 - 0.5))
            pose = invert(views[0]['camera_poses']) @ view['camera_poses']
            pose[:, :3, 3] /= 2
            clear = torch.ones(1, height, width, dtype=torch.bool)
            clear[:, : height // 4] = False
            answers.append(
                {
                    'depth_z': torch.full((1, height, width, 1), DISTANCE / 2),
                    'conf': torch.full((1, height, width), 10.0),
                    'non_ambiguous_mask': clear,
                    'camera_poses': pose,
                }
            )
        return answers


@pytest.mark.parametrize('straight', [False, True])
def test_map_anything(monkeypatch, tmp_path, straight):
    package(monkeypatch, 'mapanything.models', MapAnything=MapAnythingModel)
    model, planned = MapAnything(tmp_path), cameras(straight=straight)
    estimate = model.estimate(torch.rand(3, 3, HEIGHT, WIDTH), planned)
    torch.testing.assert_close(
        estimate.depth[:, HEIGHT // 4 :], torch.full((3, HEIGHT * 3 // 4, WIDTH), DISTANCE)
    )
    assert estimate.depth[:, : HEIGHT // 4].isnan().all()
    torch.testing.assert_close(estimate.cameras.world_from_camera, planned.world_from_camera)
    torch.testing.assert_close(estimate.confidence, torch.full((3, HEIGHT, WIDTH), 0.9))
    assert model.estimates_cameras and estimate.scaled.all()


@dataclass
class Prediction:
    """depth_anything_3.specs.Prediction, as far as it is read."""

    depth: np.ndarray
    is_metric: int
    sky: np.ndarray | None = None
    conf: np.ndarray | None = None
    extrinsics: np.ndarray | None = None


class DepthAnything3Model(Loadable):
    """depth_anything_3.api.DepthAnything3 of a kind of model."""

    model_name = 'da3-base'

    def input_processor(self, image, extrinsics, intrinsics, process_res, process_res_method):
        assert process_res_method == 'upper_bound_resize'
        assert all(
            frame.dtype == np.uint8 and frame.shape == (HEIGHT, WIDTH, 3) for frame in image
        )
        pixels = torch.stack([torch.from_numpy(frame).movedim(-1, 0) / 255 for frame in image])
        size = (round(HEIGHT * process_res / WIDTH / 14) * 14, process_res)
        if intrinsics is not None:
            # it multiplies K alone, so that pixels count from the corner
            assert (intrinsics[:, 0, 2] == WIDTH / 2).all()
            extrinsics, intrinsics = torch.from_numpy(extrinsics), torch.from_numpy(intrinsics)
        return F.interpolate(pixels, size), extrinsics, intrinsics

    def forward(self, image, extrinsics=None, intrinsics=None, export_feat_layers=None):
        assert image.shape[0] == 1 and image.shape[2] == 3
        if extrinsics is not None:
            centres = invert(extrinsics[0])[:, :3, 3]
            assert torch.equal(extrinsics[0, 0], torch.eye(4))
            assert centres.norm(dim=1).median() == pytest.approx(1.0)
        return image, extrinsics

    def output_processor(self, output):
        image, extrinsics = output
        count, _, height, width = image[0].shape
        depth = np.full((count, height, width), DISTANCE, np.float32)
        if 'metric' in self.model_name:
            sky = np.zeros_like(depth)
            sky[:, : height // 4] = 1.0
            return Prediction(depth=depth, is_metric=0, sky=sky)
        conf = np.full_like(depth, 5.0)
        if extrinsics is None:
            return Prediction(depth=depth, is_metric=0, conf=conf)
        depth *= float(
            invert(extrinsics[0])[1, 0, 3] / 0.5
        )  # the second camera is half a metre on
        return Prediction(
            depth=depth, is_metric=0, conf=conf, extrinsics=extrinsics[0, :, :3].numpy()
        )


def depth_anything_3(monkeypatch, tmp_path: Path, name: str) -> DepthAnything3:
    kind = type('Kind', (DepthAnything3Model,), {'model_name': name})
    package(monkeypatch, 'depth_anything_3.api', DepthAnything3=kind)
    return DepthAnything3(tmp_path)


@pytest.mark.parametrize('straight', [False, True])
def test_depth_anything_3_with_our_cameras(monkeypatch, tmp_path, straight):
    """Depth in the unit of the normalised cameras comes back in metres, cameras in our world."""
    model, planned = (
        depth_anything_3(monkeypatch, tmp_path, 'da3-base'),
        cameras(straight=straight),
    )
    estimate = model.estimate(torch.rand(3, 3, HEIGHT, WIDTH), planned)
    torch.testing.assert_close(estimate.depth, torch.full((3, HEIGHT, WIDTH), DISTANCE))
    torch.testing.assert_close(estimate.cameras.world_from_camera, planned.world_from_camera)
    torch.testing.assert_close(estimate.confidence, torch.full((3, HEIGHT, WIDTH), 0.8))
    assert estimate.scaled.all() and model.estimates_cameras


def test_depth_anything_3_of_one_frame_has_no_scale(monkeypatch, tmp_path):
    model = depth_anything_3(monkeypatch, tmp_path, 'da3-small')
    estimate = model.estimate(torch.rand(1, 3, HEIGHT, WIDTH), cameras(1))
    assert not estimate.scaled.any()


def test_depth_anything_3_metric_scales_by_the_focal_length(monkeypatch, tmp_path):
    model = depth_anything_3(monkeypatch, tmp_path, 'da3metric-large')
    estimate = model.estimate(torch.rand(2, 3, HEIGHT, WIDTH), cameras(2))
    processed = 80.0 * 504 / WIDTH
    below = estimate.depth[:, HEIGHT // 4 + 1 :]
    torch.testing.assert_close(
        below, torch.full_like(below, DISTANCE * processed / 300), rtol=1e-2, atol=0
    )
    assert estimate.sky[:, : HEIGHT // 4].all() and estimate.scaled.all()
    assert not model.estimates_cameras


@pytest.mark.parametrize(
    ('kind', 'module', 'message'),
    [
        (DepthAnything3, 'depth_anything_3', 'pip install depth-anything-3'),
        (UniDepth, 'unidepth', 'lpiccinelli-eth/UniDepth'),
        (MapAnything, 'mapanything', 'facebookresearch/map-anything'),
    ],
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, kind, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        kind(tmp_path)


class TestAlignCameras:
    planned = cameras(5)

    def similar(self, factor: float) -> torch.Tensor:
        """Return the planned cameras in a world that is rotated, shifted and has another unit."""
        turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
        turn *= torch.det(turn).sign()
        found = self.planned.world_from_camera.clone()
        found[:, :3, :3] = turn @ found[:, :3, :3]
        found[:, :3, 3] = factor * (found[:, :3, 3] @ turn.T) + torch.tensor([1.0, -2.0, 3.0])
        return found

    def test_undoes_a_similarity(self):
        aligned, scale = align_cameras(self.similar(0.25), self.planned)
        assert scale == pytest.approx(4.0)
        torch.testing.assert_close(
            aligned.world_from_camera, self.planned.world_from_camera, rtol=0, atol=1e-5
        )

    def test_keeps_what_was_found_of_single_cameras(self):
        found = self.similar(1.0)
        found[2, :3, 3] += 0.02
        aligned, _ = align_cameras(found, self.planned)
        error = (aligned.world_from_camera - self.planned.world_from_camera)[:, :3, 3].norm(dim=1)
        assert error.argmax() == 2 and 0.02 < error[2] < 0.035

    def test_standing_cameras_give_no_scale(self):
        standing = self.planned[:1]
        aligned, scale = align_cameras(self.similar(1.0)[:1], standing)
        assert scale is None
        torch.testing.assert_close(aligned.world_from_camera, standing.world_from_camera)


def test_depth_anything_from_a_folder(tmp_path: Path):
    save_depth_anything(tmp_path, 'metric')
    model = DepthAnything(tmp_path, process_size=28)
    estimate = model.estimate(torch.rand(2, 3, HEIGHT, WIDTH), cameras(2))
    assert estimate.depth.shape == (2, HEIGHT, WIDTH)
    known = estimate.depth[~estimate.sky]
    assert ((known > 0) & (known < 20)).all()
    assert estimate.scaled.all() and not estimate.moving.any()


def test_relative_depth_anything_is_rejected(tmp_path: Path):
    save_depth_anything(tmp_path, 'relative')
    with pytest.raises(ValueError, match='metric model is needed'):
        DepthAnything(tmp_path)
