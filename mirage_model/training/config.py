"""Configurations of the trainings and their commands, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, UseAppendAction, arg

from mirage_model.options import (
    Checked,
    Count,
    Guidance,
    InputFile,
    InputFolder,
    InputPath,
    NotNegative,
    Positive,
    Share,
    Whole,
)

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


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Checked):
    """Steps, optimiser, precision, logs and checkpoints of a training."""

    steps: Count
    """Optimiser steps."""
    learning_rate: Positive = 1e-3
    """Largest learning rate."""
    warmup_steps: Whole = 100
    """Steps of linear warm-up; a cosine down to zero follows."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    clip_norm: Positive = 1.0
    """Largest norm of the gradient."""
    accumulate: Count = 1
    """Batches per optimiser step."""
    precision: Precision = 'no'
    """Precision of the forward pass: float32 ('no') or bfloat16."""
    fsdp: bool = False
    """Shard parameters, gradients and moments over the GPUs, block by block."""
    seed: Whole = 0
    """Random seed of weights and samples."""
    log_every: Count = 20
    """Steps between logged means."""
    validate_every: Count = 500
    """Steps between validations."""
    checkpoint_every: Count = 250
    """Steps between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class ContextConfig(Checked):
    """Memory that a training sample reads, and its errors.

    ``empty``, ``seed_only``, ``rollout`` and ``visits`` are shares of the samples and add up to 1.
    Observed points get a tenth of the noise of generated ones.
    """

    empty: Share = 0.1
    """Share of samples with an empty memory."""
    seed_only: Share = 0.25
    """Share of samples whose memory holds the chunk's first frame alone."""
    rollout: Share = 0.35
    """Share of samples whose memory holds what a rollout has written up to the chunk."""
    visits: Share = 0.3
    """Share of samples whose memory holds frames of any time in the clip."""
    max_visits: Count = 6
    """Largest number of frames of an earlier visit."""
    depth_frame: NotNegative = 0.04
    """Standard deviation of the log of depth, per frame."""
    depth_cell: NotNegative = 0.02
    """Standard deviation of the log of depth, per latent cell."""
    position: NotNegative = 0.02
    """Standard deviation of camera positions [m]."""
    rotation: NotNegative = 0.3
    """Standard deviation of camera rotations [degrees]."""
    latent: NotNegative = 0.1
    """Largest standard deviation of noise on latents."""
    drop: Share = 0.3
    """Largest share of latent cells that are dropped."""
    sensor: NotNegative = 0.0
    """Standard deviation of the log of depth, per latent cell, observed ones included in full."""
    imagined: Share = 0.25
    """Share of samples that start from a chunk that the model generated itself."""
    imagined_from: Whole = 1000
    """First step with such samples."""
    imagined_steps: Count = 4
    """Denoising steps of such chunks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds = ('empty', 'seed_only', 'rollout', 'visits')
        total = sum(getattr(self, kind) for kind in kinds)
        if abs(total - 1) > 1e-6:
            raise ValueError(f'{", ".join(kinds)}: sum is {total:g}, the shares must add up to 1')


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Checked):
    """Distillation of a trained model to few denoising steps; see `training.distill`."""

    steps: Whole = 0
    """Denoising steps that the model learns to need; 0 trains by flow matching instead."""
    substeps: Count = 8
    """Steps of the teacher in each of them."""
    guidance: Guidance = 1.0
    """Guidance of the teacher, from the model's own text to the captions; 1 is none."""


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig(Checked):
    """Size of a world model, the stage that trains it, and its samples."""

    size: Size = 'tiny'
    """Size of the backbone."""
    stage: Stage = 'joint'
    """Parameters that are trained: backbone without memory, side branch alone, side branch with
    LoRA adapter, or all."""
    batch: Count = 4
    """Chunks per batch and process."""
    shift: Positive = 3.0
    """Shift of the noise levels towards noise, in training and in the sampler's schedule."""
    memory: MemoryName = 'latent'
    """Kind of memory."""
    splat_size: Count = 3
    """Largest side of the square that a latent point covers in a readout [cells]; odd."""
    dynamic_filter: bool = True
    """Keep dynamic objects out of the memory."""
    lora_rank: Count = 64
    """Rank of the adapter."""
    lora_targets: LoraTargets = 'self_attention'
    """Layers with adapters: as in the paper, or all that its training code adapts."""
    side_input: SideInput = 'mirage'
    """Channels of the side branch: readout and rays, or those of the paper's training code."""
    references: Whole = 0
    """Largest number of earlier latent frames of the same place that a chunk attends to."""
    preceding: Whole = 0
    """Largest number of latent frames before the context that a chunk attends to."""
    recall: Share = 0.5
    """Share of the batches with references and preceding frames, if they are not 0."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass, which saves GPU memory."""
    validation_clips: Count = 8
    """Clips per validation."""
    sampler_steps: Count = 8
    """Denoising steps in validation."""
    prediction: Prediction = 'velocity'
    """Output of the network: velocity, or a correction of the resampler's first guess."""
    caption_dropout: Share = 0.1
    """Share of the samples with captions that train with the model's own text instead."""
    context: ContextConfig = ContextConfig()
    distill: DistillConfig = DistillConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
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


@dataclass(frozen=True, kw_only=True)
class WorldModelTraining(Checked):
    """Train the world model on encoded clips, by flow matching on the target frames."""

    latents: InputFolder
    """Folder of prepared latents, with train/ and validation/."""
    clips: InputFolder
    """Folder of the clips that the latents were made of."""
    codec: InputFolder
    """VAE folder that encoded the latents."""
    run: Path
    """Run folder; an interrupted training continues from its newest checkpoint."""
    backbone: InputFolder | None = None
    """Diffusers folder of a trained transformer to start from."""
    text: InputFile | None = None
    """embedding.safetensors of a prompt, the model's own text; None learns an embedding."""
    encoder: InputFolder | None = None
    """Folder of text_encoder/ and tokenizer/, for clips that train with their captions; the own
    text is then the empty prompt by default."""
    resampler: InputFolder | None = None
    """Folder of the resampler, which the prediction first_guess needs."""
    start: Annotated[InputPath | None, arg(name='from')] = None
    """Checkpoint or model folder to start from."""
    compile: bool = False
    """Compile the blocks: a minute at the start, then faster steps."""
    world_model: Annotated[WorldModelConfig, arg(name='')] = WorldModelConfig()
    trainer: Annotated[TrainerConfig, arg(name='')] = TrainerConfig(
        steps=4000, validate_every=1000
    )


@dataclass(frozen=True, kw_only=True)
class FirstGuessConfig(Checked):
    """Sizes of the fits and samples of the training."""

    channels: Count = 32
    """Latent channels."""
    stride: Count = 4
    """Height and width of a block [px]."""
    widths: tuple[Count, ...] = (64, 128, 192, 256)
    """Channels of the resampler's U-Net at the size of the grid, a half, a quarter and so on; none
    leaves it out."""
    frame_step: Count = 13
    """Frames from one frame that the codec is fitted on to the next, within a clip."""
    samples: Count = 20_000
    """Samples that are prepared before the training, of 300 kB each."""
    targets: Count = 6
    """Samples of one memory: target frames of a clip."""
    batch: Count = 16
    """Samples of a step."""
    horizon: Count = 16
    """Farthest target after the context frame, and length of a generated chunk [frames]."""
    splat_size: Count = 3
    """Largest side of the square that a latent point covers in a readout [cells]; odd."""
    empty: Share = 0.1
    """Share of samples with an empty memory."""
    visits: Share = 0.2
    """Share of samples whose memory also holds frames of any time in the clip."""
    max_visits: Count = 3
    """Largest number of such frames."""
    imagined: Share = 0.3
    """Share of samples that start from a chunk of first guesses."""
    colour: NotNegative = 0.15
    """Largest relative change of red, green and blue."""
    noise: ContextConfig = ContextConfig(drop=0.1, latent=0.05)
    """Errors of what the memory holds; its shares are not used."""
    gradient: NotNegative = 0.6
    """Weight of the difference of gradients in observed blocks."""
    contrast: NotNegative = 0.1
    """Weight of the difference of a frame's log contrast."""
    average: Share = 0.998
    """Decay of the moving average of the weights, which is what is validated and saved."""
    validation_clips: Count = 24
    """Clips per validation."""


@dataclass(frozen=True, kw_only=True)
class FirstGuessTraining(Checked):
    """Fit the block codec of mirage-tiny, and train its resampler."""

    clips: InputFolder
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
class CodecTraining(Checked):
    """Train a small codec: on images, on clips, aligned with single-frame latents, under
    reprojection."""

    clips: InputFolder
    """Folder of clips, with train/ and validation/."""
    run: Path
    """Folder of one run folder per stage and of the resulting vae/; an interrupted training
    continues."""
    stage: UseAppendAction[tuple[CodecStage, ...]] = ()
    """Stages to train, in this order; none trains all."""
    steps: Count | None = None
    """Optimiser steps of each stage; None takes the stage's default."""
    start: Annotated[InputPath | None, arg(name='from')] = None
    """Checkpoint or VAE folder to start from."""
    compile: bool = False
    """Compile the codec: a minute or more at the start, then faster steps."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Checked):
    """Write a model folder from trained parts.

    Sizes, splat size, memory and shift are those that the world model was trained with.
    """

    world_model: InputFolder | None = None
    """Checkpoint of the world model, in its run folder; None makes a model of first guesses alone.
    """
    resampler: InputFolder | None = None
    """Folder of the resampler, which the prediction first_guess needs."""
    vae: InputFolder
    """VAE folder."""
    perception: InputFolder
    """Folder of the perception network."""
    out: Path
    """Model folder to write."""
    text: InputFile | None = None
    """embedding.safetensors that the world model was trained with, if it did not learn its own."""
    name: str | None = None
    """Name of the model; None takes the default of its size, as for all options below."""
    height: Count | None = None
    """Height of the frames [px]."""
    width: Count | None = None
    """Width of the frames [px]."""
    chunk_frames: Count | None = None
    """Frames of a chunk, the context frame included."""
    frame_rate: Positive | None = None
    """Frames per second of the training clips."""
    steps: Count | None = None
    """Denoising steps."""
    perception_name: Literal['embedded', 'depth-anything', 'depth-anything-3'] | None = None
    """Kind of the perception network."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig(Checked):
    """Budget of each variant with each seed, and its evaluation."""

    steps: Count = 600
    """Optimiser steps of a variant, over all its stages."""
    seeds: Count = 2
    """Number of random seeds."""
    batch: Count = 4
    """Chunks per batch."""
    precision: Precision = 'no'
    """Precision of the forward pass: float32 ('no') or bfloat16."""
    clips: Annotated[Count, arg(name='validation-clips')] = 8
    """Validation clips per evaluation."""
    sampler_steps: Count = 4
    """Denoising steps."""
    learning_rate: Positive = 1e-3
    """Largest learning rate."""


@dataclass(frozen=True, kw_only=True)
class AblationsCommand(Checked):
    """Train variants of the world model from one backbone, and compare their rollouts."""

    latents: InputFolder
    """Folder of prepared latents, with train/ and validation/."""
    clips: InputFolder
    """Folder of the clips that the latents were made of."""
    codec: InputFolder
    """VAE folder that encoded the latents."""
    start: Annotated[InputPath, arg(name='from')]
    """Checkpoint of stage backbone, or model folder."""
    out: Path
    """Folder of the results; interrupted ablations continue."""
    only: UseAppendAction[tuple[AblationName, ...]] = ()
    """Variants to train; none trains all."""
    ablations: Annotated[AblationConfig, arg(name='')] = AblationConfig()


@dataclass(frozen=True, kw_only=True)
class CurvesConfig(Checked):
    """Plot the curves of trainings, and write them as CSV.

    Runs that continue each other are drawn one behind the other, in the given order.
    """

    runs: Positional[tuple[InputPath, ...]]
    """Run folders, or CSV files that this command wrote."""
    out: Path
    """Path of the results, without suffix: .csv and .png are written."""
    panel: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Scalars of one panel; may be repeated. None plots train/loss."""


@dataclass(frozen=True, kw_only=True)
class TextConfig(Checked):
    """Embed a prompt for models that are trained with text, such as Wan2.2."""

    encoder: Path
    """Folder of text_encoder/ and tokenizer/ in diffusers' layout; a prompt whose embedding the
    model folder has needs none."""
    prompt: str
    """Prompt to embed."""
    model: Path
    """Model folder; it keeps the embedding for requests with this prompt."""
    own: bool = True
    """Make the prompt the model's own text too, which requests without a prompt take."""
