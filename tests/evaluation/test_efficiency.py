"""The efficiency benchmark runs at sizes where its metrics have no meaning."""

from __future__ import annotations

import csv
from dataclasses import replace
import json
import math
import time

from models import CHUNK_FRAMES, HEIGHT, WIDTH, save_small_model
import numpy as np
import pytest
import torch

from mirage_model.camera import Cameras, unproject
from mirage_model.clip import Clip
from mirage_model.data.record import open_world
from mirage_model.evaluation import rollout_quality
from mirage_model.evaluation.benchmarks import efficiency
from mirage_model.evaluation.benchmarks.efficiency import (
    CEILING,
    END,
    WALL,
    ComposedSize,
    CountingEncoder,
    TimedMemory,
    composed_rows,
    corridor_cameras,
    corridor_depth,
    machine,
    main,
    measure_composed,
    memory_laps,
    once,
    rollout_rows,
    run_whole,
)
from mirage_model.evaluation.benchmarks.efficiency_page import (
    SAMPLES,
    Results,
    Row,
    ratio_table,
    spread,
    write_page,
)
from mirage_model.evaluation.config import EfficiencyConfig
from mirage_model.memory import Encoder, Memory
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.registry import MEMORIES
from mirage_model.model.checkpoint import Model, load_model
from mirage_model.model.codec import WAN22_VAE, Codec

SMALL_VAE = WAN22_VAE | {
    'base_dim': 4,
    'decoder_base_dim': 4,
    'num_res_blocks': 1,
    'z_dim': 3,
    'latents_mean': [0.0] * 3,
    'latents_std': [1.0] * 3,
}
SMALL = ComposedSize(name='small', vae=SMALL_VAE, height=64, width=96, chunk_frames=9, step=0.1)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Model:
    return load_model(save_small_model(tmp_path_factory.mktemp('model')))


def clip(chunks: int) -> Clip:
    n = chunks * (CHUNK_FRAMES - 1) + 1
    K = torch.tensor([[24.0, 0.0, 23.5], [0.0, 24.0, 15.5], [0.0, 0.0, 1.0]])
    poses = torch.eye(4).repeat(n, 1, 1)
    poses[:, 2, 3] = 0.02 * torch.arange(n)
    nowhere = torch.zeros(n, HEIGHT, WIDTH, dtype=torch.bool)
    return Clip(
        name='wall',
        frames=torch.randint(0, 256, (n, HEIGHT, WIDTH, 3), dtype=torch.uint8),
        cameras=Cameras(
            K=K.expand(n, 3, 3),
            world_from_camera=poses,
            times=torch.arange(n).double(),
            height=HEIGHT,
            width=WIDTH,
        ),
        depth=torch.full((n, HEIGHT, WIDTH), 3.0),
        sky=nowhere,
        moving=nowhere,
    )


def row(**changes) -> Row:
    fields = {'memory': 'latent', 'run': 0, 'chunk': 1, 'frames': 8}
    fields |= {'read': 0.1, 'masks': 0.2, 'write': 0.3, 'rest': 0.4}
    return Row(**{**fields, 'nbytes': 2**20, 'index_nbytes': 8, 'points': 4, **changes})


@pytest.mark.slow
def test_a_rollout_gives_a_row_for_every_chunk(model):
    for rows in run_whole(model, clip(2), run=1):
        name = rows[0].memory
        assert [one.chunk for one in rows] == [1, 2] and {one.run for one in rows} == {1}
        for one in rows:
            assert one.frames == CHUNK_FRAMES - 1 and one.rest > 0
            assert min(one.read, one.masks, one.write) > 0
            assert (one.nbytes > 0) == (one.points > 0) == (name != 'none')


def test_the_parts_of_a_chunk_add_up_to_the_whole(model):
    start = time.perf_counter()
    rows = rollout_rows(model, clip(3), 'latent', 7)
    elapsed = time.perf_counter() - start
    assert {one.run for one in rows} == {7}
    assert 0.3 * elapsed < sum(one.total for one in rows) < elapsed


def test_the_corridor_ends_at_its_walls():
    cameras = corridor_cameras(SMALL, 3, start=5)
    assert cameras.times.tolist() == [5 / 16, 6 / 16, 7 / 16]
    points = unproject(corridor_depth(cameras), cameras)
    on = [
        points[..., 0].abs().sub(WALL).abs() < 1e-4,
        points[..., 1].abs().sub(CEILING).abs() < 1e-4,
        points[..., 2].sub(END).abs() < 1e-3,
    ]
    assert (on[0] | on[1] | on[2]).all() and all(side.any() for side in on[:2])
    assert (points[..., 0].abs() < WALL + 1e-4).all()
    assert (points[..., 1].abs() < CEILING + 1e-4).all()


def test_the_large_codec_has_the_published_size():
    vae = Codec.untrained(WAN22_VAE, device='meta').vae
    assert sum(parameter.numel() for parameter in vae.parameters()) == 704_688_668


@pytest.mark.parametrize('name', MEMORIES)
def test_memories_complete_a_composed_rollout(name):
    laps = memory_laps(SMALL, name, 2)
    for lap in laps:
        assert lap['read'] + lap['masks'] + lap['write'] <= lap['whole']
        assert lap['encoded_to_read'] == (3 if name == 'rgb_cloud' else 0)
    assert (laps[-1]['nbytes'] > 0) == (name != 'none')
    assert json.loads(json.dumps(laps)) == laps


def test_the_counting_encoder_has_the_sizes_of_the_codec():
    codec = Codec.untrained(SMALL_VAE)
    encoder = CountingEncoder(codec)
    frames = torch.zeros(2, 3, 32, 48)
    assert isinstance(encoder, Encoder)
    assert encoder.encode_images(frames).shape == codec.encode_images(frames).shape
    assert encoder.encoded == 2


def test_a_composed_rollout_is_the_sum_of_its_parts():
    def lap(read: int) -> dict:
        return {
            'read': 1.0,
            'masks': 2.0,
            'write': 3.0,
            'whole': 9.0,
            'nbytes': 5,
            'index_nbytes': 6,
            'points': 7,
            'encoded_to_read': read,
        }

    done = {'encode-0': 10.0, 'decode-1-0': 100.0, 'decode-2-0': 140.0}
    done |= {f'{name}-0': [lap(0)] * 2 for name in MEMORIES}
    done['rgb_cloud-0'] = [lap(3)] * 2
    rows = composed_rows(SMALL, done, runs=1)
    assert len(rows) == 2 * len(MEMORIES)
    by_name = {one.memory: one for one in rows}
    decode = 100 + 2 * 40  # the first latent frame and two more
    latent, rgb = by_name['latent'], by_name['rgb_cloud']
    assert (latent.read, latent.masks, latent.write, latent.rest) == (1, 2, 3, decode + 10)
    assert (rgb.read, rgb.masks, rgb.write, rgb.rest) == (31, 2, 3, decode + 10)
    assert latent.total == 1 + 2 + 3 + decode + 10 and rgb.frames == 8


def test_finished_timings_are_kept(tmp_path):
    path = tmp_path / 'a' / 'timing.json'
    assert once(path, lambda: [1, 2])['value'] == [1, 2]
    assert once(path, lambda: 1 / 0)['value'] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        once(tmp_path / 'other.json', lambda: 1 / 0)
    assert [found.name for found in tmp_path.rglob('*') if found.is_file()] == ['timing.json']


def test_the_command_continues_where_it_was_stopped(tmp_path, capsys):
    config = EfficiencyConfig(sizes=('wan22_5b',), chunks=2, runs=1, out=tmp_path)
    assert main(config, SMALL) == 0
    (tmp_path / 'small-2' / 'rgb_cloud-0.json').unlink()
    capsys.readouterr()
    assert main(config, SMALL) == 0
    printed = capsys.readouterr().out
    assert 'latent-0: now' not in printed and 'rgb_cloud-0: now' in printed
    assert '| rgb_cloud |' in printed and '| RGB cloud / latent | chunk 1 | chunk 2 |' in printed
    changed = tmp_path / 'small-2' / 'latent-0.json'
    timing = json.loads(changed.read_text())
    timing['machine']['processor'] = 'another'
    changed.write_text(json.dumps(timing))
    with pytest.raises(ValueError, match='several machines'):
        measure_composed(tmp_path, SMALL, 2, 1)


@pytest.mark.slow
def test_both_sizes_make_the_page(model, tmp_path, monkeypatch):
    """A clip of another size stands in for the simulated world, whose frames have one size."""
    drives = []

    def trajectory(index: int, frames: int) -> Clip:
        drives.append(index)
        return clip((frames - 1) // (CHUNK_FRAMES - 1))

    monkeypatch.setattr(efficiency, 'load_model', lambda folder: model)
    monkeypatch.setattr(efficiency, 'trajectory', trajectory)
    short = EfficiencyConfig(chunks=1, runs=1, out=tmp_path / 'out', docs=tmp_path / 'docs')
    embedded = replace(short, sizes=('embedded',))
    assert main(embedded, SMALL) == 0
    assert not (tmp_path / 'docs').exists()
    assert main(short, SMALL) == 0
    assert drives == [efficiency.TRAJECTORY]  # measured once
    assert main(replace(embedded, runs=2), SMALL) == 0
    assert drives == [efficiency.TRAJECTORY] * 2  # the first run counts as one of the two
    page = (tmp_path / 'docs' / 'efficiency.md').read_text()
    assert page.count('**Composed, not run.**') == 1 and '## small-random' in page
    assert {path.name for path in (tmp_path / 'docs' / 'efficiency').iterdir()} == {
        f'{name}.{end}' for name in ('small-random', 'small') for end in ('csv', 'png')
    }


@pytest.mark.slow
def test_trajectory_moves_in_every_chunk(monkeypatch):
    """A camera that stands still adds nothing to any memory: the curves would say nothing."""

    planned = []

    def plan(map_name: str, kind: str, *, frames: int, seed: int, name: str) -> Clip:
        with open_world(map_name, seed=seed) as world:
            planned.append(world.plan(kind, frames, np.random.default_rng(seed)))
        return clip(1)

    monkeypatch.setattr(rollout_quality, 'record_trajectory', plan)
    rollout_quality.trajectory(efficiency.TRAJECTORY, 20 * 16 + 1)
    ends = planned[0][::16, :3, 3]
    assert len(ends) == 21 and np.linalg.norm(np.diff(ends, axis=0), axis=1).min() > 1.0


def test_the_page_shows_medians_and_spread_of_every_memory(tmp_path):
    rows = [
        row(memory=name, run=run, chunk=chunk, read=read * (run + 1), nbytes=size * chunk)
        for name, read, size in (('latent', 0.008, 2**20), ('rgb_cloud', 16.0, 2**26))
        for run in range(3)
        for chunk in (1, 2)
    ]
    results = Results(size='s', about='About.', machine=machine(), composed=True, rows=rows)
    assert results.values('latent', SAMPLES['read [ms a frame]'], 2) == [1.0, 2.0, 3.0]
    whole = (0.008 * 2 + 0.9) / 8 * 1e3
    assert math.isclose(results.values('latent', SAMPLES['end to end [ms a frame]'], 2)[1], whole)
    (tmp_path / 'efficiency.md').write_text('# Title\n\nKept.\n\n## old\n')
    write_page(tmp_path, [results, replace(results, size='t', composed=False)])
    page = (tmp_path / 'efficiency.md').read_text()
    assert page.startswith('# Title\n\nKept.\n\n## s\n') and '## old' not in page
    assert '| latent | 2 (1 to 3) |' in page and page.count('About.') == 2
    assert '| read | 2,000 | 2,000 | at least 1,000: holds |' in page
    assert '| points | 64 | 64 | at least 55: holds |' in page
    assert page.count('holds') == 2  # nothing was expected of what was run whole
    assert page.count('| points and index | 64 | 64 |') == 2
    assert (tmp_path / 'efficiency' / 's.png').read_bytes().startswith(b'\x89PNG')
    with (tmp_path / 'efficiency' / 't.csv').open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == 12 and read[0]['composed'] == 'False' and read[0]['nbytes'] == '1048576'
    slow = [one for one in rows if one.memory == 'latent']
    slow += [replace(one, memory='rgb_cloud') for one in slow]
    assert ratio_table(replace(results, rows=slow)).count('does not hold') == 2


def test_spread_of_equal_values_is_one_value():
    assert spread([2.0, 2.0, 2.0]) == '2' and spread([3.0, 1.0, 2.0]) == '2 (1 to 3)'


def test_a_timed_memory_is_a_memory():
    timed = TimedMemory(NoMemory(4))
    assert isinstance(timed, Memory) and isinstance(timed.fork(), TimedMemory)
