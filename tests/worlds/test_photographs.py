"""Tests of the split of photographs and of textures cut from them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mirage_model.worlds.photographs import SHARES, cut_texture, find_photographs
from mirage_model.worlds.rooms import RoomWorld


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(60):
        picture = rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f'picture{index}.png'), picture)
    return tmp_path


def test_no_photograph_is_in_two_splits(folder):
    splits = [set(find_photographs(folder, split)) for split in SHARES]
    assert len(set.union(*splits)) == sum(map(len, splits)) == 60


def test_only_the_largest_size_of_a_photograph_is_used(tmp_path):
    small, large = np.zeros((150, 200, 3), np.uint8), np.zeros((450, 600, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'hill_200x150.png'), small)
    cv2.imwrite(str(tmp_path / 'hill_600x450.png'), large)
    found = []
    for split in SHARES:
        try:
            found += find_photographs(tmp_path, split)
        except ValueError as error:
            assert 'no pictures' in str(error)
    assert [path.name for path in found] == ['hill_600x450.png']


def test_unknown_split_is_rejected(folder):
    with pytest.raises(ValueError, match='split: .holdout. is unknown'):
        find_photographs(folder, 'holdout')


def test_tiled_texture_repeats_without_a_seam(folder):
    paths = find_photographs(folder, 'train')
    texture = cut_texture(paths, np.random.default_rng(1), 64, tiled=True)
    assert texture.shape == (64, 64, 3)
    assert (texture == texture[:, ::-1]).all() and (texture == texture[::-1]).all()


def test_unreadable_photographs_are_named(tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='no picture can be used'):
        cut_texture([tmp_path / 'broken.png'], np.random.default_rng(0), 64, tiled=False)


@pytest.mark.slow
def test_photographs_change_only_colours(folder):
    clips = []
    for photographs in ((), find_photographs(folder, 'train')):
        with RoomWorld('room-0003', photographs=photographs) as world:
            path = world.plan('forward', 3, np.random.default_rng(2))
            clips.append(world.record(path, np.arange(3) / 8, name='room'))
    plain, photographic = clips
    assert (
        plain.depth.equal(photographic.depth)
        or ((plain.depth == photographic.depth) | plain.depth.isnan()).all()
    )
    assert not plain.frames.equal(photographic.frames)
