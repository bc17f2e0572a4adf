"""Published weights give, after renaming, what slow references of the published networks give."""

from __future__ import annotations

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from published import (
    TINY,
    Sizes,
    lora,
    random_state,
    side_branch,
    tiny_decoder,
    transformer,
    umt5,
    vae,
)
import pytest
import reference
import torch
from transformers import UMT5Config, UMT5EncoderModel
from vae_reference import Vae

from mirage_model.conversion import names
from mirage_model.model.backbone import SIDE_BRANCHES, WAN22_5B, Backbone
from mirage_model.model.codec import WAN22_STATISTICS, WAN22_VAE
from mirage_model.model.lora import add_adapter
from mirage_model.model.sampler import WanUniPCScheduler
from mirage_model.model.side_branch import SideBranch, SideBranchConfig
from mirage_model.model.taehv import TinyDecoder, TinyDecoderConfig

WAN = random_state(transformer(TINY))
BRANCH = random_state(side_branch(TINY, 2), 3)
LAYERS = (0, 2)


def small_wan() -> WanTransformer3DModel:
    wan = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=TINY.heads,
        attention_head_dim=TINY.dim // TINY.heads,
        in_channels=TINY.channels,
        out_channels=TINY.channels,
        text_dim=TINY.text,
        freq_dim=TINY.freq,
        ffn_dim=TINY.hidden,
        num_layers=TINY.layers,
    )
    wan.load_state_dict(names.transformer(WAN))
    return wan


def small_backbone() -> Backbone:
    wan = small_wan()
    branch = SideBranch(wan, SideBranchConfig(layers=LAYERS, input='official'))
    branch.load_state_dict(names.side_branch(BRANCH))
    return Backbone(wan, branch).eval()


def inputs(frames: int, times: list[float], video: int):
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(TINY.channels, frames, 4, 6, generator=generator)
    text = torch.randn(5, TINY.text, generator=generator)
    side = torch.randn(2 * TINY.channels, video, 4, 6, generator=generator)
    assert len(times) == frames
    return latents, text, side


@torch.no_grad()
@pytest.mark.parametrize('references', [0, 2])
@pytest.mark.parametrize('with_branch', [False, True])
def test_transformer_equals_the_reference(references: int, with_branch: bool):
    """The chunk has references, a clean context, two noisy frames and two preceding frames."""
    times = [0.0] * (references + 1) + [625.0, 625.0] + [0.0, 0.0]
    latents, text, side = inputs(len(times), times, video=5)
    result = small_backbone()(
        latents[None],
        torch.tensor([times]),
        text[None],
        side[None] if with_branch else None,
        references=references,
    )[0]
    expected = reference.velocity(
        WAN,
        latents,
        times,
        text,
        heads=TINY.heads,
        references=references,
        branch=BRANCH if with_branch else None,
        side=side,
        branch_layers=LAYERS,
    )
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_references_change_the_video():
    times = [0.0, 0.0, 0.0, 625.0, 625.0]
    latents, text, _ = inputs(5, times, video=3)
    backbone, all_times = small_backbone(), torch.tensor([times])
    with_them = backbone(latents[None], all_times, text[None], references=2)
    without = backbone(latents[None, :, 2:], all_times[:, 2:], text[None])
    assert (with_them - without).abs().max() > 0.01


@pytest.mark.parametrize('steps', [1, 4, 20, 50])
def test_schedule_equals_that_of_wan(steps: int):
    scheduler = WanUniPCScheduler(
        prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(steps)
    levels, timesteps = reference.schedule(steps, 5.0)
    assert torch.equal(scheduler.sigmas, torch.tensor(levels, dtype=torch.float32))
    assert scheduler.timesteps.tolist() == timesteps


@torch.no_grad()
def test_adapter_equals_weights_with_the_product_added():
    published = random_state(lora(TINY, 3), 4)
    adapted = dict(WAN)
    for name, down in published.items():
        if '.lora_A.' in name:
            layer = name.removeprefix('pipe.dit.').replace('.lora_A', '')
            adapted[layer] = WAN[layer] + published[name.replace('lora_A', 'lora_B')] @ down
    times = [0.0, 625.0, 625.0]
    latents, text, _ = inputs(3, times, video=3)
    expected = reference.velocity(adapted, latents, times, text, heads=TINY.heads)
    wan = small_wan()
    named = names.lora(published)
    layers = sorted({name.rpartition('.lora_')[0] for name in named})
    add_adapter(wan, rank=3, targets=layers)
    state = {name.replace('.weight', '.default.weight'): value for name, value in named.items()}
    missing, unexpected = wan.load_state_dict(state, strict=False)
    assert not unexpected and not [name for name in missing if 'lora' in name]
    backbone = small_backbone()
    backbone.wan = wan
    result = backbone(latents[None], torch.tensor([times]), text[None])[0]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text_encoder_equals_the_reference():
    state = random_state(umt5(words=9, dim=16, heads=2, hidden=24, layers=2), 2)
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=9,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            feed_forward_proj='gated-gelu',
        )
    ).eval()
    encoder.load_state_dict(names.umt5(state))
    tokens = torch.randint(9, (1, 40), generator=torch.Generator().manual_seed(0))
    expected = reference.umt5(state, tokens[0].tolist(), heads=2)
    result = encoder(tokens).last_hidden_state[0]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('frames', [1, 3])
def test_small_decoder_equals_the_reference(frames: int):
    state = random_state(tiny_decoder(channels=5, widths=(12, 8, 6, 4)), 5)
    config, named = names.decoder(state)
    assert config == TinyDecoderConfig(channels=5, widths=(12, 8, 6, 4))
    decoder = TinyDecoder(config)
    decoder.load_state_dict(named)
    latents = torch.randn(1, 5, frames, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = reference.tiny_decoder(state, latents[0], config.doubles_time)
    result = decoder(latents)[0]
    assert result.shape == (4 * (frames - 1) + 1, 3, 32, 48)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('frames', [1, 9])
def test_vae_equals_the_reference_bit_for_bit(frames: int):
    state = random_state(vae(base=8, decoder_base=8), 1)
    sizes = {'base_dim': 8, 'decoder_base_dim': 8}
    renamed = AutoencoderKLWan(**{**WAN22_VAE, **WAN22_STATISTICS, **sizes}).eval()
    renamed.load_state_dict(names.vae(state))
    slow = Vae(state)
    clip = torch.rand(1, 3, frames, 64, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = slow.encode(clip)
    assert torch.equal(renamed.encode(clip).latent_dist.mode(), latents)
    assert torch.equal(renamed.decode(latents).sample, slow.decode(latents))


def test_full_sizes_have_the_published_names_and_shapes():
    with torch.device('meta'):
        wan = WanTransformer3DModel(**WAN22_5B)
        official = SideBranch(
            wan, SideBranchConfig(layers=tuple(range(0, 30, 2)), input='official')
        )
        spatia_layers = SIDE_BRANCHES['wan22_5b'].layers
        spatia = SideBranch(wan, SideBranchConfig(layers=spatia_layers, input='spatia'))
        codec = AutoencoderKLWan(**{**WAN22_VAE, **WAN22_STATISTICS})
        decoder = TinyDecoder(TinyDecoderConfig())
        encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=256384,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj='gated-gelu',
            )
        )
        full = Sizes()
        tables = {
            'transformer': (wan, names.transformer(empty(transformer(full)))),
            'official': (official, names.side_branch(empty(side_branch(full, 15)))),
            'spatia': (spatia, names.side_branch(empty(side_branch(full, 8)))),
            'vae': (codec, names.vae(empty(vae()))),
            'text encoder': (encoder, names.umt5(empty(umt5()))),
            'decoder': (decoder, names.decoder(empty(tiny_decoder()))[1]),
        }
    for part, (module, published) in tables.items():
        shapes = {name: value.shape for name, value in published.items()}
        assert shapes == {name: v.shape for name, v in module.state_dict().items()}, part
    assert sum(p.numel() for p in wan.parameters()) == 4_999_787_712
    assert sum(p.numel() for p in official.parameters()) == 2_607_077_376
    assert len(side_branch(full, 15)) == 439 and len(official.blocks) == 15
    assert len(vae()) == 196 and len(spatia.blocks) == 8


def test_full_size_adapter_has_the_published_names_and_shapes():
    shapes = lora(Sizes(), 32)
    assert len(shapes) == 600
    with torch.device('meta'):
        wan = WanTransformer3DModel(**WAN22_5B)
        published = names.lora(empty(shapes))
        add_adapter(wan, rank=32, targets='all')
    here = {
        name.replace('.default', ''): value.shape
        for name, value in wan.named_parameters()
        if 'lora_' in name
    }
    assert here == {name: value.shape for name, value in published.items()}


def empty(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape) for name, shape in shapes.items()}
