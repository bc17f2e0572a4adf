from __future__ import annotations

from dataclasses import replace
import json

from models import CHANNELS, small_vae
import pytest
from safetensors.torch import load_file
from scenes_of_planes import clip_of
import torch

from mirage_model.data.latents import (
    INDEX,
    IndexWriter,
    Shard,
    encode_clip,
    load_latents,
    read_index,
    save_latents,
)
from mirage_model.model.codec import Codec


def shard_of(name: str, chunks: int) -> Shard:
    return Shard(name=name, scene='hall', chunks=chunks, frames=8 * chunks + 1, valid=0.5)


def fill(folder, shards: list[Shard]) -> None:
    writer = IndexWriter(folder)
    for shard in shards:
        if not shard.left_out:
            save_latents(folder / f'{shard.name}.safetensors', {'x': torch.zeros(1)})
        writer.add(shard)
    writer.close()


def test_a_shard_holds_these_tensors_and_no_others(tmp_path):
    """Latents that were stored before must stay readable: names, order of axes, types."""
    clip = clip_of('a', scene='hall')
    save_latents(tmp_path / 'a.safetensors', encode_clip(clip, Codec(small_vae()), chunk_frames=9))
    stored = load_file(tmp_path / 'a.safetensors')
    assert {name: (tuple(value.shape), value.dtype) for name, value in stored.items()} == {
        'video': ((2, CHANNELS, 3, 4, 6), torch.float16),
        'stills': ((5, CHANNELS, 4, 6), torch.float16),
        'depth': ((5, 4, 6), torch.float32),
        'valid': ((5, 4, 6), torch.bool),
        'K': ((3, 3), torch.float32),
        'world_from_camera': ((5, 4, 4), torch.float32),
        'times': ((5,), torch.float64),
    }
    _, cameras = load_latents(tmp_path / 'a.safetensors')
    assert (cameras.height, cameras.width, len(cameras)) == (4, 6, 5)
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.safetensors']


def test_sky_and_dynamic_objects_are_not_valid():
    clip = clip_of('a', scene='hall')
    moving, sky = clip.moving.clone(), clip.sky.clone()
    moving[8, 8:16, 16:24], sky[8, 24:, :8] = True, True
    tensors = encode_clip(
        replace(clip, moving=moving, sky=sky), Codec(small_vae()), chunk_frames=9
    )
    valid = tensors['valid']
    assert not valid[2, 1, 2] and not valid[2, 3, 0]
    assert valid.sum() == valid.numel() - 2


def test_changing_intrinsics_are_rejected():
    clip = clip_of('zoom', scene='hall')
    K = clip.cameras.K.clone()
    K[3, 0, 0] += 1
    with pytest.raises(ValueError, match='zoom: the intrinsics change'):
        encode_clip(
            replace(clip, cameras=replace(clip.cameras, K=K)), Codec(small_vae()), chunk_frames=9
        )


def test_chunk_numbers_do_not_depend_on_order(tmp_path):
    shards = [shard_of('b', 2), shard_of('a', 3), shard_of('c', 1)]
    gone = Shard(name='d', scene='hall', left_out='no light')
    fill(tmp_path / 'one', [*shards, gone])
    fill(tmp_path / 'two', [gone, *reversed(shards)])
    one, two = read_index(tmp_path / 'one'), read_index(tmp_path / 'two')
    assert len(one) == len(two) == 6
    expected = [('a', 0), ('a', 1), ('a', 2), ('b', 0), ('b', 1), ('c', 0)]
    for index in (one, two):
        found = [index.chunk(number) for number in range(6)]
        assert [(path.stem, chunk) for path, chunk in found] == expected
        assert index.left_out == (gone,)
    for number in (-1, 6):
        with pytest.raises(IndexError, match='there are 6'):
            one.chunk(number)


def test_a_line_that_was_cut_short_is_dropped_and_the_rest_stays(tmp_path):
    fill(tmp_path, [shard_of('a', 1), shard_of('b', 1)])
    whole = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(whole[:-9])
    writer = IndexWriter(tmp_path)
    assert writer.done() == {'a'}
    writer.add(shard_of('b', 1))
    writer.close()
    assert (tmp_path / INDEX).read_bytes() == whole


def test_a_clip_without_its_shard_is_prepared_again(tmp_path):
    fill(tmp_path, [shard_of('a', 1), Shard(name='b', scene='', left_out='dark')])
    (tmp_path / 'a.safetensors').unlink()
    writer = IndexWriter(tmp_path)
    assert writer.done() == {'b'}
    writer.close()
    with pytest.raises(ValueError, match='a.safetensors: missing, though it is in the index'):
        read_index(tmp_path)


def test_a_later_line_of_the_same_name_counts(tmp_path):
    fill(tmp_path, [Shard(name='a', scene='hall', left_out='dark'), shard_of('a', 2)])
    index = read_index(tmp_path)
    assert index.shards == (shard_of('a', 2),) and not index.left_out


def test_damage_is_named_with_its_line(tmp_path):
    with pytest.raises(ValueError, match='index.jsonl: missing, prepare'):
        read_index(tmp_path)
    fill(tmp_path, [shard_of('a', 1)])
    with (tmp_path / INDEX).open('a') as file:
        file.write(json.dumps({'name': 'b', 'size': 3}) + '\n')
    for read in (read_index, IndexWriter):
        with pytest.raises(ValueError, match='index.jsonl:2: damaged'):
            read(tmp_path)


def test_an_index_without_lines_is_empty(tmp_path):
    IndexWriter(tmp_path).close()
    assert len(read_index(tmp_path)) == 0 and read_index(tmp_path).shards == ()
