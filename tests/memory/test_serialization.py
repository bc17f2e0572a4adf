"""Tests of saved memories: equal after loading, and errors for damaged files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import itertools
import json
import math
import os
from threading import Event

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
import scenes
import torch

from mirage_model.memory.latent import LatentMemory, MemoryConfig


def filled(**config) -> LatentMemory:
    memory = LatentMemory(MemoryConfig(channels=3, **config))
    generator = torch.Generator().manual_seed(0)
    for write in range(4):
        camera = scenes.camera_row([scenes.transform((0, 0.3 * write, 0))], [1.7e9 + write])
        latents = torch.randn(1, 3, scenes.HEIGHT, scenes.WIDTH, generator=generator)
        depth = torch.rand(1, scenes.HEIGHT, scenes.WIDTH, generator=generator) * 0.1 + 4
        confidence = torch.rand(depth.shape, generator=generator)
        memory.write(
            latents,
            depth,
            camera,
            valid=depth > 0,
            observed=write % 2 == 0,
            confidence=confidence,
        )
    return memory


def views():
    poses = [scenes.transform((0, 0.2 * index, 0), (0.1, 0, 0)) for index in range(5)]
    return scenes.camera_row(poses, 1.7e9 + torch.arange(5) * 0.25)


@pytest.mark.parametrize(
    'config', [{}, {'voxel': 0.0, 'splat_size': 3}, {'dtype': 'float32', 'tolerance': 0.0}]
)
def test_saved_memory_loads_the_same(tmp_path, config):
    memory = filled(**config)
    memory.save(tmp_path / 'place.safetensors')
    loaded = LatentMemory.load(tmp_path / 'place.safetensors')
    assert loaded.config == memory.config
    assert len(loaded) == len(memory) and loaded.nbytes == memory.nbytes
    held, back = memory._store.points(), loaded._store.points()
    assert (held.observed == back.observed).all()
    for name in ('xyz_size', 'depth_time', 'confidence', 'latents'):  # they are numbered anew
        assert (getattr(back, name) == getattr(held, name)).all(), name
    assert len(set(held.confidence)) > 10
    # a later write meets both in the same state
    for other in (memory, loaded):
        depth = torch.full((1, scenes.HEIGHT, scenes.WIDTH), 3.0)
        camera = scenes.camera_row([scenes.transform()], [1.7e9 + 9])
        latents = torch.ones(1, 3, scenes.HEIGHT, scenes.WIDTH)
        other.write(latents, depth, camera, valid=depth > 0, observed=False)
    for name, value in vars(memory.readout(views())).items():
        assert torch.equal(value, getattr(loaded.readout(views()), name)), name
    assert [path.name for path in tmp_path.iterdir()] == ['place.safetensors']


def test_concurrent_saves_leave_a_whole_file(tmp_path):
    path, memories = tmp_path / 'place.safetensors', [filled(), filled(voxel=0.0)]

    def save(memory: LatentMemory) -> None:
        for _ in range(30):
            memory.save(path)
            assert len(LatentMemory.load(path)) in sizes

    sizes = {len(memory) for memory in memories}
    with ThreadPoolExecutor(2) as pool:
        for saved in [pool.submit(save, memory) for memory in memories]:
            saved.result()
    assert [found.name for found in tmp_path.iterdir()] == ['place.safetensors']


def test_file_replaced_during_a_load_is_read_whole(tmp_path):
    path, memories = tmp_path / 'place.safetensors', [filled(), filled(voxel=0.0)]
    for number, memory in enumerate(memories):
        value = torch.full((100 + number,), float(len(memory)))
        memory.save(tmp_path / str(number), attached={'size': value})
    contents = [(tmp_path / str(number)).read_bytes() for number in range(2)]
    path.write_bytes(contents[0])
    ended = Event()

    def replace_it() -> None:
        for turn in itertools.count():
            if ended.is_set():
                return
            (tmp_path / 'aside').write_bytes(contents[turn % 2])
            os.replace(tmp_path / 'aside', path)

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace_it)
        try:
            for _ in range(300):
                memory, attached = LatentMemory.load_attached(path)
                assert len(memory) == attached['size'][0]
        finally:
            ended.set()
        replacing.result()


def test_empty_memory_can_be_saved(tmp_path):
    LatentMemory(MemoryConfig(channels=3)).save(tmp_path / 'nothing.safetensors')
    loaded = LatentMemory.load(tmp_path / 'nothing.safetensors')
    assert len(loaded) == 0 and not loaded.readout(views()).visible.any()


@pytest.mark.parametrize('share', [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_raises(tmp_path, share):
    path = tmp_path / 'place.safetensors'
    filled().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r'place\.safetensors: not a whole safetensors file'):
        LatentMemory.load(path)


def first(values, value):
    values = values.clone()
    values.view(-1)[0] = value
    return values


def described(**changes):
    """Return a function that damages the origin or the configuration in the metadata."""

    def damage(tensors, metadata):
        about = json.loads(metadata['about'])
        for name, value in changes.items():
            (about if name in about else about['config'])[name] = value
        return tensors, metadata | {'about': json.dumps(about)}

    return damage


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda tensors, about: (tensors, about | {'format': 'other'}), 'not a latent memory'),
        (lambda tensors, about: (tensors, about | {'version': '99'}), 'version 99'),
        (lambda tensors, about: (tensors, about | {'about': '{}'}), 'description is damaged'),
        (
            lambda tensors, about: (tensors, about | {'about': '{'}),
            r'place.*description is damaged',
        ),
        (
            lambda tensors, about: (tensors, {'format': about['format'], 'version': '2'}),
            r'place.*description is damaged',
        ),
        (described(origin=math.nan), 'description is damaged: origin: nan'),
        (described(dtype='float64'), r'(?s)description is damaged: .*dtype'),
        (
            lambda tensors, about: ({**tensors, 'size': torch.tensor(1.0)}, about),
            'position is',
        ),
        (lambda tensors, about: ({**tensors, 'more': torch.ones(1)}, about), 'holds'),
        (
            lambda tensors, about: (
                {**tensors, 'position': first(tensors['position'], math.nan)},
                about,
            ),
            'position has values that are not finite',
        ),
        (
            lambda tensors, about: (
                {**tensors, 'latents': first(tensors['latents'], math.inf)},
                about,
            ),
            'latents has values that are not finite',
        ),
        (
            lambda tensors, about: ({**tensors, 'depth': first(tensors['depth'], 0)}, about),
            'depth has values that are not positive',
        ),
        (
            lambda tensors, about: ({**tensors, 'serial': tensors['serial'] * 0}, about),
            'serial numbers',
        ),
        (
            lambda tensors, about: ({**tensors, 'size': tensors['size'].double()}, about),
            'size is torch.float64',
        ),
        (
            lambda tensors, about: (
                {**tensors, 'latents': tensors['latents'][:, :2].contiguous()},
                about,
            ),
            'latents are',
        ),
        (
            lambda tensors, about: ({**tensors, 'time': tensors['time'][:-1].clone()}, about),
            'time is',
        ),
    ],
)
def test_damaged_file_raises(tmp_path, damage, message):
    path = tmp_path / 'place.safetensors'
    filled().save(path)
    with safe_open(path, framework='pt') as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    assert json.loads(metadata['about'])['config']['channels'] == 3
    tensors, metadata = damage(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        LatentMemory.load(path)


def test_failed_save_keeps_the_old_content(tmp_path):
    path = tmp_path / 'place.safetensors'
    path.mkdir()
    with pytest.raises(OSError, match='place'):
        filled().save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ['place.safetensors']


def test_fields_of_earlier_versions_are_upgraded(tmp_path):
    path, memory = tmp_path / 'place.safetensors', filled(splat_size=3)
    memory.save(path)
    with safe_open(path, framework='pt') as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    about = json.loads(metadata['about'])
    about['config'] |= {'footprint': about['config'].pop('splat_size'), 'prefer': 'newest'}
    save_file(tensors, path, metadata=metadata | {'about': json.dumps(about)})
    assert LatentMemory.load(path).config == memory.config
