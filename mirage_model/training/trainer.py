"""The loop that every training shares: steps, logs, checkpoints that resume exactly.

What a step sees follows from (seed, step, rank) alone, and the learning rate from the step, so that a
checkpoint is the weights, the optimiser's moments, a number and the means that are not yet logged.
Accelerate brings devices, precision, several processes and machines, and sharding.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
import json
import math
from pathlib import Path
import subprocess
import time
from typing import Protocol, runtime_checkable

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, gather_object
import numpy as np
from pytorch_optimizer import Muon
from safetensors import safe_open
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mirage_model.io import as_json, check_same_run, remove_folder, write_json, written_whole

_MAY_CHANGE = ('steps', 'log_every', 'validate_every', 'checkpoint_every', 'fsdp')
MAY_DIFFER = ('commit', *(f'trainer.{name}' for name in _MAY_CHANGE))
"""Fields of config.json that may change when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """``accumulate`` batches make a step. ``precision`` is accelerate's: 'no' is float32.

    ``fsdp`` shards parameters, gradients and moments over the GPUs, block by block.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    precision: str = 'no'
    fsdp: bool = False
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that mean nothing."""
        for name in ('steps', 'accumulate', 'log_every', 'validate_every', 'checkpoint_every'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
        for name in ('learning_rate', 'clip_norm'):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """``loss`` is a scalar with a graph, ``logs`` are plain numbers, ``names`` the clips of the batch."""

    loss: Tensor
    logs: dict[str, float]
    names: list[str]


@runtime_checkable
class Objective(Protocol):
    """What is trained and how it is judged. ``module`` holds every trainable parameter.

    Where the module has `_no_split_modules`, `TrainerConfig.fsdp` gathers the blocks of these classes one
    at a time. Sharded, every process must call the module equally often, in `step` and in `validate`.
    """

    module: nn.Module

    def step(
        self, module: nn.Module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        """The loss of one batch by ``module``, which is the prepared one; geometry is left in float32."""
        ...

    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """Figures of `module` as it is now. Called on every process, with a writer on the main one."""
        ...


class DivergedError(RuntimeError):
    """A loss or a gradient is NaN or infinite; the message names the step and the clips."""


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to zero at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fit(objective: Objective, config: TrainerConfig, run: Path, *, full_config: dict) -> None:
    """Train to the last step, from the newest checkpoint of the run folder if there is one.

    Raises DivergedError on every process alike, and ValueError where the checkpoint does not fit or the run
    began with another configuration; only the number of steps, how often it says and saves, and sharding may change.
    """
    accelerator = _accelerator(config)
    main = accelerator.is_main_process
    optimizer = make_optimizer(objective.module, config.learning_rate, config.weight_decay)
    module, optimizer = accelerator.prepare(objective.module, optimizer)
    done = _resume(run, objective.module, optimizer)
    described = {'trainer': asdict(config), **full_config}
    if done.step:
        check_same_run(run / 'config.json', described, may_differ=MAY_DIFFER)
    accelerator.wait_for_everyone()
    if main:
        _describe(run, described, done.step)
    accelerator.wait_for_everyone()
    with _writer(run, done.step) if main else nullcontext() as writer:
        _train(accelerator, objective, module, optimizer, config, run, done, writer)


def make_optimizer(module: nn.Module, learning_rate: float, weight_decay: float) -> Muon:
    """Muon for the weights of linear layers and convolutions, AdamW for the rest, at one learning rate.

    Muon's steps are as long as AdamW's: 0.2 sqrt(max(rows, columns)) times an orthogonal matrix.
    """
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    matrices = [p for n, p in named.items() if n.endswith('weight') and p.ndim > 1]
    others = [p for n, p in named.items() if not (n.endswith('weight') and p.ndim > 1)]
    common = {'lr': learning_rate, 'weight_decay': weight_decay}
    groups = [
        {'params': matrices, 'use_muon': True, 'use_adjusted_lr': True, **common},
        {'params': others, 'use_muon': False, 'betas': (0.9, 0.95), **common},
    ]
    return Muon([group for group in groups if group['params']])


def _train(
    accelerator: Accelerator,
    objective: Objective,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainerConfig,
    run: Path,
    done: _Progress,
    writer: SummaryWriter | None,
) -> None:
    start, began = done.step, time.monotonic()
    steps = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not writer)
    for step in steps:
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(config, step)
        done.add(_update(accelerator, objective, module, optimizer, config, step))
        last = done.step == config.steps
        if done.step % config.log_every == 0:
            means = done.take_means()
            if writer is not None:
                rate = (done.step - start) / (time.monotonic() - began)
                for name, value in {**means, 'steps_per_second': rate}.items():
                    writer.add_scalar(f'train/{name}', value, done.step)
                steps.set_postfix({name: f'{value:.4f}' for name, value in means.items()})
        if done.step % config.validate_every == 0 or last:
            figures = objective.validate(writer, done.step)
            if isinstance(module, FSDPModule):
                # a forward without a backward leaves the outermost parameters gathered
                module.reshard()
            if writer is not None:
                _record(run, writer, done.step, figures)
        if done.step % config.checkpoint_every == 0 or last:
            if writer is not None:
                writer.flush()
            _save(run, done, objective.module, optimizer, main=writer is not None)
            accelerator.wait_for_everyone()


@dataclass(kw_only=True)
class _Progress:
    """Steps done, and the sums of what the last ``count`` of them would log."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, logs: dict[str, float]) -> None:
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in logs.items()}
        self.count += 1
        self.step += 1

    def take_means(self) -> dict[str, float]:
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def processes() -> PartialState:
    """Those that train together, and the device of this one. Without GPUs they meet on their CPUs."""
    return PartialState(cpu=not torch.accelerator.is_available())


def _accelerator(config: TrainerConfig) -> Accelerator:
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulate,
        fsdp_plugin=sharding(config) if config.fsdp else None,
    )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded and not accelerator.is_fsdp2:
        raise ValueError('sharding needs version 2: accelerate launch --fsdp_version 2')
    if config.fsdp and accelerator.num_processes > 1 and not sharded:
        raise ValueError('fsdp shards over GPUs, and these processes have none: leave it out')
    return accelerator


def sharding(config: TrainerConfig) -> FullyShardedDataParallelPlugin:
    """How accelerate shards: weights are kept in float32; inputs such as timesteps are never rounded."""
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy='transformer_based_wrap',
        mixed_precision_policy=policy if config.precision == 'bf16' else None,
    )


def _update(
    accelerator: Accelerator,
    objective: Objective,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainerConfig,
    step: int,
) -> dict[str, float]:
    """One step of the optimiser, and its logs: means over its batches and over all processes."""
    trained = [p for p in objective.module.parameters() if p.requires_grad]
    sums: dict[str, float] = {}
    names: list[str] = []
    for micro in range(config.accumulate):
        rng = np.random.default_rng((config.seed, step, micro, accelerator.process_index))
        generator = torch.Generator(accelerator.device).manual_seed(int(rng.integers(2**62)))
        with accelerator.accumulate(module):
            # accelerate casts inside the prepared module alone: geometry stays in float32
            result = objective.step(module, rng, generator, step)
            names += result.names
            _check(accelerator, 'loss', result.loss.detach(), result.names, step)
            accelerator.backward(result.loss)
            if accelerator.sync_gradients:
                norm = whole(accelerator.clip_grad_norm_(trained, config.clip_norm))
                _check(accelerator, 'norm of the gradient', norm, names, step)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in (*result.logs.items(), ('loss', float(result.loss.detach()))):
            sums[name] = sums.get(name, 0.0) + value / config.accumulate
    sums['grad_norm'] = float(norm)
    values = torch.tensor(list(sums.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(sums, accelerator.reduce(values, 'mean').tolist(), strict=True))


def _check(
    accelerator: Accelerator, what: str, value: Tensor, names: list[str], step: int
) -> None:
    """Raise DivergedError on all processes if ``value`` is not finite on one of them."""
    values = accelerator.gather(value.reshape(1))
    if not torch.isfinite(values).all():
        bad = gather_object([] if torch.isfinite(value) else names)
        raise DivergedError(f'{what} is {values.tolist()} at step {step}: {bad}')


def _writer(run: Path, step: int) -> SummaryWriter:
    """Logs that go on after ``step``; what was logged for later steps is hidden."""
    return SummaryWriter(str(run / 'logs'), purge_step=step + 1)


def _record(run: Path, writer: SummaryWriter, step: int, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        writer.add_scalar(f'validation/{name}', value, step)
    with (run / 'validation.jsonl').open('a') as file:
        file.write(as_json({'step': step, **figures}, indent=None) + '\n')
    tqdm.write(f'step {step}: ' + ', '.join(f'{k} {v:.3f}' for k, v in figures.items()))


def _describe(run: Path, described: dict, step: int) -> None:
    """Write what is run, and forget validations of steps that will be done again."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / 'config.json', {**described, 'commit': _commit()})
    path = run / 'validation.jsonl'
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(''.join(line for line in lines if json.loads(line)['step'] <= step))


def whole(value: Tensor) -> Tensor:
    """All of a tensor that may be sharded; then every process must ask."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _gathered(tensors: dict[str, Tensor], *, main: bool) -> dict[str, Tensor]:
    """The whole tensors on the CPU of the main process, one after another; nothing on the others."""
    gathered = {}
    for name, value in tensors.items():
        value = whole(value)
        if main:
            gathered[name] = value.cpu().contiguous()
    return gathered


def _save(run: Path, done: _Progress, module: nn.Module, optimizer, *, main: bool) -> None:
    """All parameters, frozen ones too, written aside, then renamed; the two newest are kept."""
    own = dict(module.named_parameters())
    weights = _gathered(own, main=main)
    moments = _gathered(
        {
            f'{name}/{key}': value
            for name, parameter in own.items()
            if parameter.requires_grad
            for key, value in optimizer.state[parameter].items()
        },
        main=main,
    )
    if not main:
        return
    folder = run / f'checkpoint-{done.step:07d}'
    with written_whole(folder) as part:
        part.mkdir()
        save_file(weights, part / 'parameters.safetensors')
        save_file(moments, part / 'optimizer.safetensors')
        (part / 'state.json').write_text(json.dumps(vars(done)))
    for old in checkpoints(run)[:-2]:
        remove_folder(old)


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(p for p in run.glob('checkpoint-*') if p.suffix != '.part')


def load_parameters(
    module: nn.Module, checkpoint: Path, *, words: tuple[str, ...] = ('',)
) -> None:
    """Copy a checkpoint's parameters into a module, those alone that have one of the words in their names.

    Raises ValueError that names what does not fit.
    """
    path = checkpoint / 'parameters.safetensors'
    if not path.is_file():
        raise ValueError(f'{path} is missing')
    copy_parameters(module, load_file(path), checkpoint, words=words)


def copy_parameters(
    module: nn.Module, stored: dict[str, Tensor], folder: Path, *, words: tuple[str, ...] = ('',)
) -> None:
    """Copy what ``folder`` holds into a module, as `load_parameters` does."""

    def meant(name: str) -> bool:
        return any(word in name for word in words)

    own = {name: value for name, value in module.named_parameters() if meant(name)}
    missing = sorted(own.keys() - stored.keys())
    if missing:
        raise ValueError(f'{folder} lacks {len(missing)} parameters, {missing[0]} among them')
    for name, value in stored.items():
        if not meant(name):
            continue
        if name not in own or own[name].shape != value.shape:
            raise ValueError(f'{folder}: {name} {tuple(value.shape)} does not fit the model')
        own[name].data.copy_(value)


@torch.no_grad()
def _resume(run: Path, module: nn.Module, optimizer) -> _Progress:
    """Read the newest checkpoint into a module that is prepared already, tensor by tensor."""
    found = checkpoints(run)
    if not found:
        return _Progress()
    own = dict(module.named_parameters())
    trained = {name for name, parameter in own.items() if parameter.requires_grad}
    other = ValueError(f'{found[-1]} is of another model or stage; start in another run folder')
    with (
        safe_open(found[-1] / 'parameters.safetensors', framework='pt') as weights,
        safe_open(found[-1] / 'optimizer.safetensors', framework='pt') as moments,
    ):
        if set(weights.keys()) != own.keys():
            raise other
        if {key.rpartition('/')[0] for key in moments.keys()} != trained:
            raise other
        for key in weights.keys():
            value = weights.get_tensor(key)
            if value.shape != own[key].shape:
                raise other
            own[key].copy_(_like(own[key], value))
        for key in moments.keys():
            name, _, moment = key.rpartition('/')
            optimizer.state[own[name]][moment] = _like(own[name], moments.get_tensor(key))
    done = _Progress(**json.loads((found[-1] / 'state.json').read_text()))
    for group in optimizer.param_groups:
        group['step'] = done.step
    return done


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` where and how ``parameter`` is held: each process keeps its own shard of it."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(
        value, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _commit() -> str:
    done = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return done.stdout.strip() or 'unknown'
