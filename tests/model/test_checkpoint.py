from __future__ import annotations

import json

from models import save_depth_anything, save_small_model
import pytest
from safetensors.torch import load_file, save_file
import torch

from mirage_model.engine.engine import Engine
from mirage_model.model.checkpoint import load_model, load_model_info
from mirage_model.perception.adapters import DepthAnything


@pytest.fixture
def folder(tmp_path):
    return save_small_model(tmp_path / 'model')


def test_saved_model_round_trips(folder):
    model, again = load_model(folder), load_model(folder)
    assert model.config.name == 'small-random' and model.new_frames == 8
    assert model.sha256 == again.sha256
    for (name, a), b in zip(
        model.backbone.named_parameters(), again.backbone.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    saved = load_file(folder / 'side_branch' / 'model.safetensors')
    assert all(
        torch.equal(saved[k], v) for k, v in model.backbone.side_branch.state_dict().items()
    )


def test_model_info_equals_that_of_the_loaded_engine(folder):
    assert load_model_info(folder) == Engine.from_folder(folder).describe()
    with pytest.raises(ValueError, match=r'model\.json'):
        load_model_info(folder / 'vae')


def test_hash_depends_on_all_weights(folder):
    before = load_model(folder).sha256
    path = folder / 'text' / 'embedding.safetensors'
    save_file({'embedding': load_file(path)['embedding'] + 1}, path)
    assert load_model(folder).sha256 != before


MISSING = [
    'model.json',
    'vae/config.json',
    'vae/diffusion_pytorch_model.safetensors',
    'transformer/diffusion_pytorch_model.safetensors',
    'scheduler/scheduler_config.json',
    'side_branch/config.json',
    'side_branch/model.safetensors',
    'text/embedding.safetensors',
    'perception/model.safetensors',
]


@pytest.mark.parametrize('name', MISSING)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.split('/')[0]):
        load_model(folder)


@pytest.mark.parametrize('name', [n for n in MISSING if n.endswith('.safetensors')])
def test_truncated_file_is_named(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=name.split('/')[0]):
        load_model(folder)


@pytest.mark.parametrize(
    'name', ['transformer/diffusion_pytorch_model.safetensors', 'side_branch/model.safetensors']
)
def test_wrong_shape_is_named(folder, name):
    tensors = load_file(folder / name)
    key = next(k for k, v in tensors.items() if v.ndim == 2)
    tensors[key] = tensors[key][:-1].contiguous()
    save_file(tensors, folder / name)
    with pytest.raises(ValueError, match=name.split('/')[0]):
        load_model(folder)


@pytest.mark.parametrize(
    'name',
    ['transformer/diffusion_pytorch_model.safetensors', 'vae/diffusion_pytorch_model.safetensors'],
)
def test_missing_weight_is_rejected(folder, name):
    tensors = load_file(folder / name)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / name)
    with pytest.raises(ValueError, match='missing_keys'):
        load_model(folder)


def test_pickle_is_rejected(folder):
    (folder / 'transformer' / 'diffusion_pytorch_model.bin').write_bytes(b'\x80\x04.')
    with pytest.raises(ValueError, match=r'diffusion_pytorch_model\.bin'):
        load_model(folder)


def test_unknown_scheduler_is_rejected(folder):
    path = folder / 'scheduler' / 'scheduler_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), '_class_name': 'DDIMScheduler'}))
    with pytest.raises(ValueError, match='DDIMScheduler'):
        load_model(folder)


@pytest.mark.parametrize(
    ('name', 'changes'),
    [
        ('vae/config.json', {'dim_mult': 3}),
        ('transformer/config.json', {'num_layers': 'six'}),
        ('scheduler/scheduler_config.json', {'flow_shift': 'a'}),
    ],
)
def test_damaged_configuration_is_named(folder, name, changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=name.split('/')[0]):
        load_model(folder)


def test_incomplete_adapter_is_named(folder):
    (folder / 'side_branch' / 'adapter.json').write_text('{"rank": 4}')
    with pytest.raises(ValueError, match=r'adapter\.safetensors'):
        load_model(folder)


def test_missing_folder_is_rejected(tmp_path):
    with pytest.raises(ValueError, match='nowhere'):
        load_model(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    'changes',
    [
        {'chunk_frames': 1},
        {'chunk_frames': 8},
        {'chunk_frames': 5.0},
        {'splat_size': 2},
        {'height': 40},
        {'steps': 0},
        {'steps': 2.5},
    ],
    ids=str,
)
def test_invalid_sizes_are_rejected(folder, changes):
    set_in_model_json(folder, **changes)
    with pytest.raises(ValueError):
        load_model(folder)


@pytest.mark.parametrize('layers', [[-1], [0, 0], [7], [], None])
def test_invalid_side_branch_layers_are_rejected(folder, layers):
    (folder / 'side_branch' / 'config.json').write_text(json.dumps({'layers': layers}))
    with pytest.raises(ValueError, match=r'side_branch/config\.json'):
        load_model(folder)


def set_in_model_json(folder, **changes) -> None:
    path = folder / 'model.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_perception_can_be_depth_anything(folder):
    for path in (folder / 'perception').iterdir():
        path.unlink()
    save_depth_anything(folder / 'perception', 'metric')
    set_in_model_json(folder, perception='depth-anything')
    assert isinstance(load_model(folder).perception, DepthAnything)


def test_unknown_perception_is_rejected(folder):
    set_in_model_json(folder, perception='stereo')
    with pytest.raises(ValueError, match=r'model\.json.*stereo'):
        load_model(folder)
