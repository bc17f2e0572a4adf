from __future__ import annotations

import json

from diffusers import AutoencoderKLWan
from folders import save_branch, save_wan
from published import TINY, random_state, tiny_decoder, vae
import pytest
from safetensors.torch import load_file, save_file
import torch

from mirage_model import cli
from mirage_model.conversion import names
from mirage_model.conversion.command import main
from mirage_model.conversion.config import ImportCommand
from mirage_model.model.checkpoint import load_model
from mirage_model.model.codec import WAN22_STATISTICS, WAN22_VAE
from mirage_model.model.lora import merge_adapter
from mirage_model.model.sampler import WanUniPCScheduler

SMALL = {'height': 64, 'width': 96, 'chunk_frames': 5, 'precision': 'float32'}


@pytest.fixture(scope='module')
def wan(tmp_path_factory):
    return save_wan(tmp_path_factory.mktemp('published') / 'wan')


@pytest.fixture(scope='module')
def branch(tmp_path_factory):
    return save_branch(tmp_path_factory.mktemp('published') / 'official', blocks=2)


def imported(out, source, folder, **options):
    assert main(ImportCommand(source=source, folder=folder, out=out, **{**SMALL, **options})) == 0
    return load_model(out)


def test_official_files_become_a_model_folder(wan, branch, tmp_path):
    model = imported(tmp_path / 'model', 'official', branch, wan=wan, prompt='a quiet hall')
    config, side = model.config, model.backbone.side_branch.config
    assert (config.name, config.memory) == ('latent-spatial-memory', 'latent')
    assert (config.references, config.preceding, config.splat_size) == (4, 2, 1)
    assert (side.input, side.layers) == ('official', (0, 2))
    assert isinstance(model.scheduler, WanUniPCScheduler)
    assert model.scheduler.config.flow_shift == 5.0
    assert model.text.shape == (512, TINY.text) and (model.text[4:] == 0).all()
    adapters = [name for name, _ in model.backbone.named_parameters() if 'lora_' in name]
    assert len(adapters) == TINY.layers * 10 * 2
    assert not list((tmp_path / 'model').rglob('*.pth'))


def test_spatia_renders_an_rgb_cloud(wan, branch, tmp_path):
    model = imported(tmp_path / 'model', 'spatia', branch, wan=wan)
    assert model.config.memory == 'rgb_cloud' and model.config.preceding == 0
    assert model.backbone.side_branch.config.input == 'spatia'


def test_wan_alone_has_a_branch_without_effect(wan, tmp_path):
    model = imported(tmp_path / 'model', 'wan', wan)
    side = model.backbone.side_branch
    assert side.config.input == 'mirage'
    assert all((projection.weight == 0).all() for projection in side.proj_out)
    assert (model.config.references, model.config.preceding) == (0, 0)


def test_pth_files_and_the_layout_of_diffusers_give_equal_models(wan, tmp_path):
    pickled = save_wan(tmp_path / 'pth', pickled=True)
    first = imported(tmp_path / 'first', 'wan', pickled)
    layout = tmp_path / 'diffusers'
    first.backbone.wan.save_pretrained(layout / 'transformer')
    for name in ('vae', 'text_encoder', 'tokenizer'):
        (layout / name).symlink_to(tmp_path / 'first' / name)
    second = imported(tmp_path / 'second', 'wan', layout)
    for a, b in ((first.backbone.wan, second.backbone.wan), (first.codec.vae, second.codec.vae)):
        state = b.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in a.state_dict().items())
    assert torch.equal(first.text, second.text)


def test_renamed_vae_is_the_published_one(wan, tmp_path):
    model = imported(tmp_path / 'model', 'wan', wan)
    state = random_state(vae(base=4, decoder_base=4), 1)
    sizes = {'base_dim': 4, 'decoder_base_dim': 4}
    plain = AutoencoderKLWan(**{**WAN22_VAE, **WAN22_STATISTICS, **sizes}).eval()
    plain.load_state_dict(names.vae(state))
    frames = torch.rand(1, 5, 3, 32, 32)
    latents = plain.encode(frames.movedim(2, 1) * 2 - 1).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, 48, 1, 1, 1) for v in WAN22_STATISTICS.values())
    torch.testing.assert_close(
        model.codec.encode(frames), (latents - mean) / std, atol=1e-5, rtol=1e-5
    )


def test_merged_adapter_changes_the_transformer(wan, branch, tmp_path):
    separate = imported(tmp_path / 'separate', 'official', branch, wan=wan)
    merge_adapter(separate.backbone.wan)
    merged = imported(tmp_path / 'merged', 'wan', wan, merge=(branch / 'lora.safetensors',))
    state = merged.backbone.wan.state_dict()
    for name, value in separate.backbone.wan.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_small_decoder_decodes_in_place_of_the_vae(wan, tmp_path):
    file = tmp_path / 'taew2_2.safetensors'
    save_file(random_state(tiny_decoder(widths=(8, 8, 4, 4)), 5), file)
    model = imported(tmp_path / 'model', 'wan', wan, decoder=file)
    assert model.config.decoder == 'taehv'
    latents = torch.randn(1, 48, 2, 4, 6)
    frames = model.codec.decode(latents)
    assert frames.shape == (1, 5, 3, 64, 96)
    assert 0 <= frames.min() and frames.max() <= 1
    path = tmp_path / 'model' / 'model.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'decoder': 'vae'}))
    assert not torch.allclose(load_model(tmp_path / 'model').codec.decode(latents), frames)


def test_command_line_prints_one_sentence_for_a_wrong_folder(tmp_path, capsys):
    words = ['import', '--from', 'official', str(tmp_path), '--out', str(tmp_path / 'model')]
    assert cli.main(words) == 1
    assert 'config.json' in capsys.readouterr().err
    assert not (tmp_path / 'model').exists()


def test_folder_without_a_side_branch_is_rejected(wan, tmp_path):
    with pytest.raises(ValueError, match='vace_patch_embedding'):
        imported(tmp_path / 'model', 'official', tmp_path, wan=wan)
    assert not (tmp_path / 'model').exists()


def test_a_pickle_with_code_is_rejected(wan, tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ('run',))

    torch.save({'vace_patch_embedding.weight': Code()}, tmp_path / 'vace.pth')
    with pytest.raises(ValueError, match=r'vace\.pth: cannot be read as weights alone'):
        imported(tmp_path / 'model', 'official', tmp_path, wan=wan)


def test_lora_that_changes_norms_is_rejected(wan, branch, tmp_path):
    file = tmp_path / 'norms.safetensors'
    state = load_file(branch / 'lora.safetensors')
    save_file({**state, 'pipe.dit.blocks.0.norm3.diff': torch.ones(24)}, file)
    with pytest.raises(ValueError, match='not an adapter of linear layers'):
        imported(tmp_path / 'model', 'wan', wan, merge=(file,))


def test_vae_of_another_model_is_rejected(wan, tmp_path):
    other = save_wan(tmp_path / 'other')
    state = load_file(other / 'Wan2.2_VAE.safetensors')
    state['conv2.weight'] = torch.zeros(16, 16, 1, 1, 1)
    save_file(state, other / 'Wan2.2_VAE.safetensors')
    with pytest.raises(ValueError, match='16 channels'):
        imported(tmp_path / 'model', 'wan', other)


def test_transformer_of_another_size_is_rejected(wan, tmp_path):
    other = save_wan(tmp_path / 'other')
    path = other / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'ffn_dim': 40}))
    with pytest.raises(ValueError, match='does not fit'):
        imported(tmp_path / 'model', 'wan', other)
