"""Training of the perception network: batches, losses, scores, and runs that resume exactly."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import sys

import numpy as np
import pytest
import torch

from mirage_model.camera import Cameras, directions
from mirage_model.clip import Clip, load_clip, save_clip
from mirage_model.perception.embedded import (
    EmbeddedPerception,
    Network,
    NetworkConfig,
    load_network,
    save_network,
)
from mirage_model.training.context import ContextConfig
from mirage_model.training.perception import TrainConfig, Trainer, losses, main, read_batch, train
from mirage_model.training.perception_augment import AugmentConfig, Batch, augment
from mirage_model.training.perception_scores import evaluate

HEIGHT, WIDTH, FRAMES = 32, 48, 5
PLAIN = AugmentConfig(zoom=1.6, colour=0.0, blur=0.0, noise=0.0, blotches=0.0)
CONFIG = TrainConfig(
    steps=6, batch=2, warmup=2, checkpoint_every=3, network=NetworkConfig(widths=(4, 8, 8, 8))
)


def paint(cameras: Cameras) -> torch.Tensor:
    """A colour for every direction of looking, the same left and right."""
    x, y = directions(cameras)[..., :2].unbind(dim=-1)
    return torch.stack([x.abs(), (y + 1) / 2, torch.full_like(x, 0.5)], dim=1).clamp(0, 1)


def make_clip(name: str, seed: int) -> Clip:
    """A floor under a sky, depth known on the floor alone, with a box that moves."""
    generator = torch.Generator().manual_seed(seed)
    K = torch.tensor([[24.0, 0.0, 22.0], [0.0, 26.0, 15.0], [0.0, 0.0, 1.0]])
    cameras = Cameras(
        K=K.expand(FRAMES, 3, 3),
        world_from_camera=torch.eye(4).repeat(FRAMES, 1, 1),
        times=torch.arange(FRAMES, dtype=torch.float64),
        height=HEIGHT,
        width=WIDTH,
    )
    slope = directions(cameras)[..., 1]
    sky = slope <= 0.05
    depth = torch.where(sky, torch.nan, 1 / slope)
    moving = torch.zeros_like(sky)
    left = int(torch.randint(4, 30, (1,), generator=generator))
    moving[:, 10:20, left : left + 6] = True
    frames = paint(cameras)
    frames = torch.where(moving[:, None], torch.tensor([1.0, 0.0, 0.0])[:, None, None], frames)
    return Clip(
        name=name,
        frames=(frames * 255).round().byte().movedim(1, -1),
        cameras=cameras,
        depth=depth.masked_fill(moving, torch.nan),
        sky=sky & ~moving,
        moving=moving,
    )


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    folder = tmp_path / 'clips'
    folder.mkdir()
    for seed in range(3):
        save_clip(folder / f'{seed}.safetensors', make_clip(str(seed), seed))
    return sorted(folder.glob('*.safetensors'))


def batch_of(clips: list[Path], indices: list[int], seed: int = 0) -> Batch:
    return read_batch(clips, indices, CONFIG.remembered, np.random.default_rng(seed))


def test_a_batch_is_the_frames_of_the_clips(clips: list[Path]):
    batch = batch_of([clips[2], clips[0]], [1, 4])
    clip = load_clip(clips[0])
    torch.testing.assert_close(batch.frames[1], clip.frames[4].movedim(-1, 0) / 255)
    torch.testing.assert_close(batch.depth[1], clip.depth[4], equal_nan=True)
    torch.testing.assert_close(batch.cameras.K[1], clip.cameras.K[4])
    assert batch.names == ('2:1', '0:4')


def test_augmented_cameras_fit_the_augmented_frames(clips: list[Path]):
    """Colours and depth are functions of the direction of looking, before and after."""
    batch = batch_of([clips[0]] * 12, [0] * 12)
    changed = augment(batch, PLAIN, torch.Generator().manual_seed(1))
    assert len(changed.cameras.K[:, 0, 0].unique()) > 4
    assert (changed.cameras.K[:, 0, 2] != batch.cameras.K[:, 0, 2]).sum() > 6
    x, y = directions(changed.cameras)[..., :2].unbind(dim=-1)
    still = ~changed.moving & (x.abs() > 0.15) & (y.abs() < 0.95) & (x.abs() < 0.8)
    near_moving = (
        torch.nn.functional.max_pool2d(changed.moving[:, None].float(), 5, 1, 2)[:, 0] > 0
    )
    error = (changed.frames - paint(changed.cameras)).abs().amax(dim=1)
    assert error[still & ~near_moving].max() < 0.02
    known = torch.isfinite(changed.depth) & (changed.depth < 8)
    assert (changed.depth[known] * y[known] - 1).abs().max() < 0.25
    # a memory is told by cell: half a cell of 8 pixels to either side, at up to 1.6 times the size
    remembered = torch.isfinite(changed.known.depth) & (changed.known.depth < 3)
    assert (
        remembered.any() and not changed.known.observed[~torch.isfinite(changed.known.depth)].any()
    )
    off = (changed.known.depth[remembered] * y[remembered] - 1).abs()
    assert off.median() < 0.25


def test_what_a_memory_knows_is_what_the_other_frames_saw(clips: list[Path]):
    """A camera that stands still: one cell's depth is that of the same cell of any other frame."""
    exact = replace(ContextConfig(), depth_frame=0.0, depth_cell=0.0, position=0.0, rotation=0.0)
    config = replace(CONFIG.remembered, empty=0.0, cell=4, splat_size=1, noise=exact)
    batch = read_batch(clips * 4, [2] * 12, config, np.random.default_rng(0))
    known = torch.isfinite(batch.known.depth)
    assert batch.known.observed.any() and (known & ~batch.known.observed).any()
    rows = torch.arange(HEIGHT) // 4 * 4 + 1.5
    slope = (rows - 15) / 26
    expected = (1 / slope)[:, None].expand_as(batch.depth)
    ratio = (batch.known.depth / expected)[known]
    assert (ratio - 1).abs().median() < 0.02
    empty = replace(config, empty=1.0)
    nothing = read_batch(clips, [0, 1, 2], empty, np.random.default_rng(0)).known
    assert nothing.depth.isnan().all() and not nothing.observed.any()


def test_training_goes_on_from_a_network(clips: list[Path], tmp_path: Path):
    first = train(replace(CONFIG, steps=2), clips, tmp_path / 'first')
    save_network(tmp_path / 'network', first.average, dtype=torch.float32)
    second = Trainer(CONFIG, clips, start=tmp_path / 'network')
    for name, value in first.average.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value), name
    wider = replace(CONFIG, network=NetworkConfig(widths=(8, 8, 8, 8)))
    with pytest.raises(ValueError, match='widths'):
        Trainer(wider, clips, start=tmp_path / 'network')


def test_augmentation_is_repeatable_and_keeps_frames_in_range(clips: list[Path]):
    batch = batch_of(clips, [0, 1, 2])
    first = augment(batch, AugmentConfig(), torch.Generator().manual_seed(3))
    second = augment(batch, AugmentConfig(), torch.Generator().manual_seed(3))
    assert torch.equal(first.frames, second.frames)
    assert first.frames.min() >= 0 and first.frames.max() <= 1
    assert not torch.equal(first.frames, batch.frames)


def test_pixels_of_unknown_depth_pull_at_nothing(clips: list[Path]):
    batch = batch_of(clips, [0, 1, 2])
    torch.manual_seed(0)
    prediction = Network(CONFIG.network)(batch.frames, batch.cameras, batch.known)
    prediction.log_depth.retain_grad()
    terms = losses(prediction, batch, CONFIG)
    torch.stack(list(terms.values())).sum().backward()
    gradient = prediction.log_depth.grad
    assert torch.isfinite(gradient).all()
    assert (gradient[batch.depth.isnan()] == 0).all()
    assert (gradient[~batch.depth.isnan()] != 0).any()


def test_perfect_depth_has_no_depth_loss(clips: list[Path]):
    batch = batch_of(clips, [0, 1, 2])
    prediction = Network(CONFIG.network)(batch.frames, batch.cameras, batch.known)
    exact = replace(prediction, log_depth=batch.depth.nan_to_num(1.0).log())
    terms = losses(exact, batch, CONFIG)
    assert terms['depth'] == 0 and terms['gradient'] == 0


def test_training_learns(clips: list[Path], tmp_path: Path):
    config = replace(CONFIG, steps=60, warmup=5, learning_rate=1e-2)
    train(config, clips, tmp_path / 'run')
    lines = [json.loads(line) for line in (tmp_path / 'run/log.jsonl').read_text().splitlines()]
    first, last = (sum(line['loss'] for line in part) for part in (lines[:10], lines[-10:]))
    assert last < 0.7 * first


def test_a_stopped_run_resumes_exactly(clips: list[Path], tmp_path: Path):
    whole = train(CONFIG, clips, tmp_path / 'whole')
    train(CONFIG, clips, tmp_path / 'parts', stop_at=3)
    parts = train(CONFIG, clips, tmp_path / 'parts')
    assert (tmp_path / 'whole/log.jsonl').read_text() == (tmp_path / 'parts/log.jsonl').read_text()
    for a, b in ((whole.network, parts.network), (whole.average, parts.average)):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name


def test_a_run_killed_between_checkpoints_leaves_one_curve(clips: list[Path], tmp_path: Path):
    whole = train(CONFIG, clips, tmp_path / 'whole')
    train(CONFIG, clips, tmp_path / 'parts', stop_at=3)
    with open(tmp_path / 'parts/log.jsonl', 'a') as log:
        log.write(json.dumps({'step': 4, 'loss': 0.0}) + '\n')
    parts = train(CONFIG, clips, tmp_path / 'parts')
    assert (tmp_path / 'whole/log.jsonl').read_text() == (tmp_path / 'parts/log.jsonl').read_text()
    assert parts.step_number == whole.step_number


def test_another_configuration_is_refused_in_the_same_folder(clips: list[Path], tmp_path: Path):
    train(CONFIG, clips, tmp_path / 'run', stop_at=1)
    with pytest.raises(ValueError, match='another run'):
        train(replace(CONFIG, seed=1), clips, tmp_path / 'run')
    with pytest.raises(ValueError, match='another run'):
        train(CONFIG, clips[:2], tmp_path / 'run')


def test_no_clips_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match='no clips'):
        train(CONFIG, [], tmp_path / 'run')


def test_a_loss_that_is_not_finite_names_the_step_and_the_frames(clips: list[Path]):
    trainer = Trainer(CONFIG, clips)
    with torch.no_grad():
        trainer.network.head.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"step 0: \('\d:\d', '\d:\d'\)"):
        trainer.step()


def test_scores_are_those_of_a_plain_loop_over_pixels(clips: list[Path]):
    torch.manual_seed(1)
    network = Network(CONFIG.network).eval()
    scores = evaluate(network, clips, every=2)
    perception, abs_rel, deltas, both, either = EmbeddedPerception(network), [], [], 0, 0
    for path in clips:
        clip, errors, within = load_clip(path), [], []
        for i in range(0, FRAMES, 2):
            frame = clip.frames[i : i + 1].movedim(-1, 1) / 255
            estimate = perception.estimate(frame, clip.cameras[i : i + 1])
            for y in range(HEIGHT):
                for x in range(WIDTH):
                    truth, guess = float(clip.depth[i, y, x]), float(estimate.depth[0, y, x])
                    both += bool(clip.sky[i, y, x] and estimate.sky[0, y, x])
                    either += bool(clip.sky[i, y, x] or estimate.sky[0, y, x])
                    if truth > 0 and guess > 0:
                        errors.append(abs(guess - truth) / truth)
                        within.append(max(guess / truth, truth / guess) < 1.25)
        abs_rel.append(sum(errors) / len(errors))
        deltas.append(sum(within) / len(within))
    assert scores['depth_abs_rel'] == pytest.approx(sum(abs_rel) / 3, rel=1e-4)
    assert scores['depth_delta1'] == pytest.approx(sum(deltas) / 3, rel=1e-4)
    assert scores['sky_iou'] == pytest.approx(both / either, rel=1e-4)
    # the jackknife of a mean is its standard error
    spread = torch.tensor(abs_rel).std() / 3**0.5
    assert scores['depth_abs_rel_se'] == pytest.approx(float(spread), rel=1e-3)
    assert scores['clips'] == 3 and scores['frames'] == 9


def test_the_command_leaves_weights_and_scores(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, out = str(clips[0].parent), tmp_path / 'run'
    arguments = ['--clips', folder, '--validation', folder, '--out', str(out)]
    words = ['--steps', '2', '--batch', '2', '--no-bfloat16']
    monkeypatch.setattr(sys, 'argv', ['perception', *arguments, *words])
    main()
    assert json.loads((out / 'run.json').read_text())['config']['bfloat16'] is False
    assert load_network(out / 'network').config == NetworkConfig()
    scores = json.loads((out / 'validation.json').read_text())
    assert {'depth_abs_rel', 'sky_iou', 'mover_iou', 'mover_iou_se', 'frames'} <= scores.keys()
