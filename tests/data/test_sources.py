from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from scenes_of_planes import clip_of
import torch

from mirage_model.clip import save_clip
from mirage_model.data.sources import Layout, RecordedClips, cut


def rows_of(times, **layout) -> list[tuple[int, ...]]:
    layout = Layout(**{'rate': 2.0, 'least': 2, 'frames': 100, **layout})
    listing = cut('video', 'place', np.array(times), layout, list(range(len(times))))
    return [part.rows for part in listing.parts]


def test_each_tick_takes_the_nearest_frame():
    """Compare with all pairs of ticks and frames at a rate that does not divide the video's."""
    rng = np.random.default_rng(0)
    times = 5.0 + np.cumsum(rng.uniform(0.02, 0.045, 200))
    (rows,) = rows_of(times, rate=8.0)
    for tick, row in enumerate(rows):
        distance = np.abs(times - (times[0] + tick / 8.0))
        assert distance[row] == distance.min()
    assert len(rows) == int((times[-1] - times[0]) * 8 + 0.5) + 1


def test_gaps_split_a_sequence_and_short_parts_are_reported():
    times = [0.0, 0.5, 1.0, 3.0, 5.0, 5.5, 6.0, 6.5]
    layout = Layout(rate=2.0, least=2, frames=3)
    listing = cut('video', 'place', np.array(times), layout, [10, 11, 12, 13, 14, 15, 16, 17])
    assert [part.rows for part in listing.parts] == [(10, 11, 12), (14, 15, 16)]
    assert [part.name for part in listing.parts] == ['video-00010', 'video-00014']
    assert {part.scene for part in listing.parts} == {'place'}
    assert [entry[:2] for entry in listing.left_out] == [
        ('video-00013', 'place'),
        ('video-00017', 'place'),
    ]
    assert '1 frames without a gap at 2 Hz' in listing.left_out[0][2]


def test_a_video_slower_than_the_rate_gives_no_clip():
    times = np.arange(10) * 0.5
    listing = cut('video', '', times, Layout(rate=8.0), list(range(10)))
    assert not listing.parts and len(listing.left_out) == 10
    assert rows_of([]) == []


def test_impossible_layouts_are_rejected():
    with pytest.raises(ValueError, match='rate: 0.0, must be positive'):
        Layout(rate=0.0)
    with pytest.raises(ValueError, match='frames: 9, must be at least those of a chunk, 17'):
        Layout(frames=9)


def test_recorded_clips_are_listed_and_others_reported(tmp_path):
    for folder in ('train', 'test'):
        (tmp_path / folder).mkdir()
    save_clip(tmp_path / 'train' / 'good.safetensors', clip_of('good', scene='hall'))
    old = tmp_path / 'test' / '00007-MAP03-out_and_back.safetensors'
    save_clip(old, clip_of('old', scene=''))
    save_clip(tmp_path / 'nowhere.safetensors', clip_of('nowhere', scene=''))
    save_clip(tmp_path / 'short.safetensors', clip_of('short', scene='hall', frames=5))
    save_clip(tmp_path / 'wide.safetensors', clip_of('wide', scene='hall', size=(32, 64)))
    (tmp_path / 'torn.safetensors').write_bytes(old.read_bytes()[:40])
    layout = Layout(height=32, width=48, least=9)
    source = RecordedClips(folder=tmp_path, layout=layout)
    listing = source.listing()
    assert {(part.name, part.scene) for part in listing.parts} == {
        ('good', 'hall'),
        ('00007-MAP03-out_and_back', 'MAP03'),
    }
    reasons = {name: reason for name, _, reason in listing.left_out}
    assert set(reasons) == {'nowhere', 'short', 'wide', 'torn'}
    assert 'has no scene' in reasons['nowhere']
    assert '5 frames' in reasons['short'] and '32x64, not 32x48' in reasons['wide']
    good = next(part for part in listing.parts if part.name == 'good')
    assert torch.equal(source.load(good).frames, clip_of('good', scene='hall').frames)
    with pytest.raises(ValueError, match='no clips in'):
        RecordedClips(folder=tmp_path / 'empty', layout=layout).listing()


def test_a_damaged_clip_names_its_file(tmp_path):
    save_clip(tmp_path / 'a.safetensors', clip_of('a', scene='hall'))
    tensors = load_file(tmp_path / 'a.safetensors')
    save_file({'frames': tensors['frames']}, tmp_path / 'b.safetensors', metadata={'scene': 's'})
    source = RecordedClips(folder=tmp_path, layout=Layout(height=32, width=48, least=9))
    (part,) = [part for part in source.listing().parts if part.name == 'b']
    with pytest.raises(ValueError, match='b.safetensors: lacks depth, '):
        source.load(part)
