"""The command ``mirage import``: published weights to a model folder.

Nothing but the weights of ``.pth`` files is read (``weights_only=True``), and the folder holds
safetensors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
import shutil
from typing import Any

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn

from mirage_model.conversion import names
from mirage_model.conversion.config import ImportCommand, Source
from mirage_model.io import read_json
from mirage_model.model.backbone import Backbone
from mirage_model.model.checkpoint import (
    EMBEDDED,
    PROMPTS,
    ModelConfig,
    check_sizes,
    save_model,
)
from mirage_model.model.codec import WAN22_STATISTICS, WAN22_VAE, Codec, load_pretrained
from mirage_model.model.lora import load_adapter, remove_adapter, save_adapter
from mirage_model.model.sampler import WanUniPCScheduler
from mirage_model.model.side_branch import SideBranch, SideBranchConfig
from mirage_model.model.taehv import TinyDecoder, save_decoder
from mirage_model.model.text import PromptEncoder

NAMES = {'wan': 'wan22-ti2v-5b', 'official': 'latent-spatial-memory', 'spatia': 'spatia'}
FLOW_SHIFT = 5.0
"""Shift of the schedule that Wan2.2-TI2V-5B, the paper's code and Spatia use."""


@torch.no_grad()
def main(config: ImportCommand) -> int:
    """Write the model folder, and print its size.

    Raises:
        ValueError: A file is missing, damaged or does not fit, or ``out`` exists.
    """
    if config.out.exists():
        raise ValueError(f'{config.out}: exists already, give a new folder')
    part = config.out.with_name(f'{config.out.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_model(config, part)
        part.rename(config.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(path.stat().st_size for path in config.out.rglob('*') if path.is_file())
    print(f'wrote {config.out}: {size / 1e6:.1f} MB')
    return 0


def write_model(config: ImportCommand, out: Path) -> None:
    """Write a model folder; raise ValueError as `main` does."""
    dtype = getattr(torch, config.precision)
    folder = config.wan or config.folder
    wan = read_transformer(folder)
    for path in config.merge:
        merge(wan, path)
    cast(wan, dtype)
    branch, adapter = read_branch(config.source, config.folder, wan)
    if adapter is not None:
        with_adapter(wan, adapter, out / 'side_branch')
        remove_adapter(wan)
    vae, backbone = read_vae(folder), Backbone(wan, branch.to(dtype))
    remembers = config.source != 'wan'
    model_config = ModelConfig(
        name=config.name or NAMES[config.source],
        height=config.height,
        width=config.width,
        chunk_frames=config.chunk_frames,
        frame_rate=config.frame_rate,
        steps=config.steps,
        splat_size=1,
        perception=config.perception_name,
        memory='rgb_cloud' if config.source == 'spatia' else 'latent',
        references=config.references if remembers else 0,
        preceding=config.preceding if config.source == 'official' else 0,
        decoder='vae' if config.decoder is None else 'taehv',
        tiling=config.tiling,
    )
    check_sizes(model_config, Codec(vae), backbone)
    write_text_encoder(folder, out, dtype)
    if config.decoder is not None:
        sizes, state = names.decoder(read_state(config.decoder))
        decoder = TinyDecoder(sizes)
        assign(decoder, state, config.decoder)
        save_decoder(out / 'decoder', decoder)
    save_model(
        out,
        config=model_config,
        vae=vae,
        backbone=backbone,
        scheduler=WanUniPCScheduler(
            prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=FLOW_SHIFT
        ),
        text=PromptEncoder(out, out / PROMPTS).embed(config.prompt).to(dtype),
    )
    shutil.copytree(config.perception or EMBEDDED / 'perception', out / 'perception')


def read_transformer(folder: Path) -> WanTransformer3DModel:
    """Return Wan's transformer from its original files or from ``transformer/`` of diffusers."""
    if (folder / 'transformer').is_dir():
        return load_pretrained(WanTransformer3DModel, folder / 'transformer', torch.float32)
    path = folder / 'config.json'
    original = read_json(path)
    shards = sorted(folder.glob('diffusion_pytorch_model*.safetensors'))
    if not shards:
        raise ValueError(f'{folder}: no diffusion_pytorch_model*.safetensors and no transformer/')
    state = {name: value for shard in shards for name, value in read_state(shard).items()}
    try:
        sizes = {
            'num_attention_heads': original['num_heads'],
            'attention_head_dim': original['dim'] // original['num_heads'],
            'in_channels': original['in_dim'],
            'out_channels': original['out_dim'],
            'text_dim': state['text_embedding.0.weight'].shape[1],
            'freq_dim': original['freq_dim'],
            'ffn_dim': original['ffn_dim'],
            'num_layers': original['num_layers'],
            'eps': original['eps'],
        }
    except (KeyError, IndexError) as error:
        raise ValueError(f'{path}: not of Wan, {error} is missing or misshapen') from None
    with torch.device('meta'):
        wan = WanTransformer3DModel(patch_size=(1, 2, 2), **sizes)
    assign(wan, names.transformer(state), shards[0])
    return wan


def read_branch(
    source: Source, folder: Path, wan: WanTransformer3DModel
) -> tuple[SideBranch, Path | None]:
    """Return the side branch, and the file of its adapter if there is one.

    Wan alone gets an untrained branch, which leaves its output as it is.
    """
    layers = wan.config.num_layers
    if source == 'wan':
        return SideBranch(wan, SideBranchConfig(layers=tuple(range(0, layers, 4)))), None
    branch_path, adapter_path = None, None
    for path in sorted((*folder.glob('*.safetensors'), *folder.glob('*.pt*'))):
        if path.name.startswith(('diffusion_pytorch_model', 'Wan2', 'models_t5')):
            continue
        state = read_state(path)
        if any('vace_patch_embedding' in name for name in state):
            branch_path, branch_state = path, state
        elif any('lora_' in name for name in state):
            adapter_path = path
    if branch_path is None:
        raise ValueError(f'{folder}: no side branch, a file with vace_patch_embedding is needed')
    named = names.side_branch(branch_state)
    count = len({name.split('.')[1] for name in named if name.startswith('blocks.')})
    config = SideBranchConfig(layers=tuple(range(0, layers, -(-layers // count))), input=source)
    with torch.device('meta'):
        branch = SideBranch(wan, config)
    assign(branch, named, branch_path)
    return branch, adapter_path


def cast(wan: WanTransformer3DModel, dtype: torch.dtype) -> None:
    """Change the type of the transformer in place, but for what diffusers keeps in float32."""
    precise = wan._keep_in_fp32_modules or ()
    for name, parameter in wan.named_parameters():
        if not any(part in precise for part in name.split('.')):
            parameter.data = parameter.data.to(dtype)


def merge(wan: WanTransformer3DModel, path: Path) -> None:
    """Add the changes of a LoRA file to the transformer's tensors in place.

    Raises:
        ValueError: The file is not an adapter, or does not fit.
    """
    published = read_state(path)
    try:
        added = names.changes(published)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    state = wan.state_dict()
    for name, value in added.items():
        if name not in state:
            raise ValueError(f'{path}: does not fit, the transformer has no {name}')
        if state[name].shape != value.shape:
            raise ValueError(
                f'{path}: does not fit, {name} has shape {tuple(value.shape)}, '
                f'{tuple(state[name].shape)} is needed'
            )
        state[name].copy_(state[name].float() + value)


def with_adapter(wan: WanTransformer3DModel, path: Path, folder: Path) -> None:
    """Write the adapter of a LoRA file into a folder, and add it to the transformer in place."""
    try:
        state = names.lora(read_state(path))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    ranks = {len(value) for name, value in state.items() if '.lora_A.' in name}
    if len(ranks) != 1:
        raise ValueError(f'{path}: layers of ranks {sorted(ranks)}, one rank is needed')
    folder.mkdir(parents=True, exist_ok=True)
    rank = ranks.pop()
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        folder / 'adapter.safetensors',
    )
    (folder / 'adapter.json').write_text(json.dumps({'rank': rank}))
    try:
        load_adapter(folder, wan)
    except ValueError as error:
        raise ValueError(f'{path}: not an adapter of this transformer, {error}') from None
    save_adapter(folder, wan, rank=rank)


def read_vae(folder: Path) -> AutoencoderKLWan:
    """Return the VAE from its original file or from ``vae/`` of diffusers."""
    if (folder / 'vae').is_dir():
        return load_pretrained(AutoencoderKLWan, folder / 'vae', torch.float32)
    path = _one_of(folder, 'Wan2.2_VAE.safetensors', 'Wan2.2_VAE.pth')
    state = read_state(path)
    try:
        sizes = {
            'base_dim': state['encoder.conv1.weight'].shape[0],
            'decoder_base_dim': state['decoder.head.2.weight'].shape[1],
            'z_dim': state['conv2.weight'].shape[0],
        }
    except (KeyError, IndexError) as error:
        raise ValueError(
            f'{path}: not the VAE of Wan2.2, {error} is missing or misshapen'
        ) from None
    if sizes['z_dim'] != WAN22_VAE['z_dim']:
        raise ValueError(f'{path}: {sizes["z_dim"]} channels, the VAE of Wan2.2 has 48')
    arguments: dict[str, Any] = {**WAN22_VAE, **WAN22_STATISTICS, **sizes}
    with torch.device('meta'):
        vae = AutoencoderKLWan(**arguments)
    assign(vae, names.vae(state), path)
    return vae


def write_text_encoder(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Write ``text_encoder/`` and ``tokenizer/`` from original files or diffusers' layout."""
    if (folder / 'text_encoder').is_dir():
        for name in ('text_encoder', 'tokenizer'):
            if not (folder / name).is_dir():
                raise ValueError(f'{folder / name}: the folder is missing')
            shutil.copytree(
                folder / name, out / name, ignore=shutil.ignore_patterns('*.bin', '*.pt*')
            )
        return
    from transformers import UMT5Config, UMT5EncoderModel

    stem = 'models_t5_umt5-xxl-enc-bf16'
    path = _one_of(folder, f'{stem}.safetensors', f'{stem}.pth')
    state = read_state(path)
    try:
        words, width = _matrix(state, 'token_embedding.weight')
        buckets, heads = _matrix(state, 'blocks.0.pos_embedding.embedding.weight')
        inner, hidden = len(state['blocks.0.attn.q.weight']), len(state['blocks.0.ffn.fc1.weight'])
    except KeyError as error:
        raise ValueError(
            f'{path}: not the text encoder of Wan, {error} is missing or misshapen'
        ) from None
    sizes = UMT5Config(
        vocab_size=words,
        d_model=width,
        d_kv=inner // heads,
        d_ff=hidden,
        num_layers=len({name.split('.')[1] for name in state if name.startswith('blocks.')}),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj='gated-gelu',
    )
    with torch.device('meta'):
        encoder = UMT5EncoderModel(sizes)
    assign(encoder, names.umt5(state), path)
    encoder.to(dtype).save_pretrained(out / 'text_encoder')
    tokenizer = folder / 'google' / 'umt5-xxl'
    if not tokenizer.is_dir():
        raise ValueError(f'{tokenizer}: the folder is missing, it holds the tokenizer')
    shutil.copytree(tokenizer, out / 'tokenizer')


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a .pth file without running its code.

    Raises:
        ValueError: The file is missing, damaged, or holds other things than tensors.
    """
    try:
        if path.suffix == '.safetensors':
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged or foreign archive raises almost anything
        raise ValueError(f'{path}: cannot be read as weights alone, {error}') from None
    for key in ('generator', 'state_dict', 'vace', 'lora'):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f'{path}: holds more than tensors, a state dictionary is needed')
    return dict(state)


def assign(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into a module without copying them.

    Raises:
        ValueError: Names or shapes differ.
    """
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f'{path}: does not fit, {error}') from None


def _matrix(state: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Return the shape of a matrix; raise KeyError where it is missing or none."""
    shape = state[name].shape
    if len(shape) != 2:
        raise KeyError(name)
    return shape[0], shape[1]


def _one_of(folder: Path, *candidates: str) -> Path:
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f'{folder}: none of {", ".join(candidates)} is there')
