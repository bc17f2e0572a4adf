from __future__ import annotations

from dataclasses import replace
import json
import math

from models import small_vae
import pytest
from small_data import clip_of, save_data, small_objective
import torch

from mirage_model.clip import labels
from mirage_model.memory.registry import MEMORIES
from mirage_model.model.codec import Codec
from mirage_model.training.ablations import (
    VARIANTS,
    Data,
    LabelPerception,
    run_all,
    summarise,
    to_markdown,
    visible_in_first_frame,
    with_variant_labels,
)
from mirage_model.training.config import (
    AblationConfig,
    ContextConfig,
    TrainerConfig,
    WorldModelConfig,
)
from mirage_model.training.stages import TRAINED
from mirage_model.training.trainer import checkpoints, fit

CONFIG = AblationConfig(steps=4, seeds=2, batch=1, clips=2, sampler_steps=1)


def test_variants_are_configurations():
    configs = {}
    for name, variant in VARIANTS.items():
        context = ContextConfig(**variant.context)
        configs[name] = WorldModelConfig(context=context, **variant.world_model)
        assert set(variant.stages) <= TRAINED.keys()
    assert configs['full'] == configs['one_stage'] == WorldModelConfig()
    assert {config.memory for config in configs.values()} <= MEMORIES.keys()
    assert configs['depth_15'].context.sensor == 0.15 and not configs['no_filter'].dynamic_filter
    assert VARIANTS['one_stage'].stages == ('joint',)


def test_depth_has_the_noise_of_the_variant():
    clip, codec = clip_of('a', 0), Codec(small_vae())
    config = WorldModelConfig(context=ContextConfig(sensor=0.05))
    seen = with_variant_labels(clip, config, codec, seed=0)
    log_ratio = (seen.depth / clip.depth).log()
    cells = log_ratio.unflatten(1, (4, 8)).unflatten(3, (6, 8))
    assert torch.equal(cells.amax(dim=(2, 4)), cells.amin(dim=(2, 4)))
    assert float(cells[:, :, 0, :, 0].std()) == pytest.approx(0.05, rel=0.1)
    again = with_variant_labels(clip, config, codec, seed=0)
    assert torch.equal(seen.depth, again.depth) and torch.equal(seen.moving, clip.moving)
    assert torch.equal(
        with_variant_labels(clip, WorldModelConfig(), codec, seed=0).depth, clip.depth
    )


def test_label_perception_returns_labels_of_the_frames():
    clip = clip_of('a', 0)
    clip = replace(clip, depth=clip.depth * torch.arange(1, 34)[:, None, None])
    at = [3, 17, 30]
    seen = LabelPerception(labels(clip, slice(None))).estimate(
        torch.rand(3, 3, 32, 48), clip.cameras[at]
    )
    assert torch.equal(seen.depth, clip.depth[at])
    assert torch.equal(seen.cameras.times, clip.cameras.times[at])


def test_visibility_in_the_first_frame_is_exact():
    clip, codec = clip_of('a', 0), Codec(small_vae())
    covered = visible_in_first_frame(clip, codec)
    assert covered.shape == (32, 32, 48)
    shares = covered.float().mean(dim=(1, 2))
    # the camera moves to the right, away from what it saw
    assert shares[0] > 0.8 > shares[15] > shares[-1] and shares[-1] < 0.2


def test_the_table_has_means_and_standard_errors():
    results = {
        'full': [
            {'psnr_db': 20.0, 'closed_loop_psnr_db': 19.0},
            {'psnr_db': 22.0, 'closed_loop_psnr_db': 19.0},
        ],
        'no_memory': [{'psnr_db': 15.0, 'closed_loop_psnr_db': 12.5}] * 2,
    }
    summary = summarise(results)
    assert summary['full']['psnr_db'] == {'mean': 21.0, 'se': 1.0, 'seeds': [20.0, 22.0]}
    table = to_markdown(summary)
    assert '| full | 21.00 ± 1.00 | 19.00 ± 0.00 |' in table
    assert '| no memory | 15.00 ± 0.00 | 12.50 ± 0.00 |' in table
    once = summarise({'full': results['full'][:1]})
    assert once['full']['psnr_db']['se'] is None and '| full | 20.00 | 19.00 |' in to_markdown(
        once
    )


@pytest.fixture
def data(tmp_path, small_sizes) -> Data:
    clips = [clip_of('a', 0), clip_of('b-out_and_back', 1)]
    root = save_data(tmp_path / 'data', {'train': clips, 'validation': clips})
    config = WorldModelConfig(stage='backbone', batch=1, validation_clips=1, sampler_steps=1)
    fit(
        small_objective(root, config),
        TrainerConfig(steps=1),
        tmp_path / 'backbone',
        full_config={},
    )
    return Data(
        latents=root / 'latents',
        clips=root / 'clips',
        codec=Codec(small_vae()),
        backbone=checkpoints(tmp_path / 'backbone')[-1],
        digests={'latents': 'a', 'codec': 'b'},
    )


@pytest.mark.slow
def test_ablations_are_trained_measured_and_resumed(data, tmp_path):
    out, names = tmp_path / 'out', ['full', 'one_stage']
    summary = run_all(names, CONFIG, data, out)
    assert list(summary) == names
    for name in names:
        assert len(summary[name]['psnr_db']['seeds']) == 2
        assert math.isfinite(summary[name]['closed_loop_psnr_db']['mean'])
    steps = [
        sum(
            json.loads((out / name / 'seed-0' / stage / 'config.json').read_text())['trainer'][
                'steps'
            ]
            for stage in VARIANTS[name].stages
        )
        for name in names
    ]
    assert steps == [CONFIG.steps] * 2
    written = json.loads((out / 'ablations.json').read_text())
    assert written['variants'] == summary and (out / 'ablations.md').read_text() == to_markdown(
        summary
    )

    # what is there is not done again; what is missing comes out as it was
    before = (out / 'full' / 'seed-0' / 'metrics.json').stat().st_mtime_ns
    (out / 'full' / 'seed-1' / 'metrics.json').unlink()
    assert run_all(names, CONFIG, data, out) == summary
    assert (out / 'full' / 'seed-0' / 'metrics.json').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match='another steps'):
        run_all(names, replace(CONFIG, steps=6), data, out)
    with pytest.raises(ValueError, match='another backbone'):
        other = replace(data, backbone=checkpoints(out / 'full' / 'seed-0' / 'adapter')[-1])
        run_all(names, CONFIG, other, out)
