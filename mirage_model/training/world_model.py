"""Train the world model on encoded clips, by flow matching on the target frames.

``python -m mirage_model.training.world_model --latents DIR --clips DIR --codec DIR --run DIR --stage STAGE``

Stages: 'backbone' trains the backbone as an image-to-video model with no memory; 'side_branch' freezes it
and trains the side branch; 'adapter' adds LoRA on the self-attention and trains it with the side branch;
'joint' trains backbone and side branch at once.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers import WanTransformer3DModel
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mirage_model.adapters import add_adapter
from mirage_model.backbone import SIDE_LAYERS, TINY, Backbone
from mirage_model.camera import rays
from mirage_model.codec import Codec
from mirage_model.data.clip import load_clip
from mirage_model.data.latents import load_latents
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.sampler import sample_chunk, tiny_scheduler
from mirage_model.side_branch import SideBranch, SideBranchConfig, side_input
from mirage_model.training.context import ContextConfig, fill
from mirage_model.training.trainer import (
    StepResult,
    TrainerConfig,
    checkpoints,
    fit,
    load_parameters,
)

TRAINED = {
    'backbone': ('wan', 'text'),
    'side_branch': ('side_branch',),
    'adapter': ('side_branch', 'lora_'),
    'joint': ('wan', 'text', 'side_branch'),
}
"""Parameters of a stage: those with one of these words in their names."""


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """``shift`` moves the noise levels that are trained towards noise, as the sampler's schedule does."""

    stage: str = 'joint'
    batch: int = 4
    shift: float = 3.0
    footprint: int = 3
    lora_rank: int = 64
    validation_clips: int = 8
    sampler_steps: int = 8
    context: ContextConfig = ContextConfig()


class WorldModel(nn.Module):
    """The backbone with a text embedding that is learned where there is no text encoder."""

    def __init__(self, backbone: Backbone, text: Tensor):
        super().__init__()
        self.backbone = backbone
        self.text = nn.Parameter(text)

    def forward(self, latents: Tensor, timesteps: Tensor, side: Tensor | None) -> Tensor:
        text = self.text.expand(len(latents), *self.text.shape)
        return self.backbone(latents, timesteps, text, side)


def build_tiny(seed: int = 0) -> WorldModel:
    torch.manual_seed(seed)
    wan = WanTransformer3DModel(**TINY)
    side_branch = SideBranch(wan, SideBranchConfig(layers=SIDE_LAYERS['tiny']))
    return WorldModel(Backbone(wan, side_branch), torch.randn(1, TINY['text_dim']))


class WorldModelObjective:
    def __init__(
        self, model: WorldModel, config: WorldModelConfig, latents: Path, clips: Path, codec: Codec
    ):
        """``latents`` and ``clips`` each hold train/ and validation/."""
        self.module = model
        self.config = config
        self.codec = codec
        self.paths = sorted((latents / 'train').glob('*.safetensors'))
        self.validation = sorted((latents / 'validation').glob('*.safetensors'))
        self.validation = self.validation[: config.validation_clips]
        self.clips = clips
        if not self.paths or not self.validation:
            raise ValueError(f'no encoded clips in {latents}/train or {latents}/validation')
        if config.stage == 'adapter':
            add_adapter(model.backbone.wan, rank=config.lora_rank)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(word in name for word in TRAINED[config.stage]))

    def sample(self, path: Path, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Latents (c, k, h, w) of a chunk and the side input (s, k, h, w) of its frames."""
        tensors, cameras = load_latents(path)
        chunk = int(rng.integers(len(tensors['video'])))
        video = tensors['video'][chunk].float()
        now = chunk * (video.shape[1] - 1)
        memory = self._memory(video.shape[0])
        fill(memory, tensors, cameras, now=now, rng=rng, config=self.config.context)
        return video, self._side(memory, cameras[now : now + video.shape[1]])

    def step(
        self, module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        paths = [self.paths[i] for i in rng.integers(len(self.paths), size=self.config.batch)]
        samples = [self.sample(path, rng) for path in paths]
        device = self.module.text.device
        x = torch.stack([video for video, _ in samples]).to(device)
        side = torch.stack([s for _, s in samples]).to(device)
        u = torch.rand(len(x), generator=generator, device=device)
        sigma = self.config.shift * u / (1 + (self.config.shift - 1) * u)
        noise = torch.randn(x.shape, generator=generator, device=device)
        noisy = torch.lerp(x, noise, sigma.view(-1, 1, 1, 1, 1))
        noisy[:, :, 0] = x[:, :, 0]
        times = (1000 * sigma)[:, None].repeat(1, x.shape[2])
        times[:, 0] = 0
        velocity = module(noisy, times, None if self.config.stage == 'backbone' else side)
        error = (velocity - (noise - x))[:, :, 1:].square()
        return StepResult(loss=error.mean(), logs={}, names=[path.stem for path in paths])

    @torch.no_grad()
    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """PSNR of first chunks imagined from a seed with true depth, with and without the memory."""
        self.module.eval()
        device = self.module.text.device
        psnr, pictures = {'memory': [], 'empty': [], 'repeat_seed': [], 'codec': []}, []
        for path in self.validation:
            tensors, cameras = load_latents(path)
            video = tensors['video'][0].float()
            frames = load_clip(self.clips / 'validation' / path.name).frames
            count = (video.shape[1] - 1) * self.codec.temporal_stride + 1
            truth = frames[1:count].permute(0, 3, 1, 2).float() / 255
            shown = {
                'repeat_seed': (frames[:1].permute(0, 3, 1, 2).float() / 255).expand_as(truth)
            }
            shown['codec'] = self.codec.decode(video[None])[0, 1:]
            for name in ('memory', 'empty'):
                memory = self._memory(video.shape[0])
                if name == 'memory':
                    memory.write(
                        tensors['stills'][:1].float(),
                        tensors['depth'][:1],
                        cameras[:1],
                        keep=tensors['keep'][:1],
                        observed=True,
                    )
                latents = sample_chunk(
                    self.module.backbone,
                    tiny_scheduler(),
                    context=video[None, :, :1].to(device),
                    latent_frames=video.shape[1],
                    side=None
                    if self.config.stage == 'backbone'
                    else self._side(memory, cameras[: video.shape[1]])[None].to(device),
                    text=self.module.text[None],
                    steps=self.config.sampler_steps,
                    generator=torch.Generator().manual_seed(0),
                )
                shown[name] = self.codec.decode(latents.cpu())[0, 1:].clamp(0, 1)
            for name, frames in shown.items():
                psnr[name].append(-10 * torch.log10((frames - truth).square().mean()).item())
            rows = [truth, shown['memory'], shown['empty']]
            pictures.append(
                torch.cat([row[[3, 7, 11, 15]].movedim(0, 2).flatten(2) for row in rows], 1)
            )
        if writer is not None:
            writer.add_image('truth_memory_empty', torch.cat(pictures[:4], dim=1), step)
        self.module.train()
        return {f'{name}_psnr_db': float(np.mean(values)) for name, values in psnr.items()}

    def _memory(self, channels: int) -> LatentMemory:
        return LatentMemory(MemoryConfig(channels=channels, footprint=self.config.footprint))

    def _side(self, memory: LatentMemory, cameras) -> Tensor:
        return side_input(memory.readout(cameras)[None], rays(cameras, cameras[0])[None])[0]


STEPS = {'backbone': 4000, 'side_branch': 3000, 'adapter': 2000, 'joint': 4000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--latents', required=True, type=Path)
    parser.add_argument('--clips', required=True, type=Path)
    parser.add_argument('--codec', required=True, type=Path)
    parser.add_argument('--run', required=True, type=Path)
    parser.add_argument('--stage', choices=tuple(TRAINED), default='joint')
    parser.add_argument('--steps', type=int)
    parser.add_argument('--batch', type=int, default=WorldModelConfig.batch)
    parser.add_argument('--from', dest='start', type=Path, help='checkpoint folder to start from')
    parser.add_argument('--precision', choices=('no', 'bf16'), default='no')
    arguments = parser.parse_args()
    config = WorldModelConfig(stage=arguments.stage, batch=arguments.batch)
    trainer = TrainerConfig(
        steps=arguments.steps or STEPS[arguments.stage],
        validate_every=1000,
        precision=arguments.precision,
    )
    model = build_tiny()
    if arguments.start is not None:
        load_parameters(model, arguments.start)
    codec = Codec.from_folder(arguments.codec)
    objective = WorldModelObjective(model, config, arguments.latents, arguments.clips, codec)
    fit(
        objective,
        trainer,
        arguments.run,
        full_config={'world_model': asdict(config), 'backbone': TINY},
    )
    print(f'last checkpoint: {checkpoints(arguments.run)[-1]}')


if __name__ == '__main__':
    main()
