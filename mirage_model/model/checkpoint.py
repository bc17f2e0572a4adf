"""Load and save model folders.

A model folder holds ``model.json``; ``transformer/``, ``vae/`` and ``scheduler/`` in diffusers'
layout; ``side_branch/``, with the LoRA adapter if there is one; ``text/embedding.safetensors``,
the model's own text; and ``perception/`` in the layout of its library. ``text_encoder/`` and
``tokenizer/`` embed the prompts of requests, and ``text/prompts/`` keeps their embeddings.
``labeller/`` and ``resampler/`` are optional; a model of prediction 'first_guess' may leave out
the transformer and what belongs to it. Weights are safetensors only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import hashlib
import json
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from diffusers import WanTransformer3DModel
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from mirage_model.interface import ModelInfo
from mirage_model.io import read_json
from mirage_model.memory.registry import MEMORIES
from mirage_model.model.acceleration import Acceleration, accelerate
from mirage_model.model.backbone import Backbone, Prediction
from mirage_model.model.codec import Autoencoder, Codec, load_autoencoder, load_pretrained
from mirage_model.model.lora import load_adapter
from mirage_model.model.resampler import Resampler, load_resampler, save_resampler
from mirage_model.model.sampler import SCHEDULERS, Scheduler
from mirage_model.model.side_branch import SideBranch, SideBranchConfig, SideInput
from mirage_model.model.taehv import load_decoder
from mirage_model.model.text import PromptEncoder
from mirage_model.perception import Perception
from mirage_model.perception.registry import (
    PERCEPTIONS,
    SEGMENTS_DYNAMIC,
    create_perception,
)

EMBEDDED = Path(__file__).parents[1] / 'weights' / 'mirage-tiny'
PROMPTS = Path('text', 'prompts')
"""Folder of the embeddings of requests' prompts, below a model folder."""
Decoder: TypeAlias = Literal['vae', 'taehv']
_PICKLE_SUFFIXES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Content of ``model.json``."""

    name: str
    """Name of the model, sent with each chunk."""

    height: int
    """Height of the frames [px]."""

    width: int
    """Width of the frames [px]."""

    chunk_frames: int
    """Frames of a chunk, the context frame included."""

    frame_rate: float
    """Frames per second of the training clips."""

    steps: int
    """Default number of denoising steps; without effect in a model without a transformer."""

    splat_size: int
    """Largest side of the square that a latent point covers in a readout [cells]; odd."""

    perception: str = 'embedded'
    """Perception network, a key of `PERCEPTIONS`."""

    memory: str = 'latent'
    """Kind of memory that the model was trained with, a key of `MEMORIES`."""

    prediction: Prediction = 'velocity'
    """Output of the network: the flow's velocity, or a correction of the first guess."""

    references: int = 0
    """Largest number of earlier latent frames of the same place that a chunk attends to."""

    preceding: int = 0
    """Largest number of latent frames before the context that a chunk attends to."""

    decoder: Decoder = 'vae'
    """Decoder of the frames: the VAE's, or the small one in ``decoder/``."""

    tiling: bool = False
    """Encode and decode in tiles, which saves memory."""

    def __post_init__(self) -> None:
        counts = ('height', 'width', 'chunk_frames', 'steps', 'splat_size')
        for name in (*counts, 'references', 'preceding'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f'{name}: {value!r} is not allowed, an integer is needed')
        for name in ('height', 'width', 'frame_rate', 'steps', 'splat_size'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name}: {getattr(self, name)} is not positive')
        for name in ('references', 'preceding'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name}: {getattr(self, name)} is negative, use 0 or more')
        if self.decoder not in get_args(Decoder):
            raise ValueError(
                f'decoder: {self.decoder!r} is unknown, allowed are {get_args(Decoder)}'
            )
        if self.chunk_frames < 2:
            raise ValueError(
                f'chunk_frames: {self.chunk_frames} is too few, at least 2 are needed'
            )
        if self.splat_size % 2 == 0:
            raise ValueError(f'splat_size: {self.splat_size} is even, an odd number is needed')
        if self.perception not in PERCEPTIONS:
            raise ValueError(
                f'perception: {self.perception!r} is unknown, allowed are {sorted(PERCEPTIONS)}'
            )
        if self.memory not in MEMORIES:
            raise ValueError(f'memory: {self.memory!r} is unknown, allowed are {sorted(MEMORIES)}')
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f'prediction: {self.prediction!r} is unknown, allowed are {get_args(Prediction)}'
            )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model folder."""

    config: ModelConfig
    codec: Codec
    backbone: Backbone | None
    """None: the first guess is the prediction, and ``scheduler`` and ``text`` are unused."""
    scheduler: Scheduler | None
    text: Float[Tensor, 'words dim']
    """Embedding of the prompt."""
    perception: Perception
    sha256: str
    """Hash over all weights of the folder."""
    resampler: Resampler | None = None
    """None: the memory's latents are used as they are."""
    prompts: PromptEncoder | None = None
    """None: the model takes no text."""
    acceleration: Acceleration = Acceleration()
    """How the backbone was loaded."""

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @property
    def side_input(self) -> SideInput:
        """Kind of the side branch's input; a model of first guesses has that of mirage-tiny."""
        return 'mirage' if self.backbone is None else self.backbone.side_branch.config.input

    @property
    def new_frames(self) -> int:
        """Number of frames that a chunk adds to its context frame."""
        return self.config.chunk_frames - 1

    @property
    def size_step(self) -> tuple[int, int]:
        """Pixels that height and width must be multiples of."""
        return _size_step(self.codec, self.backbone)

    @property
    def info(self) -> ModelInfo:
        prompts = self.prompts is not None and self.prompts.has_encoder
        return _model_info(
            self.config, self.sha256, self.perception.segments_dynamic, prompts=prompts
        )


def checked_device(name: str) -> str:
    """Return the name of a torch device that this machine has.

    Raises ValueError for any other.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'device: {name!r} is unknown, use cpu, cuda or cuda:N') from None
    if device.type == 'cuda':
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(
                f'device: {name!r} cannot be used, torch finds {count} CUDA devices; use cpu, or '
                'install a torch that is built for your CUDA'
            )
    return name


def load_model(
    folder: Path = EMBEDDED,
    *,
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
    labeller: Path | None = None,
    acceleration: Acceleration = Acceleration(),
) -> Model:
    """Load a model folder.

    Args:
        dtype: Type of the backbone and the text; the codec stays in float32.
        labeller: Folder of a labeller, in place of the model's own.

    Raises:
        ValueError: A file is missing, may hold a pickle, is damaged or does not fit the others, or
            the machine does not have the device.
    """
    folder, device = Path(folder), checked_device(device)
    config = _read_folder(folder)
    decoder = load_decoder(folder / 'decoder') if config.decoder == 'taehv' else None
    codec = Codec(
        load_autoencoder(folder / 'vae', torch.float32), decoder=decoder, tiling=config.tiling
    )
    codec.to(device)
    backbone, scheduler, text, prompts = None, None, torch.empty(0, 0), None
    if config.prediction == 'velocity' or (folder / 'transformer').is_dir():
        backbone, text = _load_backbone(folder, dtype, config.prediction)
        backbone.eval().requires_grad_(False)
        accelerate(backbone, acceleration, device=device, dtype=dtype)
        scheduler = _load_scheduler(folder / 'scheduler' / 'scheduler_config.json')
        prompts = PromptEncoder(folder, folder / PROMPTS, device=device, dtype=dtype)
    check_sizes(config, codec, backbone)
    resampler = None
    if config.prediction == 'first_guess' or (folder / 'resampler').is_dir():
        resampler = load_resampler(folder / 'resampler').to(device)
    model = Model(
        config=config,
        codec=codec,
        backbone=backbone,
        scheduler=scheduler,
        text=text.to(device, dtype),
        perception=_load_perception(config.perception, folder, device, labeller),
        sha256=_sha256(folder),
        resampler=resampler,
        prompts=prompts,
        acceleration=acceleration,
    )
    return model


def load_backbone(folder: Path) -> tuple[Backbone, Float[Tensor, 'words dim']]:
    """Load backbone and text of a model folder in float32.

    Raise ValueError as `load_model` does.
    """
    return _load_backbone(folder, torch.float32, _read_folder(folder).prediction)


def load_model_info(folder: Path = EMBEDDED) -> ModelInfo:
    """Return `Model.info` of a model folder without loading its networks.

    Raises:
        ValueError: model.json is missing or invalid.
    """
    config = _read_config(folder / 'model.json')
    segments_dynamic = config.perception in SEGMENTS_DYNAMIC or (folder / 'labeller').is_dir()
    prompts = PromptEncoder(folder, folder / PROMPTS).has_encoder
    return _model_info(config, _sha256(folder), segments_dynamic, prompts=prompts)


def _model_info(
    config: ModelConfig, sha256: str, segments_dynamic: bool, *, prompts: bool
) -> ModelInfo:
    return ModelInfo(
        model=config.name,
        sha256=sha256,
        height=config.height,
        width=config.width,
        frame_rate=config.frame_rate,
        new_frames_per_chunk=config.chunk_frames - 1,
        steps=config.steps,
        segments_dynamic=segments_dynamic,
        prompts=prompts,
    )


def load_perception(
    folder: Path, *, device: str = 'cpu', labeller: Path | None = None
) -> tuple[ModelConfig, Perception]:
    """Load only configuration and perception of a model folder; raise ValueError as `load_model`
    does."""
    config, device = _read_config(folder / 'model.json'), checked_device(device)
    return config, _load_perception(config.perception, folder, device, labeller)


def save_model(
    folder: Path,
    *,
    config: ModelConfig,
    vae: Autoencoder,
    backbone: Backbone | None,
    scheduler: Scheduler | None,
    text: Float[Tensor, 'words dim'] | None,
    resampler: Resampler | None = None,
) -> None:
    """Write a model folder without perception and adapter; see `save_network` and `save_adapter`.

    Without a backbone, scheduler and text are left out too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model.json').write_text(json.dumps(asdict(config), indent=2) + '\n')
    vae.save_pretrained(folder / 'vae')
    if resampler is not None:
        save_resampler(folder / 'resampler', resampler)
    if backbone is None:
        return
    assert scheduler is not None and text is not None
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
        raise ValueError(f'{folder}: no such folder, a model folder is needed')
    for path in sorted(folder.rglob('*')):
        if path.suffix in _PICKLE_SUFFIXES:
            raise ValueError(f'{path}: may hold a pickle, convert it to safetensors')
    return _read_config(folder / 'model.json')


def _load_backbone(
    folder: Path, dtype: torch.dtype, prediction: Prediction
) -> tuple[Backbone, Tensor]:
    wan = load_pretrained(WanTransformer3DModel, folder / 'transformer', dtype)
    side_branch = _load_side_branch(folder / 'side_branch', wan).to(dtype)
    if any((folder / 'side_branch').glob('adapter.*')):
        load_adapter(folder / 'side_branch', wan)
    text_path = folder / 'text' / 'embedding.safetensors'
    text = _load_tensors(text_path).get('embedding')
    text_dim = wan.config.text_dim
    if text is None or text.ndim != 2 or text.shape[1] != text_dim:
        raise ValueError(
            f'{text_path}: no fitting text, `embedding` of shape (words, {text_dim}) is needed'
        )
    return Backbone(wan, side_branch, prediction=prediction), text


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig(**read_json(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path}: not a valid model configuration, {error}') from None


def _load_perception(
    name: str, folder: Path, device: str, labeller: Path | None = None
) -> Perception:
    if labeller is None and (folder / 'labeller').is_dir():
        labeller = folder / 'labeller'
    perception = create_perception(name, folder / 'perception', labeller=labeller)
    perception.to(device)
    return perception


def _load_side_branch(folder: Path, wan: WanTransformer3DModel) -> SideBranch:
    path = folder / 'config.json'
    try:
        fields = read_json(path)
        config = SideBranchConfig(**{**fields, 'layers': tuple(fields['layers'])})
        side_branch = SideBranch(wan, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: not a valid side branch configuration, {error}') from None
    path = folder / 'model.safetensors'
    try:
        side_branch.load_state_dict(_load_tensors(path))
    except RuntimeError as error:
        raise ValueError(f'{path}: does not fit the backbone, {error}') from None
    return side_branch


def check_sizes(config: ModelConfig, codec: Codec, backbone: Backbone | None) -> None:
    """Raise ValueError where the parts of a model do not fit each other."""
    codec.latent_frames(config.chunk_frames)
    if backbone is not None:
        channels, side_input = backbone.wan.config.in_channels, backbone.side_branch.config.input
        if channels != codec.channels:
            raise ValueError(
                f'vae: {codec.channels} channels do not fit the transformer, {channels} are needed'
            )
        if side_input == 'spatia' and config.memory != 'rgb_cloud':
            raise ValueError(
                f'model.json: memory {config.memory!r} does not fit the side branch, whose '
                "input 'spatia' needs 'rgb_cloud'"
            )
    for name, step in zip(('height', 'width'), _size_step(codec, backbone), strict=True):
        if getattr(config, name) % step:
            raise ValueError(
                f'model.json: {name} {getattr(config, name)} does not fit, '
                f'a multiple of {step} (codec stride times patch size) is needed'
            )


def _size_step(codec: Codec, backbone: Backbone | None) -> tuple[int, int]:
    patch = (1, 1, 1) if backbone is None else backbone.wan.config.patch_size
    return codec.spatial_stride * patch[1], codec.spatial_stride * patch[2]


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f'{path}: the file is missing') from None
    except SafetensorError as error:
        raise ValueError(f'{path}: not a valid safetensors file, {error}') from None


def _load_scheduler(path: Path) -> Scheduler:
    config = read_json(path)
    name = config.get('_class_name')
    if name not in SCHEDULERS:
        raise ValueError(
            f'{path}: scheduler {name!r} is unknown, allowed are {sorted(SCHEDULERS)}'
        )
    try:
        scheduler = SCHEDULERS[name].from_config(config)
        SCHEDULERS[name].from_config(config).set_timesteps(2)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f'{path}: not a valid {name} configuration, {error}') from None
    return scheduler


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(set(folder.rglob('*.safetensors')) - set((folder / PROMPTS).glob('*'))):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open('rb') as file:
            digest.update(hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()
