"""A model is a folder: diffusers' layout for backbone, VAE and scheduler, ours for the rest.

``model.json``, ``transformer/``, ``vae/``, ``scheduler/``, ``side_branch/`` (with the adapter, if there is
one), ``text/embedding.safetensors`` and ``perception/`` in the layout of its own library. Weights are
safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
import hashlib
import json
from pathlib import Path

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from mirage_model.interface import ModelInfo
from mirage_model.memory.registry import MEMORIES
from mirage_model.model.backbone import Backbone
from mirage_model.model.codec import Codec, load_pretrained
from mirage_model.model.lora import load_adapter, read_json
from mirage_model.model.sampler import SCHEDULERS, Scheduler
from mirage_model.model.side_branch import SideBranch, SideBranchConfig
from mirage_model.perception import Perception
from mirage_model.perception.adapters import DepthAnything, DepthAnything3
from mirage_model.perception.embedded import EmbeddedPerception, load_network

EMBEDDED = Path(__file__).parents[1] / 'weights' / 'mirage-tiny'
PERCEPTIONS: dict[str, Callable[[Path], Perception]] = {
    'embedded': lambda folder: EmbeddedPerception(load_network(folder)),
    'depth-anything': DepthAnything,
    'depth-anything-3': DepthAnything3,
}
_UNPICKLED = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """``model.json``. ``steps`` is the sampler's default; the first frame of every chunk is given.

    ``splat_size`` is the largest number of cells, along a side, that one remembered cell may cover;
    ``perception`` is one of `PERCEPTIONS`, ``memory`` one of `MEMORIES`: the one it was trained with.
    """

    name: str
    height: int
    width: int
    chunk_frames: int
    frame_rate: float
    steps: int
    splat_size: int
    perception: str = 'embedded'
    memory: str = 'latent'

    def __post_init__(self) -> None:
        for name in ('height', 'width', 'chunk_frames', 'steps', 'splat_size'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f'{name} must be a whole number, got {value!r}')
        for name in ('height', 'width', 'frame_rate', 'steps', 'splat_size'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if self.chunk_frames < 2:
            raise ValueError(f'a chunk needs 2 frames at least, got {self.chunk_frames}')
        if self.splat_size % 2 == 0:
            raise ValueError(f'splat_size must be odd, got {self.splat_size}')
        if self.perception not in PERCEPTIONS:
            raise ValueError(
                f'perception must be one of {sorted(PERCEPTIONS)}, got {self.perception!r}'
            )
        if self.memory not in MEMORIES:
            raise ValueError(f'memory must be one of {sorted(MEMORIES)}, got {self.memory!r}')


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything that a rollout needs. ``text`` is (words, dim); ``sha256`` is over all weights."""

    config: ModelConfig
    codec: Codec
    backbone: Backbone
    scheduler: Scheduler
    text: Float[Tensor, 'words dim']
    perception: Perception
    sha256: str

    @property
    def device(self) -> torch.device:
        return self.text.device

    @property
    def new_frames(self) -> int:
        """Frames that a chunk adds to the one it was given."""
        return self.config.chunk_frames - 1


def load_model(
    folder: Path = EMBEDDED, *, device: str = 'cpu', dtype: torch.dtype = torch.float32
) -> Model:
    """Load a model folder.

    Raises ValueError that names the file that is missing, pickled, cut short or of the wrong shape.
    """
    folder = Path(folder)
    config = _read_folder(folder)
    codec = Codec.from_folder(folder / 'vae', device=device)
    backbone, text = _load_backbone(folder, dtype)
    _check_sizes(config, codec, backbone.wan)
    return Model(
        config=config,
        codec=codec,
        backbone=backbone.to(device).eval().requires_grad_(False),
        scheduler=_load_scheduler(folder / 'scheduler' / 'scheduler_config.json'),
        text=text.to(device, dtype),
        perception=_load_perception(config.perception, folder / 'perception', device),
        sha256=_sha256(folder),
    )


def load_backbone(folder: Path) -> tuple[Backbone, Float[Tensor, 'words dim']]:
    """Backbone and text of a model folder, in float32. Raises ValueError as `load_model` does."""
    _read_folder(folder)
    return _load_backbone(folder, torch.float32)


def describe(folder: Path = EMBEDDED) -> ModelInfo:
    """What `load_model` would give, from the configuration and the bytes of the weights alone.

    Raises ValueError for a model.json that is missing or wrong.
    """
    return described(_read_config(folder / 'model.json'), _sha256(folder))


def described(config: ModelConfig, sha256: str) -> ModelInfo:
    return ModelInfo(
        model=config.name,
        sha256=sha256,
        height=config.height,
        width=config.width,
        frame_rate=config.frame_rate,
        new_frames_per_chunk=config.chunk_frames - 1,
        steps=config.steps,
    )


def load_perception(folder: Path, *, device: str = 'cpu') -> tuple[ModelConfig, Perception]:
    """The configuration and the perception of a model folder alone. Raises ValueError as `load_model` does."""
    config = _read_config(folder / 'model.json')
    return config, _load_perception(config.perception, folder / 'perception', device)


def save_model(
    folder: Path,
    *,
    config: ModelConfig,
    vae: AutoencoderKLWan,
    backbone: Backbone,
    scheduler: Scheduler,
    text: Float[Tensor, 'words dim'],
) -> None:
    """Write all but the perception network and the adapter, which have writers of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model.json').write_text(json.dumps(asdict(config), indent=2) + '\n')
    vae.save_pretrained(folder / 'vae')
    backbone.wan.save_pretrained(folder / 'transformer')
    scheduler.save_pretrained(folder / 'scheduler')
    (folder / 'side_branch').mkdir(exist_ok=True)
    side = backbone.side_branch
    (folder / 'side_branch' / 'config.json').write_text(json.dumps(asdict(side.config)) + '\n')
    save_file(
        {k: v.contiguous() for k, v in side.state_dict().items()},
        folder / 'side_branch' / 'model.safetensors',
    )
    (folder / 'text').mkdir(exist_ok=True)
    save_file({'embedding': text.contiguous()}, folder / 'text' / 'embedding.safetensors')


def _read_folder(folder: Path) -> ModelConfig:
    if not folder.is_dir():
        raise ValueError(f'no model folder at {folder}')
    for path in sorted(folder.rglob('*')):
        if path.suffix in _UNPICKLED:
            raise ValueError(f'{path} may hold a pickle and is refused: convert it to safetensors')
    return _read_config(folder / 'model.json')


def _load_backbone(folder: Path, dtype: torch.dtype) -> tuple[Backbone, Tensor]:
    wan = load_pretrained(WanTransformer3DModel, folder / 'transformer', dtype)
    side_branch = _load_side_branch(folder / 'side_branch', wan).to(dtype)
    if any((folder / 'side_branch').glob('adapter.*')):
        load_adapter(folder / 'side_branch', wan)
    text_path = folder / 'text' / 'embedding.safetensors'
    text = _tensors(text_path).get('embedding')
    if text is None or text.ndim != 2 or text.shape[1] != wan.config.text_dim:
        raise ValueError(
            f'{text_path} must hold `embedding` of shape (words, {wan.config.text_dim})'
        )
    return Backbone(wan, side_branch), text


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig(**read_json(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path} is no model configuration: {error}') from None


def _load_perception(name: str, folder: Path, device: str) -> Perception:
    if not folder.is_dir():
        raise ValueError(f'{folder} is missing')
    perception = PERCEPTIONS[name](folder)
    perception.to(device)
    return perception


def _load_side_branch(folder: Path, wan: WanTransformer3DModel) -> SideBranch:
    path = folder / 'config.json'
    try:
        fields = read_json(path)
        config = SideBranchConfig(**{**fields, 'layers': tuple(fields['layers'])})
        side_branch = SideBranch(wan, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is no configuration of a side branch: {error}') from None
    path = folder / 'model.safetensors'
    try:
        side_branch.load_state_dict(_tensors(path))
    except RuntimeError as error:
        raise ValueError(f'{path} does not fit the backbone: {error}') from None
    return side_branch


def _check_sizes(config: ModelConfig, codec: Codec, wan: WanTransformer3DModel) -> None:
    codec.latent_frames(config.chunk_frames)
    for name, patch in zip(('height', 'width'), wan.config.patch_size[1:], strict=True):
        step = codec.spatial_stride * patch
        if getattr(config, name) % step:
            raise ValueError(
                f'model.json: {name} {getattr(config, name)} is no multiple of {step}, '
                'the stride of the codec times the patch'
            )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f'{path} is missing') from None
    except SafetensorError as error:
        raise ValueError(f'{path} is damaged or no safetensors file: {error}') from None


def _load_scheduler(path: Path) -> Scheduler:
    config = read_json(path)
    name = config.get('_class_name')
    if name not in SCHEDULERS:
        raise ValueError(
            f'{path}: the scheduler must be one of {sorted(SCHEDULERS)}, got {name!r}'
        )
    try:
        scheduler = SCHEDULERS[name].from_config(config)
        SCHEDULERS[name].from_config(config).set_timesteps(2)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f'{path} is no configuration of {name}: {error}') from None
    return scheduler


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob('*.safetensors')):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open('rb') as file:
            digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()
