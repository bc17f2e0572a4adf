from __future__ import annotations

import itertools
import json

import pytest

from mirage_model.data.splits import NAMES, SPLITS, maps_of, read_splits, split_of
from mirage_model.worlds.doom import read_map
from mirage_model.worlds.rooms import NAME


def test_no_scene_is_in_two_splits():
    splits = json.loads(SPLITS.read_text())
    assert set(splits) == {'doom', 'rooms'}
    for world in splits.values():
        assert set(world) == set(NAMES) and all(world.values())
    named = [s for world in splits.values() for scenes in world.values() for s in scenes]
    assert len(named) == len(set(named))
    for a, b in itertools.combinations(NAMES, 2):
        assert not {s for w in splits.values() for s in w[a]} & {
            s for w in splits.values() for s in w[b]
        }


def test_splits_name_existing_maps():
    for split in NAMES:
        assert len(read_map(maps_of(split)[-1]).lines) > 50
        assert all(NAME.fullmatch(scene) for scene in maps_of(split, 'rooms'))
    assert sum(len(maps_of(split)) for split in NAMES) == 68


def test_unlisted_scenes_belong_to_training():
    splits = read_splits()
    assert split_of('MAP03', splits) == 'test' and split_of('MAP08', splits) == 'validation'
    assert split_of('room-0000', splits) == 'validation' and split_of('MAP01', splits) == 'train'
    assert split_of('my-flat', splits) == 'train'
    assert split_of('map03', splits) == 'test'


def test_unknown_names_are_rejected():
    with pytest.raises(ValueError, match="split: 'holdout' is unknown"):
        maps_of('holdout')
    with pytest.raises(ValueError, match="world: 'quake' is unknown"):
        maps_of('test', 'quake')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'cannot be read'),
        ('[]', 'must name scenes under'),
        ('{"video": {"holdout": []}}', 'must name scenes under'),
        ('{"video": {"test": "abc"}}', 'video.test must be a list of names'),
        ('{"video": {"test": ["a"], "validation": ["a"]}}', "'a' is in video.test and in"),
        ('{"v": {"test": ["a"]}, "w": {"train": ["a"]}}', "'a' is in v.test and in w.train"),
        ('{"v": {"test": ["a"]}, "w": {"train": ["A"]}}', "'A' is in v.test and in w.train"),
    ],
)
def test_invalid_files_are_rejected(tmp_path, content, message):
    path = tmp_path / 'splits.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_splits(path)
