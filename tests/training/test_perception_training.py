"""Training of the perception network: batches, losses, scores, and runs that resume exactly."""

from __future__ import annotations

from dataclasses import asdict, replace
import json
from pathlib import Path

import numpy as np
import pytest
from test_trainer import curve
import torch

from mirage_model.camera import Cameras, directions
from mirage_model.cli import main
from mirage_model.clip import Clip, load_clip, save_clip
from mirage_model.perception.embedded import (
    EmbeddedPerception,
    Network,
    NetworkConfig,
    load_network,
)
from mirage_model.training.config import ContextConfig, TrainerConfig
from mirage_model.training.perception import PerceptionObjective, losses, read_batch
from mirage_model.training.perception_augment import FrameBatch, augment
from mirage_model.training.perception_config import AugmentConfig, PerceptionConfig
from mirage_model.training.perception_scores import evaluate
from mirage_model.training.trainer import DivergedError, checkpoints, fit

HEIGHT, WIDTH, FRAMES = 32, 48, 5
PLAIN = AugmentConfig(zoom=1.6, colour=0.0, blur=0.0, noise=0.0, blotches=0.0)
CONFIG = PerceptionConfig(batch=2, widths=(4, 8, 8, 8))
TRAINER = TrainerConfig(
    steps=6,
    warmup_steps=2,
    checkpoint_every=3,
    validate_every=6,
    log_every=1,
    learning_rate=2e-3,
    weight_decay=0.02,
    clip_norm=5.0,
    precision='no',
)


def network() -> Network:
    torch.manual_seed(0)
    return Network(NetworkConfig(widths=CONFIG.widths))


def train(
    clips: list[Path],
    run: Path,
    trainer: TrainerConfig = TRAINER,
    config: PerceptionConfig = CONFIG,
) -> PerceptionObjective:
    objective = PerceptionObjective(network(), config, clips, clips)
    described = {'perception': asdict(config), 'clips': [path.name for path in clips]}
    fit(objective, trainer, run, full_config=described)
    return objective


def paint(cameras: Cameras) -> torch.Tensor:
    """Paint a colour for every direction of looking, equal left and right."""
    x, y = directions(cameras)[..., :2].unbind(dim=-1)
    return torch.stack([x.abs(), (y + 1) / 2, torch.full_like(x, 0.5)], dim=1).clamp(0, 1)


def make_clip(name: str, seed: int) -> Clip:
    """Write a clip of a floor under a sky, with depth on the floor alone and a box that moves."""
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


def batch_of(clips: list[Path], indices: list[int], seed: int = 0) -> FrameBatch:
    return read_batch(clips, indices, CONFIG.memory, np.random.default_rng(seed))


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
    remembered = torch.isfinite(changed.memory_depth.depth) & (changed.memory_depth.depth < 3)
    assert (
        remembered.any()
        and not changed.memory_depth.observed[~torch.isfinite(changed.memory_depth.depth)].any()
    )
    off = (changed.memory_depth.depth[remembered] * y[remembered] - 1).abs()
    assert off.median() < 0.25


def test_memory_depth_is_that_of_the_other_frames(clips: list[Path]):
    """The camera stands still, so a cell's depth is that of the same cell of any other frame."""
    exact = replace(ContextConfig(), depth_frame=0.0, depth_cell=0.0, position=0.0, rotation=0.0)
    config = replace(CONFIG.memory, empty=0.0, cell=4, splat_size=1, noise=exact)
    batch = read_batch(clips * 4, [2] * 12, config, np.random.default_rng(0))
    known = torch.isfinite(batch.memory_depth.depth)
    assert batch.memory_depth.observed.any() and (known & ~batch.memory_depth.observed).any()
    rows = torch.arange(HEIGHT) // 4 * 4 + 1.5
    slope = (rows - 15) / 26
    expected = (1 / slope)[:, None].expand_as(batch.depth)
    ratio = (batch.memory_depth.depth / expected)[known]
    assert (ratio - 1).abs().median() < 0.02
    empty = replace(config, empty=1.0)
    nothing = read_batch(clips, [0, 1, 2], empty, np.random.default_rng(0)).memory_depth
    assert nothing.depth.isnan().all() and not nothing.observed.any()


def test_augmentation_is_repeatable_and_keeps_frames_in_range(clips: list[Path]):
    batch = batch_of(clips, [0, 1, 2])
    first = augment(batch, AugmentConfig(), torch.Generator().manual_seed(3))
    second = augment(batch, AugmentConfig(), torch.Generator().manual_seed(3))
    assert torch.equal(first.frames, second.frames)
    assert first.frames.min() >= 0 and first.frames.max() <= 1
    assert not torch.equal(first.frames, batch.frames)


def test_pixels_of_unknown_depth_have_no_gradient(clips: list[Path]):
    batch = batch_of(clips, [0, 1, 2])
    torch.manual_seed(0)
    prediction = network()(batch.frames, batch.cameras, batch.memory_depth)
    prediction.log_depth.retain_grad()
    terms = losses(prediction, batch, CONFIG)
    torch.stack(list(terms.values())).sum().backward()
    gradient = prediction.log_depth.grad
    assert torch.isfinite(gradient).all()
    assert (gradient[batch.depth.isnan()] == 0).all()
    assert (gradient[~batch.depth.isnan()] != 0).any()


def test_perfect_depth_has_no_depth_loss(clips: list[Path]):
    batch = batch_of(clips, [0, 1, 2])
    prediction = network()(batch.frames, batch.cameras, batch.memory_depth)
    exact = replace(prediction, log_depth=batch.depth.nan_to_num(1.0).log())
    terms = losses(exact, batch, CONFIG)
    assert terms['depth'] == 0 and terms['gradient'] == 0


@pytest.mark.slow
def test_training_learns(clips: list[Path], tmp_path: Path):
    train(clips, tmp_path / 'run', replace(TRAINER, steps=60, warmup_steps=5, learning_rate=1e-2))
    losses = [value for _, value in curve(tmp_path / 'run', 'train/loss')]
    assert len(losses) == 60 and sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_stopped_run_resumes_exactly(clips: list[Path], tmp_path: Path):
    """Weights, their average, and the statistics of batch norm are those of the unbroken run."""
    whole = train(clips, tmp_path / 'whole')
    with pytest.raises(DivergedError):
        stopped = PerceptionObjective(network(), CONFIG, clips, clips)
        step = stopped.step

        def failing(module, rng, generator, at: int):
            result = step(module, rng, generator, at)
            return replace(result, loss=result.loss * (torch.nan if at == 4 else 1.0))

        stopped.step = failing
        described = {'perception': asdict(CONFIG), 'clips': [path.name for path in clips]}
        fit(stopped, TRAINER, tmp_path / 'parts', full_config=described)
    assert checkpoints(tmp_path / 'parts')[-1].name == 'checkpoint-0000003'
    resumed = train(clips, tmp_path / 'parts')
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    for tag in ('train/loss', 'train/depth', 'validation/depth_abs_rel'):
        assert curve(tmp_path / 'whole', tag) == curve(tmp_path / 'parts', tag)


def test_the_average_follows_the_weights(clips: list[Path]):
    objective = PerceptionObjective(network(), replace(CONFIG, average=0.5), clips, clips)
    name = 'head.bias'
    expected = objective.module.average.state_dict()[name].clone()
    for step in range(20):
        with torch.no_grad():
            objective.module.network.head.bias.fill_(float(step))
        objective.after_step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(objective.module.average.state_dict()[name], expected)


def test_another_configuration_does_not_resume(clips: list[Path], tmp_path: Path):
    train(clips, tmp_path, replace(TRAINER, steps=1))
    with pytest.raises(ValueError, match=r'began with another trainer\.seed'):
        train(clips, tmp_path, replace(TRAINER, seed=1))
    with pytest.raises(ValueError, match='began with another clips'):
        train(clips[:2], tmp_path)


def test_no_clips_are_rejected():
    with pytest.raises(ValueError, match='clips: none'):
        PerceptionObjective(network(), CONFIG, [], [])


def test_a_diverged_loss_names_the_step_and_the_frames(clips: list[Path], tmp_path: Path):
    objective = PerceptionObjective(network(), CONFIG, clips, clips)
    with torch.no_grad():
        objective.module.network.head.bias.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"step 0: \['\d:\d', '\d:\d'\]"):
        fit(objective, TRAINER, tmp_path, full_config={})


def test_scores_are_those_of_a_plain_loop_over_pixels(clips: list[Path]):
    torch.manual_seed(1)
    scored = network().eval()
    scores = evaluate(scored, clips, every=2)
    perception, abs_rel, deltas, both, either = EmbeddedPerception(scored), [], [], 0, 0
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


def test_the_command_leaves_weights_and_scores(clips: list[Path], tmp_path: Path, capsys):
    folder = tmp_path / 'split'
    for split in ('train', 'validation'):
        (folder / split).mkdir(parents=True)
        for path in clips:
            save_clip(folder / split / path.name, load_clip(path))
    run = tmp_path / 'run'
    words = ['train', 'perception', '--clips', str(folder), '--run', str(run), '--batch', '2']
    assert main([*words, '--steps', '1', '--precision', 'no']) == 0
    described = json.loads((run / 'config.json').read_text())
    assert described['trainer']['precision'] == 'no'
    assert load_network(run / 'network').config == NetworkConfig()
    scores = json.loads((run / 'validation.jsonl').read_text())
    assert {'depth_abs_rel', 'sky_iou', 'mover_iou', 'mover_iou_se', 'frames'} <= scores.keys()
    # clips that were recorded since the run began are left out
    save_clip(folder / 'train' / 'later.safetensors', load_clip(clips[0]))
    assert main([*words, '--steps', '2', '--precision', 'no']) == 0
    started = [*words[:5], str(tmp_path / 'next'), '--from', str(run / 'network')]
    started += ['--precision', 'no']
    assert main([*started, '--steps', '1', '--batch', '2', '--widths', '4', '8', '8', '8']) == 1
    assert 'widths are (24, 48, 80, 112), must be (4, 8, 8, 8)' in capsys.readouterr().err
    assert main([*started, '--steps', '1', '--batch', '2', '--learning-rate', '1e-9']) == 0
    first, second = (load_network(path / 'network') for path in (run, tmp_path / 'next'))
    torch.testing.assert_close(first.head.bias, second.head.bias)
