from __future__ import annotations

from dataclasses import dataclass, replace
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from models import CHUNK_FRAMES, HEIGHT, WIDTH, save_small_model
import pytest
from safetensors.torch import load_file
from scenes_of_planes import clip_of
import torch

from mirage_model.cli import main
from mirage_model.clip import Clip, load_clip, save_clip
from mirage_model.data.latents import INDEX, load_latents, read_index
from mirage_model.data.prepare import PrepareConfig, prepare, summary
from mirage_model.data.sources import Layout, Listing, Part, RecordedClips
from mirage_model.model.checkpoint import load_perception

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = Layout(height=HEIGHT, width=WIDTH, rate=8.0, least=CHUNK_FRAMES, frames=33)
SCENES = {'hall': 'train', 'attic': 'train', 'cellar': 'validation', 'shed': 'test'}


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    return save_small_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def clips(tmp_path_factory) -> Path:
    """Return eight clips, two of every scene; one has hardly a pixel that a memory could hold."""
    folder = tmp_path_factory.mktemp('clips')
    for number in range(8):
        scene = list(SCENES)[number % 4]
        clip = clip_of(f'{number}-{scene}', scene=scene, seed=number)
        if number == 5:
            clip = replace(clip, depth=torch.full_like(clip.depth, torch.nan))
        save_clip(folder / f'{clip.name}.safetensors', clip)
    return folder


@pytest.fixture(scope='module')
def splits(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('splits') / 'splits.json'
    path.write_text(json.dumps({'houses': {'validation': ['cellar'], 'test': ['shed']}}))
    return path


def config_of(out: Path, model: Path, splits: Path, /, **changes) -> PrepareConfig:
    return PrepareConfig(
        **{
            'out': out,
            'codec': model / 'vae',
            'model': model,
            'layout': LAYOUT,
            'chunk_frames': CHUNK_FRAMES,
            'splits': splits,
            **changes,
        }
    )


def shards(out: Path) -> dict[str, bytes]:
    paths = sorted(out.rglob('*.safetensors'))
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, model, clips, splits) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp('prepared')
    return out, prepare(
        config_of(out, model, splits), [RecordedClips(folder=clips, layout=LAYOUT)]
    )


def test_every_clip_lies_in_the_split_of_its_scene(prepared):
    out, report = prepared
    for split, count in (('train', 3), ('validation', 2), ('test', 2)):
        index = read_index(out / split)
        assert report[split]['clips'] == len(index.shards) == count
        assert report[split]['chunks'] == len(index) == 2 * count
        assert {SCENES[shard.scene] for shard in index.shards} == {split}
        assert all(shard.valid == 1.0 and shard.text == 'a wall' for shard in index.shards)
        path, chunk = index.chunk(3)
        tensors, cameras = load_latents(path)
        assert chunk == 1 and len(tensors['video']) == 2 and len(cameras) == 5


def test_left_out_clips_are_reported_with_reasons(prepared):
    out, report = prepared
    (entry,) = report['left_out']
    assert (entry['name'], entry['scene'], entry['split']) == ('5-attic', 'attic', 'train')
    assert 'under 40% of the pixels' in entry['reason']
    assert json.loads((out / 'report.json').read_text()) == report
    text = summary(report)
    assert 'train: 3 clips of 2 scenes, 51 frames in 6 chunks; 100% of the cells' in text
    assert 'left out: 1\n  1 x under N% of the pixels' in text


@dataclass(frozen=True)
class Stopped:
    """A source that is interrupted when it has given ``count`` clips."""

    source: RecordedClips
    count: list[int]

    def listing(self) -> Listing:
        return self.source.listing()

    def load(self, part: Part) -> Clip:
        if self.count[0] == 0:
            raise KeyboardInterrupt
        self.count[0] -= 1
        return self.source.load(part)


def test_an_interrupted_preparation_goes_on_where_it_was(prepared, tmp_path, model, clips, splits):
    source = RecordedClips(folder=clips, layout=LAYOUT)
    config = config_of(tmp_path, model, splits)
    for count in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            prepare(config, [Stopped(source, [count])])
    half = {name: (tmp_path / name).stat().st_mtime_ns for name in shards(tmp_path)}
    assert len(half) == 5
    # a run that is killed may leave half a file, half a line, and a shard without a line
    (tmp_path / 'train' / 'x.part').write_bytes(b'half')
    index = tmp_path / 'train' / INDEX
    index.write_bytes(index.read_bytes()[:-5])
    report = prepare(config, [source])
    assert report == prepared[1] and shards(tmp_path) == shards(prepared[0])
    again = [name for name in half if (tmp_path / name).stat().st_mtime_ns != half[name]]
    assert len(again) == 1 and again[0].startswith('train/')
    # and once more, with nothing left to do
    assert prepare(config, [Stopped(source, [0])]) == report


def test_clips_prepared_otherwise_do_not_share_a_folder(prepared, model, clips, splits, tmp_path):
    source = [RecordedClips(folder=clips, layout=LAYOUT)]
    other = save_small_model(tmp_path / 'other', seed=1)
    for changes, name in (
        ({'codec': other / 'vae'}, 'codec'),
        ({'model': other}, 'perception'),
        ({'layout': replace(LAYOUT, rate=4.0)}, 'layout'),
        ({'chunk_frames': 17}, 'chunk_frames'),
    ):
        with pytest.raises(ValueError, match=f'began with another {name}'):
            prepare(config_of(prepared[0], model, splits, **changes), source)


@pytest.mark.slow
def test_saved_clips_are_in_one_split(tmp_path, model, clips, splits):
    source = [RecordedClips(folder=clips, layout=LAYOUT)]
    first = config_of(tmp_path / 'out', model, splits)
    report = prepare(first, source)
    kept = tmp_path / 'clips'
    assert prepare(replace(first, clips_out=kept), source) == report
    found = sorted(path.relative_to(kept) for path in kept.rglob('*.safetensors'))
    assert found == sorted(Path(name) for name in shards(tmp_path / 'out'))
    other = tmp_path / 'splits.json'
    other.write_text('{"places": {"test": ["Hall", "celler"]}}')
    again = config_of(tmp_path / 'again', model, other, clips_out=kept)
    with pytest.raises(ValueError, match=f'{kept}.*began with another splits'):
        prepare(again, source)
    report = prepare(replace(again, clips_out=None), source)
    assert report['test']['clips'] == 2 and report['not_found'] == ['celler']
    assert 'held out, but in no clip: celler' in summary(report)


def test_no_clips_and_duplicate_names_are_rejected(tmp_path, model, clips, splits):
    source = RecordedClips(folder=clips, layout=LAYOUT)
    with pytest.raises(ValueError, match='0-hall: two clips have this name'):
        prepare(config_of(tmp_path / 'a', model, splits), [source, source])
    wide = RecordedClips(folder=clips, layout=replace(LAYOUT, width=64))
    with pytest.raises(ValueError, match='clips: none could be prepared: its frames are 32x48'):
        prepare(config_of(tmp_path / 'b', model, splits), [wide])


@dataclass(frozen=True)
class Unlabelled:
    """Recorded clips without labels, as from a bag."""

    source: RecordedClips

    def listing(self) -> Listing:
        return self.source.listing()

    def load(self, part: Part) -> Clip:
        return replace(self.source.load(part), labelled=False)


@pytest.mark.slow
def test_missing_labels_are_estimated_and_saved(tmp_path, model, clips, splits):
    config = config_of(tmp_path / 'out', model, splits, clips_out=tmp_path / 'clips')
    report = prepare(config, [Unlabelled(RecordedClips(folder=clips, layout=LAYOUT))])
    assert report['train']['clips'] == 3
    done = load_clip(tmp_path / 'clips' / 'validation' / '2-cellar.safetensors')
    assert done.scene == 'cellar' and done.text == 'a wall' and (done.depth == 3.0).all()
    perception = load_perception(model)[1]
    frames = done.frames.permute(0, 3, 1, 2).float() / 255
    seen = perception.estimate(frames, done.cameras)
    assert torch.equal(done.moving, seen.moving) and torch.equal(done.sky, seen.sky)
    # what was completed is a source by itself, and gives the same latents
    again = config_of(tmp_path / 'again', model, splits)
    prepare(again, [RecordedClips(folder=tmp_path / 'clips', layout=LAYOUT)])
    assert shards(tmp_path / 'again') == shards(tmp_path / 'out')


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupted_command_continues(prepared, tmp_path, model, clips, splits):
    """The command runs in processes of its own and is interrupted from outside."""
    command = [sys.executable, '-m', 'mirage_model.cli', 'prepare', '--workers', '2']
    command += ['--model', str(model), '--splits', str(splits), '--frames', '33']
    command += ['--clips', str(clips), '--out', str(tmp_path)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(tmp_path.rglob('*.safetensors')) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=100)
    # on a fast machine it may have been over before
    assert first.returncode in (0, 130), errors
    assert first.returncode == 0 or 'the same command continues' in errors
    report = prepare(
        config_of(tmp_path, model, splits), [RecordedClips(folder=clips, layout=LAYOUT)]
    )
    assert report == prepared[1]
    for name in shards(prepared[0]):
        # close, not equal: another number of threads adds up in another order
        torch.testing.assert_close(load_file(tmp_path / name), load_file(prepared[0] / name))


def test_missing_topics_are_named(tmp_path, model, capsys):
    (tmp_path / 'drive').mkdir()
    bag = str(tmp_path / 'drive')
    words = ['--model', str(model), '--out', str(tmp_path), '--frames', '33', '--bag', bag]
    before = signal.getsignal(signal.SIGTERM)
    status = main(['prepare', *words])
    signal.signal(signal.SIGTERM, before)
    assert status == 1
    assert 'give --image, --camera-info and --pose' in capsys.readouterr().err
