"""The whole protocol runs on a tiny folder of the published layout, with a small real model."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import cv2
import drives  # noqa: F401
from models import save_small_model
import numpy as np
import pytest
import torch

from mirage_model.cli import main
from mirage_model.data.realestate10k import RealEstate10K
from mirage_model.data.sources import Layout
from mirage_model.engine.engine import Engine
from mirage_model.evaluation.image_quality import REGIONS
from mirage_model.evaluation.protocols.realestate10k import choose, imagine_along
from mirage_model.perception.embedded import Network, NetworkConfig, save_network

pytestmark = pytest.mark.slow

HEIGHT, WIDTH, FRAMES = 64, 96, 17


def write_sequence(root: Path, name: str, *, moving: bool = True) -> None:
    """Write a drive sideways along a wall of blobs; a unit of length moves its picture by 96
    pixels."""
    noise = torch.rand(1, 3, 16, 40, generator=torch.Generator().manual_seed(len(name)))
    wall = torch.nn.functional.interpolate(noise, scale_factor=6, mode='bicubic').clamp(0, 1)[0]
    wall = (wall * 255).byte().permute(1, 2, 0).numpy()
    lines = [f'https://www.youtube.com/watch?v={name}']
    (root / 'frames' / name).mkdir(parents=True)
    (root / 'text').mkdir(exist_ok=True)
    for i in range(FRAMES):
        stamp, shift = 1_000_000 + i * 125_000, 2 * i if moving else 0
        # camera_from_world: the camera is at (x, 0, 0)
        x = shift / WIDTH
        lines.append(f'{stamp} 1.0 1.5 0.5 0.5 0 0 1 0 0 {-x} 0 1 0 0 0 0 1 0')
        frame = wall[8 : 8 + HEIGHT, shift : shift + WIDTH, ::-1]
        cv2.imwrite(str(root / 'frames' / name / f'{stamp}.png'), frame)
    (root / 'text' / f'{name}.txt').write_text('\n'.join(lines) + '\n')


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('realestate10k')
    for name in ('one', 'three'):
        write_sequence(folder, name)
    write_sequence(folder, 'still', moving=False)
    save_small_model(folder / 'model')
    network = Network(
        NetworkConfig(
            widths=(8, 8, 8, 8), sky_threshold=1.0, moving_threshold=1.0, max_error_ratio=1e9
        )
    )
    with torch.no_grad():  # sure of its depth, untrained as it is
        network.head.weight[4:8], network.head.bias[4:8] = 0.0, -5.0
    save_network(folder / 'model' / 'perception', network)
    return folder


def command(root: Path, out: Path, manifest: Path, *more: str) -> int:
    words = ['--text', str(root / 'text'), '--frames', str(root / 'frames'), *more]
    words += ['--manifest', str(manifest), '--out', str(out), '--model', str(root / 'model')]
    return main(['evaluate', 'realestate10k', '--length', str(FRAMES), *words])


def strictly(text: str) -> dict:
    """Read JSON as other languages do: without NaN."""

    def refuse(name: str) -> float:
        raise AssertionError(f'{name} is no JSON')

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope='module')
def done(root) -> Path:
    manifest = root / 'manifest.txt'
    manifest.write_text('one\nthree\nstill\nabsent\n')
    assert command(root, root / 'out', manifest) == 0
    return root / 'out'


def test_every_clip_has_metrics_or_a_reason(done):
    summary = strictly((done / 'realestate10k.json').read_text())
    for clip in ('one', 'three'):
        strictly((done / 'clips' / f'{clip}.json').read_text())
    assert (summary['clips'], summary['failed_clips']) == (2, 2)
    assert summary['failed'].keys() == {'still', 'absent'}
    assert 'the camera moves too little' in summary['failed']['still']
    assert summary['failed']['absent'] == 'frames: none can be used'
    assert 'lpips' in summary['missing'] and 'lpips' not in summary['metrics']
    with (done / 'clips.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['clip'] for row in rows] == ['one-00000', 'three-00000']
    for name, figure in summary['metrics'].items():
        values = [float(row[name]) for row in rows if row[name]]
        assert figure['count'] == len(values)
        assert figure['mean'] == (pytest.approx(np.mean(values)) if values else None)
    regions = [f'{end}psnr_{region}' for end in ('', 'closed_loop_') for region in REGIONS]
    assert summary['metrics'].keys() > set(regions)
    assert {row['frames'] for row in rows} == {str(FRAMES - 1)}


def test_finished_clips_are_read_back(root, done):
    (done / 'clips' / 'one.json').write_text(
        json.dumps({**json.loads((done / 'clips' / 'one.json').read_text()), 'psnr_all': 99.0})
    )
    assert command(root, done, root / 'manifest.txt') == 0
    summary = json.loads((done / 'realestate10k.json').read_text())
    assert summary['metrics']['psnr_all']['high'] > 40


def test_clips_of_another_model_or_layout_are_rejected(root, done, capsys):
    words = ['--length', str(FRAMES - 4)]
    assert command(root, done, root / 'manifest.txt', *words) == 1
    assert 'began with another layout' in capsys.readouterr().err
    claimed = json.loads((done / 'config.json').read_text())
    (done / 'config.json').write_text(json.dumps({**claimed, 'sha256': 'of others'}))
    assert command(root, done, root / 'manifest.txt') == 1
    assert 'began with another sha256' in capsys.readouterr().err


def test_imagining_along_a_path_of_any_length(root):
    """Frames are equal whether or not the path goes on; the last chunk is padded."""
    engine = Engine.from_folder(root / 'model')
    about = engine.describe()
    layout = Layout(height=about.height, width=about.width, least=9, frames=FRAMES)
    source = RealEstate10K(text=root / 'text', frames=root / 'frames', layout=layout)
    assert choose(source, 2) == choose(source, 2) and len(choose(source, 3)) == 3
    with pytest.raises(ValueError, match='3 usable sequences, 100 are needed'):
        choose(source, 100)
    clip = source.load(source.listing().parts[0])
    clip = clip.__class__(**{**vars(clip), 'depth': torch.full_like(clip.depth, 3.0)})
    poses = clip.cameras.world_from_camera.double().numpy()[1:]
    short, long = imagine_along(engine, clip, poses[:8]), imagine_along(engine, clip, poses[:13])
    assert len(short.frames) == 8 and len(long.frames) == 13
    np.testing.assert_array_equal(short.frames, long.frames[:8])
    assert short.covered.any() and not math.isnan(short.covered.mean())
