"""Configurations of the trainings and their commands, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
import math
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, UseAppendAction, arg

Size = Literal['tiny', 'wan22_5b']
Stage = Literal['backbone', 'side_branch', 'adapter', 'joint']
CodecStage = Literal['images', 'video', 'aligned', 'reprojection']
MemoryName = Literal[
    'latent', 'rgb_cloud', 'retrieved_views', 'overlapping_views', 'lifted_features', 'none'
]
Precision = Literal['no', 'bf16']
Prediction = Literal['velocity', 'first_guess']
SideInput = Literal['mirage', 'official']
LoraTargets = Literal['self_attention', 'all']
AblationName = Literal[
    'full', 'rgb_cloud', 'lifted', 'no_filter', 'one_stage', 'no_memory', 'depth_5', 'depth_15'
]


def check_count(name: str, value: int) -> None:
    """Raise ValueError for a count below 1."""
    if value < 1:
        raise ValueError(f'{name}: {value}, must be at least 1')


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Steps, optimiser, precision, logs and checkpoints of a training."""

    steps: int
    """Optimiser steps."""
    learning_rate: float = 1e-3
    """Largest learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up; a cosine down to zero follows."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Batches per optimiser step."""
    precision: Precision = 'no'
    """Precision of the forward pass: float32 ('no') or bfloat16."""
    fsdp: bool = False
    """Shard parameters, gradients and moments over the GPUs, block by block."""
    seed: int = 0
    """Random seed of weights and samples."""
    log_every: int = 20
    """Steps between logged means."""
    validate_every: int = 500
    """Steps between validations."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ('steps', 'accumulate', 'log_every', 'validate_every', 'checkpoint_every'):
            check_count(name, getattr(self, name))
        for name in ('learning_rate', 'clip_norm'):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f'{name}: {getattr(self, name)}, must be positive')


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Memory that a training sample reads, and its errors.

    ``empty``, ``seed_only``, ``rollout`` and ``visits`` are shares of the samples and add up to 1.
    Observed points get a tenth of the noise of generated ones.
    """

    empty: float = 0.1
    """Share of samples with an empty memory."""
    seed_only: float = 0.25
    """Share of samples whose memory holds the chunk's first frame alone."""
    rollout: float = 0.35
    """Share of samples whose memory holds what a rollout has written up to the chunk."""
    visits: float = 0.3
    """Share of samples whose memory holds frames of any time in the clip."""
    max_visits: int = 6
    """Largest number of frames of an earlier visit."""
    depth_frame: float = 0.04
    """Standard deviation of the log of depth, per frame."""
    depth_cell: float = 0.02
    """Standard deviation of the log of depth, per latent cell."""
    position: float = 0.02
    """Standard deviation of camera positions [m]."""
    rotation: float = 0.3
    """Standard deviation of camera rotations [degrees]."""
    latent: float = 0.1
    """Largest standard deviation of noise on latents."""
    drop: float = 0.3
    """Largest share of latent cells that are dropped."""
    sensor: float = 0.0
    """Standard deviation of the log of depth, per latent cell, observed ones included in full."""
    imagined: float = 0.25
    """Share of samples that start from a chunk that the model generated itself."""
    imagined_from: int = 1000
    """First step with such samples."""
    imagined_steps: int = 4
    """Denoising steps of such chunks."""

    def __post_init__(self) -> None:
        kinds = ('empty', 'seed_only', 'rollout', 'visits')
        total = sum(getattr(self, kind) for kind in kinds)
        if abs(total - 1) > 1e-6:
            raise ValueError(f'{", ".join(kinds)}: sum is {total:g}, the shares must add up to 1')
        for name in (*kinds, 'drop', 'imagined'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}: {getattr(self, name)}, must be a share in 0..1')
        for name in ('depth_frame', 'depth_cell', 'position', 'rotation', 'latent', 'sensor'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name}: {getattr(self, name)}, must be 0 or more')
        for name in ('max_visits', 'imagined_steps'):
            check_count(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation of a trained model to few denoising steps; see `training.distill`."""

    steps: int = 0
    """Denoising steps that the model learns to need; 0 trains by flow matching instead."""
    substeps: int = 8
    """Steps of the teacher in each of them."""
    guidance: float = 1.0
    """Guidance of the teacher, from the model's own text to the captions; 1 is none."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f'steps: {self.steps}, must be 0 or more')
        check_count('substeps', self.substeps)


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Size of a world model, the stage that trains it, and its samples."""

    size: Size = 'tiny'
    """Size of the backbone."""
    stage: Stage = 'joint'
    """Parameters that are trained: backbone without memory, side branch alone, side branch with
    LoRA adapter, or all."""
    batch: int = 4
    """Chunks per batch and process."""
    shift: float = 3.0
    """Shift of the noise levels towards noise, in training and in the sampler's schedule."""
    memory: MemoryName = 'latent'
    """Kind of memory."""
    splat_size: int = 3
    """Largest side of the square that a latent point covers in a readout [cells]; odd."""
    dynamic_filter: bool = True
    """Keep dynamic objects out of the memory."""
    lora_rank: int = 64
    """Rank of the adapter."""
    lora_targets: LoraTargets = 'self_attention'
    """Layers with adapters: as in the paper, or all that its training code adapts."""
    side_input: SideInput = 'mirage'
    """Channels of the side branch: readout and rays, or those of the paper's training code."""
    references: int = 0
    """Largest number of earlier latent frames of the same place that a chunk attends to."""
    preceding: int = 0
    """Largest number of latent frames before the context that a chunk attends to."""
    recall: float = 0.5
    """Share of the batches with references and preceding frames, if they are not 0."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass, which saves GPU memory."""
    validation_clips: int = 8
    """Clips per validation."""
    sampler_steps: int = 8
    """Denoising steps in validation."""
    prediction: Prediction = 'velocity'
    """Output of the network: velocity, or a correction of the resampler's first guess."""
    caption_dropout: float = 0.1
    """Share of the samples with captions that train with the model's own text instead."""
    context: ContextConfig = ContextConfig()
    distill: DistillConfig = DistillConfig()

    def __post_init__(self) -> None:
        for name, allowed in (
            ('size', Size),
            ('stage', Stage),
            ('memory', MemoryName),
            ('prediction', Prediction),
            ('side_input', SideInput),
            ('lora_targets', LoraTargets),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f'{name}: {getattr(self, name)!r} is unknown, must be one of '
                    f'{", ".join(get_args(allowed))}'
                )
        if self.stage == 'backbone' and self.prediction == 'first_guess':
            raise ValueError(
                'stage: backbone has no memory and so no first guess, must be another stage'
            )
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f'caption_dropout: {self.caption_dropout}, must be a share in 0..1')
        for name in ('batch', 'splat_size', 'lora_rank', 'validation_clips', 'sampler_steps'):
            check_count(name, getattr(self, name))
        for name in ('references', 'preceding'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name}: {getattr(self, name)}, must be 0 or more')


@dataclass(frozen=True, kw_only=True)
class WorldModelTraining:
    """Train the world model on encoded clips, by flow matching on the target frames."""

    latents: Path
    """Folder of prepared latents, with train/ and validation/."""
    clips: Path
    """Folder of the clips that the latents were made of."""
    codec: Path
    """VAE folder that encoded the latents."""
    run: Path
    """Run folder; an interrupted training continues from its newest checkpoint."""
    backbone: Path | None = None
    """Diffusers folder of a trained transformer to start from."""
    text: Path | None = None
    """embedding.safetensors of a prompt, the model's own text; None learns an embedding."""
    encoder: Path | None = None
    """Folder of text_encoder/ and tokenizer/, for clips that train with their captions; the own
    text is then the empty prompt by default."""
    resampler: Path | None = None
    """Folder of the resampler, which the prediction first_guess needs."""
    start: Annotated[Path | None, arg(name='from')] = None
    """Checkpoint or model folder to start from."""
    compile: bool = False
    """Compile the blocks: a minute at the start, then faster steps."""
    world_model: Annotated[WorldModelConfig, arg(name='')] = WorldModelConfig()
    trainer: Annotated[TrainerConfig, arg(name='')] = TrainerConfig(
        steps=4000, validate_every=1000
    )


@dataclass(frozen=True, kw_only=True)
class FirstGuessConfig:
    """Sizes of the fits and samples of the training."""

    channels: int = 24
    """Latent channels."""
    stride: int = 4
    """Height and width of a block [px]."""
    widths: tuple[int, ...] = (48, 96, 144)
    """Channels of the resampler's U-Net at the size of the grid, a half, a quarter; none leaves
    it out."""
    frame_step: int = 13
    """Frames from one frame that the codec is fitted on to the next, within a clip."""
    scenes: int = 3
    """Clips of a batch."""
    targets: int = 4
    """Target frames of a clip in a batch."""
    horizon: int = 16
    """Farthest target after the context frame, and length of a generated chunk [frames]."""
    splat_size: int = 3
    """Largest side of the square that a latent point covers in a readout [cells]; odd."""
    empty: float = 0.1
    """Share of samples with an empty memory."""
    visits: float = 0.2
    """Share of samples whose memory also holds frames of any time in the clip."""
    max_visits: int = 3
    """Largest number of such frames."""
    imagined: float = 0.3
    """Share of samples that start from a chunk that the resampler generated itself."""
    imagined_from: int = 500
    """First step with such samples."""
    colour: float = 0.15
    """Largest relative change of red, green and blue."""
    noise: ContextConfig = ContextConfig(drop=0.1, latent=0.05)
    """Errors of what the memory holds; its shares are not used."""
    gradient: float = 0.6
    """Weight of the difference of gradients in observed blocks."""
    contrast: float = 0.1
    """Weight of the difference of a frame's log contrast."""
    average: float = 0.995
    """Decay of the moving average of the weights, which is what is validated and saved."""
    validation_clips: int = 24
    """Clips per validation."""


@dataclass(frozen=True, kw_only=True)
class FirstGuessTraining:
    """Fit the block codec of mirage-tiny, and train its resampler."""

    clips: Path
    """Folder of clips, with train/ and validation/."""
    run: Path
    """Run folder, in which vae/ and resampler/ are written; an interrupted training continues."""
    first_guess: Annotated[FirstGuessConfig, arg(name='')] = FirstGuessConfig()
    trainer: Annotated[TrainerConfig, arg(name='')] = TrainerConfig(
        steps=6000, learning_rate=2e-3, warmup_steps=50, weight_decay=1e-4
    )


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """Print parameters, GPU memory, operations and checkpoint sizes of a training.

    It takes the options of `mirage train world-model` that are not folders.
    """

    world_model: Annotated[WorldModelConfig, arg(name='')] = WorldModelConfig()
    trainer: Annotated[TrainerConfig, arg(name='')] = TrainerConfig(steps=4000)


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Samples and weights of the losses of one stage of the codec's training."""

    frames: int = 1
    """Frames of a sample; 1 trains on single images."""
    batch: int = 16
    """Samples per batch."""
    crop: int = 64
    """Side of the random crops [px]."""
    noise: float = 0.02
    """Standard deviation of the noise on latents."""
    scale: float = 1e-4
    """Weight of the squared latents, which bounds them."""
    chroma: float = 0.5
    """Weight of the L1 error of chroma."""
    alignment: float = 0.0
    """Weight of `misalignment` between latents of clips and single-frame latents."""
    pairs: int = 0
    """Pairs of frames per batch for `reprojection`."""
    reprojection: float = 0.2
    """Weight of the error of reprojected latents, relative to their variance."""
    validation_clips: int = 12
    """Clips per validation."""


@dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """Train a small codec: on images, on clips, aligned with single-frame latents, under
    reprojection."""

    clips: Path
    """Folder of clips, with train/ and validation/."""
    run: Path
    """Folder of one run folder per stage and of the resulting vae/; an interrupted training
    continues."""
    stage: UseAppendAction[tuple[CodecStage, ...]] = ()
    """Stages to train, in this order; none trains all."""
    steps: int | None = None
    """Optimiser steps of each stage; None takes the stage's default."""
    start: Annotated[Path | None, arg(name='from')] = None
    """Checkpoint or VAE folder to start from."""
    compile: bool = False
    """Compile the codec: a minute or more at the start, then faster steps."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a model folder from trained parts.

    Sizes, splat size, memory and shift are those that the world model was trained with.
    """

    world_model: Path | None = None
    """Checkpoint of the world model, in its run folder; None makes a model of first guesses alone.
    """
    resampler: Path | None = None
    """Folder of the resampler, which the prediction first_guess needs."""
    vae: Path
    """VAE folder."""
    perception: Path
    """Folder of the perception network."""
    out: Path
    """Model folder to write."""
    text: Path | None = None
    """embedding.safetensors that the world model was trained with, if it did not learn its own."""
    name: str | None = None
    """Name of the model; None takes the default of its size, as for all options below."""
    height: int | None = None
    """Height of the frames [px]."""
    width: int | None = None
    """Width of the frames [px]."""
    chunk_frames: int | None = None
    """Frames of a chunk, the context frame included."""
    frame_rate: float | None = None
    """Frames per second of the training clips."""
    steps: int | None = None
    """Denoising steps."""
    perception_name: Literal['embedded', 'depth-anything', 'depth-anything-3'] | None = None
    """Kind of the perception network."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Budget of each variant with each seed, and its evaluation."""

    steps: int = 600
    """Optimiser steps of a variant, over all its stages."""
    seeds: int = 2
    """Number of random seeds."""
    batch: int = 4
    """Chunks per batch."""
    precision: Precision = 'no'
    """Precision of the forward pass: float32 ('no') or bfloat16."""
    clips: Annotated[int, arg(name='validation-clips')] = 8
    """Validation clips per evaluation."""
    sampler_steps: int = 4
    """Denoising steps."""
    learning_rate: float = 1e-3
    """Largest learning rate."""


@dataclass(frozen=True, kw_only=True)
class AblationsCommand:
    """Train variants of the world model from one backbone, and compare their rollouts."""

    latents: Path
    """Folder of prepared latents, with train/ and validation/."""
    clips: Path
    """Folder of the clips that the latents were made of."""
    codec: Path
    """VAE folder that encoded the latents."""
    start: Annotated[Path, arg(name='from')]
    """Checkpoint of stage backbone, or model folder."""
    out: Path
    """Folder of the results; interrupted ablations continue."""
    only: UseAppendAction[tuple[AblationName, ...]] = ()
    """Variants to train; none trains all."""
    ablations: Annotated[AblationConfig, arg(name='')] = AblationConfig()


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    """Plot the curves of trainings, and write them as CSV.

    Runs that continue each other are drawn one behind the other, in the given order.
    """

    runs: Positional[tuple[Path, ...]]
    """Run folders, or CSV files that this command wrote."""
    out: Path
    """Path of the results, without suffix: .csv and .png are written."""
    panel: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Scalars of one panel; may be repeated. None plots train/loss."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Embed a prompt for models that are trained with text, such as Wan2.2."""

    encoder: Path
    """Folder of text_encoder/ and tokenizer/ in diffusers' layout."""
    prompt: str
    """Prompt to embed."""
    model: Path
    """Model folder; it keeps the embedding for requests with this prompt."""
    own: bool = True
    """Make the prompt the model's own text too, which requests without a prompt take."""
