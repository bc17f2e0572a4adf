from __future__ import annotations

import json
import shutil

from diffusers import AutoencoderKLWan
from folders import save_branch, save_wan
from models import small_vae
from published import TINY, random_state, tiny_decoder, transformer, vae
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


def test_bfloat16_keeps_what_diffusers_keeps_precise(wan, branch, tmp_path):
    imported(tmp_path / 'model', 'official', branch, wan=wan, precision='bfloat16')
    model = load_model(tmp_path / 'model', dtype=torch.bfloat16)
    published = names.transformer(random_state(transformer(TINY)))
    state = model.backbone.wan.state_dict()
    assert torch.equal(state['scale_shift_table'], published['scale_shift_table'])
    name = 'blocks.0.ffn.net.2.base_layer.weight'
    assert torch.equal(state[name], published[name.replace('.base_layer', '')].bfloat16())
    times, text = torch.tensor([[0.0, 500.0]]), torch.zeros(1, 3, TINY.text)
    latents = torch.randn(1, 48, 2, 4, 6, generator=torch.Generator().manual_seed(3))
    side = torch.zeros(1, 96, 2, 4, 6)
    with torch.no_grad():
        velocity = model.backbone(latents, times, text, side)
        precise = load_model(tmp_path / 'model').backbone(latents, times, text, side)
    torch.testing.assert_close(velocity, precise, atol=0.1, rtol=0.1)


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


def test_merge_adds_all_that_a_lora_file_changes(wan, tmp_path):
    """Low rank with alpha, whole weights and biases; the oracle adds them to Wan's own files."""
    generator = torch.Generator().manual_seed(6)

    def random(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    down, up = random(2, 24), random(32, 2)
    patch_down, patch_up = random(2, 48, 1, 2, 2), random(24, 2, 1, 1, 1)
    norm, bias = random(24), random(24)
    change = {
        'blocks.1.ffn.0.lora_down.weight': down,
        'blocks.1.ffn.0.lora_up.weight': up,
        'blocks.1.ffn.0.alpha': torch.tensor(1.0),
        'patch_embedding.lora_down.weight': patch_down,
        'patch_embedding.lora_up.weight': patch_up,
        'blocks.0.norm3.diff': norm,
        'blocks.0.self_attn.q.diff_b': bias,
        'head.head.diff_b': random(192),
    }
    file = tmp_path / 'few_steps.safetensors'
    save_file({f'diffusion_model.{name}': value for name, value in change.items()}, file)
    merged = imported(tmp_path / 'merged', 'wan', wan, merge=(file,))
    by_hand = random_state(transformer(TINY))
    by_hand['blocks.1.ffn.0.weight'] += up @ down / 2
    by_hand['patch_embedding.weight'] += torch.einsum('orabc,rikhw->oikhw', patch_up, patch_down)
    by_hand['blocks.0.norm3.weight'] += norm
    by_hand['blocks.0.self_attn.q.bias'] += bias
    by_hand['head.head.bias'] += change['head.head.diff_b']
    state = merged.backbone.wan.state_dict()
    expected = names.transformer(by_hand)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value)


def test_merge_takes_the_names_of_diffusers(wan, branch, tmp_path):
    published = load_file(branch / 'lora.safetensors')
    file = tmp_path / 'diffusers.safetensors'
    save_file({f'transformer.{k}': v for k, v in names.lora(published).items()}, file)
    first = imported(tmp_path / 'first', 'wan', wan, merge=(file,))
    second = imported(tmp_path / 'second', 'wan', wan, merge=(branch / 'lora.safetensors',))
    state = second.backbone.wan.state_dict()
    for name, value in first.backbone.wan.state_dict().items():
        torch.testing.assert_close(value, state[name])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'blocks.0.ffn.0.lora_A.weight': (2, 24)}, r'blocks\.0\.ffn\.0 has half of a pair'),
        ({'blocks.0.modulation.value': (6,)}, r'it has blocks\.0\.modulation\.value'),
        ({'blocks.9.norm3.diff': (24,)}, r'has no blocks\.9\.norm2\.weight'),
        ({'blocks.0.norm3.diff': (25,)}, r'shape \(25,\), \(24,\) is needed'),
    ],
)
def test_merge_that_does_not_fit_is_named(wan, tmp_path, change, message):
    file = tmp_path / 'lora.safetensors'
    save_file({name: torch.zeros(shape) for name, shape in change.items()}, file)
    with pytest.raises(ValueError, match=message):
        imported(tmp_path / 'model', 'wan', wan, merge=(file,))
    assert not (tmp_path / 'model').exists()


def test_adapter_of_few_layers_equals_its_merge(wan, branch, tmp_path):
    """An adapter may have any of the published targets."""
    few = tmp_path / 'few'
    few.mkdir()
    shutil.copy(branch / 'vace.safetensors', few)
    published = load_file(branch / 'lora.safetensors')
    chosen = ('blocks.1.cross_attn.v.', 'blocks.3.ffn.0.', 'blocks.0.self_attn.o.')
    kept = {k: v for k, v in published.items() if any(layer in k for layer in chosen)}
    assert len(kept) == 6
    save_file(kept, few / 'lora.safetensors')
    separate = imported(tmp_path / 'separate', 'official', few, wan=wan)
    parameters = [name for name, _ in separate.backbone.wan.named_parameters()]
    adapted = {name.partition('.lora_')[0] for name in parameters if '.lora_' in name}
    layers = {'blocks.1.attn2.to_v', 'blocks.3.ffn.net.0.proj', 'blocks.0.attn1.to_out.0'}
    assert adapted == layers
    merge_adapter(separate.backbone.wan)
    merged = imported(tmp_path / 'merged', 'wan', wan, merge=(few / 'lora.safetensors',))
    state = merged.backbone.wan.state_dict()
    for name, value in separate.backbone.wan.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_adapter_that_changes_norms_is_rejected(wan, branch, tmp_path):
    """An adapter that stays apart may change linear layers alone."""
    norms = tmp_path / 'norms'
    shutil.copytree(branch, norms)
    state = load_file(branch / 'lora.safetensors')
    changed = {**state, 'pipe.dit.blocks.0.norm3.diff': torch.ones(24)}
    save_file(changed, norms / 'lora.safetensors')
    with pytest.raises(ValueError, match='not an adapter of linear layers'):
        imported(tmp_path / 'model', 'official', norms, wan=wan)


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        ('diffusion_pytorch_model-00001-of-00002', 'missing', r'Missing key\(s\)'),
        ('diffusion_pytorch_model-00002-of-00002', 'extra', r'Unexpected key\(s\)'),
        ('diffusion_pytorch_model-00002-of-00002', 'misshapen', 'size mismatch'),
        ('Wan2.2_VAE', 'missing', 'does not fit|is missing'),
        ('Wan2.2_VAE', 'extra', r'Unexpected key\(s\)'),
        ('Wan2.2_VAE', 'misshapen', 'size mismatch'),
        ('models_t5_umt5-xxl-enc-bf16', 'missing', "token_embedding.weight' is missing"),
        ('models_t5_umt5-xxl-enc-bf16', 'extra', r'Unexpected key\(s\)'),
        ('models_t5_umt5-xxl-enc-bf16', 'misshapen', 'is missing or misshapen'),
        ('vace', 'missing', r'Missing key\(s\)'),
        ('vace', 'misshapen', 'size mismatch'),
        ('lora', 'missing', 'does not fit the backbone'),
        ('lora', 'misshapen', r'has shape \(24, 3, 2\), the backbone needs \(24, 3\)'),
        ('Wan2.2_VAE', 'truncated', 'cannot be read as weights alone'),
    ],
)
def test_damaged_files_are_named(wan, branch, tmp_path, file, change, message):
    """A tensor is missing, one too many or of another shape, or half of the file is."""
    folder = tmp_path / 'damaged'
    shutil.copytree(wan, folder)
    shutil.copytree(branch, folder, dirs_exist_ok=True)
    path = folder / f'{file}.safetensors'
    state = load_file(path)
    last = list(state)[-1]
    if change == 'missing':
        del state[last]
    elif change == 'extra':
        state['of.another.model'] = torch.zeros(3)
    elif change == 'misshapen':
        state[last] = torch.zeros(*state[last].shape, 2)
    save_file(state, path)
    if change == 'truncated':
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=message) as error:
        imported(tmp_path / 'model', 'official', folder)
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path / 'model').exists() and not (tmp_path / 'model.part').exists()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'chunk_frames': 10}, 'frames: 10 frames do not fit the codec'),
        ({'height': 48}, r'height 48 does not fit, a multiple of 32'),
        ({'steps': 0}, 'steps: 0'),
    ],
)
def test_sizes_are_checked_before_anything_is_written(wan, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        imported(tmp_path / 'model', 'wan', wan, **options)
    assert not (tmp_path / 'model').exists()


def test_vae_of_other_channels_is_rejected(wan, tmp_path):
    """In the layout of diffusers the class fits, the number of channels does not."""
    layout = tmp_path / 'diffusers'
    first = imported(tmp_path / 'first', 'wan', wan)
    first.backbone.wan.save_pretrained(layout / 'transformer')
    small_vae().save_pretrained(layout / 'vae')
    with pytest.raises(ValueError, match='4 channels do not fit the transformer, 48 are needed'):
        imported(tmp_path / 'model', 'wan', layout)


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
