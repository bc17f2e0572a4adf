"""The training loop: steps, logs, and checkpoints that resume exactly.

Samples depend on (seed, step, process) alone, and the learning rate on the step. So a checkpoint
is the weights, the moments of the optimiser, the step, and the sums that are not yet logged.
Accelerate provides devices, precision, several processes and machines, and sharding.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
import copy
from dataclasses import asdict, dataclass, field
import json
import math
from pathlib import Path
import subprocess
import time
from typing import Generic, Protocol, TypeVar, runtime_checkable

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
from mirage_model.training.config import TrainerConfig

_Network = TypeVar('_Network', bound=nn.Module)
_MAY_CHANGE = ('steps', 'log_every', 'validate_every', 'checkpoint_every', 'fsdp')
MAY_DIFFER = ('commit', *(f'trainer.{name}' for name in _MAY_CHANGE))
"""Fields of config.json that may change when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Scalar loss with its graph, values to log, and the names of the batch's clips."""

    loss: Tensor
    logs: dict[str, float]
    names: list[str]


@runtime_checkable
class Objective(Protocol):
    """Loss of a training, and its validation.

    ``module`` holds all trainable parameters. With `_no_split_modules`, `TrainerConfig.fsdp`
    gathers blocks of these classes one at a time. Sharded, all processes must call the module
    equally often, in `step` and in `validate`.
    """

    module: nn.Module

    def step(
        self, module: nn.Module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult:
        """Return the loss of one batch.

        Args:
            module: `module` as accelerate prepared it; autocast is active inside it alone.
            rng: Random numbers of this batch.
            generator: The same for tensors on the training device.
            step: Number of the optimiser step.
        """
        ...

    def after_step(self, step: int) -> None:
        """Update what follows the weights, such as their moving average."""
        return None

    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]:
        """Return the metrics of `module`; only the main process has a writer."""
        ...


class Averaged(nn.Module, Generic[_Network]):
    """A network and the moving average of its weights, in one module so that both are saved."""

    def __init__(self, network: _Network) -> None:
        super().__init__()
        self.network: _Network = network
        self.average: _Network = copy.deepcopy(network).requires_grad_(False)

    def forward(self, *args):
        """Return the output of the network."""
        return self.network(*args)

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average towards the weights; copy integers."""
        averages = self.average.state_dict()
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                averages[name].lerp_(value, 1 - decay)
            else:
                averages[name].copy_(value)


class DivergedError(RuntimeError):
    """A loss or a gradient is not finite; the message names the step and the clips."""


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Return the rate at a step: linear warm-up, then a cosine down to zero at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fit(objective: Objective, config: TrainerConfig, run: Path, *, full_config: dict) -> None:
    """Train to the last step, from the newest checkpoint of the run folder if there is one.

    Args:
        full_config: What config.json describes beside the trainer.

    Raises:
        DivergedError: A loss or gradient is not finite, on any process; raised on all.
        ValueError: The checkpoint is of another model, or the run began with another
            configuration. Only `MAY_DIFFER` may change.
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
    """Return Muon for the weights of linear layers and convolutions, and AdamW for the rest.

    Both have one learning rate: Muon scales its orthogonal steps by 0.2 sqrt(max(rows, columns)),
    so that they are as long as those of AdamW.
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
        objective.after_step(step)
        last = done.step == config.steps
        if done.step % config.log_every == 0:
            means = done.take_means()
            if writer is not None:
                rate = (done.step - start) / (time.monotonic() - began)
                for name, value in {**means, 'steps_per_second': rate}.items():
                    writer.add_scalar(f'train/{name}', value, done.step)
                steps.set_postfix({name: f'{value:.4f}' for name, value in means.items()})
        if done.step % config.validate_every == 0 or last:
            metrics = objective.validate(writer, done.step)
            if isinstance(module, FSDPModule):
                # a forward without a backward leaves the outermost parameters gathered
                module.reshard()
            if writer is not None:
                _record(run, writer, done.step, metrics)
        if done.step % config.checkpoint_every == 0 or last:
            if writer is not None:
                writer.flush()
            _save(run, done, objective.module, optimizer, main=writer is not None)
            accelerator.wait_for_everyone()


@dataclass(kw_only=True)
class _Progress:
    """Steps done, and the sums of the logs of the last ``count`` of them."""

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
    """Return the processes that train together, and the device of this one: CPU without a GPU."""
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
        raise ValueError(
            'fsdp: version 1 is not supported, use accelerate launch --fsdp_version 2'
        )
    if config.fsdp and accelerator.num_processes > 1 and not sharded:
        raise ValueError('fsdp: these processes have no GPU to shard over, leave it out')
    return accelerator


def sharding(config: TrainerConfig) -> FullyShardedDataParallelPlugin:
    """Return the sharding of accelerate: float32 weights, and inputs that are not cast."""
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
    """Make one optimiser step; return its logs, means over its batches and over all processes."""
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
    """Return a writer that hides what was logged after ``step``."""
    return SummaryWriter(str(run / 'logs'), purge_step=step + 1)


def _record(run: Path, writer: SummaryWriter, step: int, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        writer.add_scalar(f'validation/{name}', value, step)
    with (run / 'validation.jsonl').open('a') as file:
        file.write(as_json({'step': step, **metrics}, indent=None) + '\n')
    tqdm.write(f'step {step}: ' + ', '.join(f'{k} {v:.3f}' for k, v in metrics.items()))


def _describe(run: Path, described: dict, step: int) -> None:
    """Write config.json, and drop validations of steps that are repeated."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / 'config.json', {**described, 'commit': _commit()})
    path = run / 'validation.jsonl'
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(''.join(line for line in lines if json.loads(line)['step'] <= step))


def whole(value: Tensor) -> Tensor:
    """Return the whole of a tensor; if it is sharded, all processes must call this."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _gathered(tensors: dict[str, Tensor], *, main: bool) -> dict[str, Tensor]:
    """Return whole tensors on the CPU of the main process, and nothing on the others."""
    gathered = {}
    for name, value in tensors.items():
        value = whole(value)
        if main:
            gathered[name] = value.cpu().contiguous()
    return gathered


def _save(run: Path, done: _Progress, module: nn.Module, optimizer, *, main: bool) -> None:
    """Save parameters, frozen ones too, buffers and moments; keep the two newest checkpoints."""
    parameters: dict[str, Tensor] = dict(module.named_parameters())
    weights = _gathered(parameters, main=main)
    moments = _gathered(
        {
            f'{name}/{key}': value
            for name, parameter in parameters.items()
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
        if buffers := _buffers(module):
            save_file(buffers, part / 'buffers.safetensors')
        (part / 'state.json').write_text(json.dumps(vars(done)))
    for old in checkpoints(run)[:-2]:
        remove_folder(old)


def checkpoints(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first."""
    return sorted(p for p in run.glob('checkpoint-*') if p.suffix != '.part')


def load_parameters(
    module: nn.Module, checkpoint: Path, *, words: tuple[str, ...] = ('',)
) -> None:
    """Copy those parameters of a checkpoint into a module whose names contain one of the words.

    Raises:
        ValueError: The checkpoint lacks a parameter of the module, or has one that does not fit.
    """
    path = checkpoint / 'parameters.safetensors'
    if not path.is_file():
        raise ValueError(f'{path}: missing, give a checkpoint folder')
    copy_parameters(module, load_file(path), checkpoint, words=words)


def copy_parameters(
    module: nn.Module,
    stored: Mapping[str, Tensor],
    folder: Path,
    *,
    words: tuple[str, ...] = ('',),
) -> None:
    """Copy the parameters that ``folder`` holds into a module, as `load_parameters` does."""

    def chosen(name: str) -> bool:
        return any(word in name for word in words)

    parameters = {name: value for name, value in module.named_parameters() if chosen(name)}
    missing = sorted(parameters.keys() - stored.keys())
    if missing:
        raise ValueError(f'{folder}: lacks {len(missing)} parameters, {missing[0]} among them')
    for name, value in stored.items():
        if not chosen(name):
            continue
        if name not in parameters or parameters[name].shape != value.shape:
            raise ValueError(f'{folder}: {name} {tuple(value.shape)} does not fit the model')
        parameters[name].data.copy_(value)


@torch.no_grad()
def _resume(run: Path, module: nn.Module, optimizer) -> _Progress:
    """Read the newest checkpoint into a prepared module, tensor by tensor."""
    saved = checkpoints(run)
    if not saved:
        return _Progress()
    newest = saved[-1]
    parameters = dict(module.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    other = ValueError(f'{newest}: of another model or stage, choose another run folder')
    with (
        safe_open(newest / 'parameters.safetensors', framework='pt') as weights,
        safe_open(newest / 'optimizer.safetensors', framework='pt') as moments,
    ):
        if set(weights.keys()) != parameters.keys():
            raise other
        if {key.rpartition('/')[0] for key in moments.keys()} != trained:
            raise other
        for key in weights.keys():
            value = weights.get_tensor(key)
            if value.shape != parameters[key].shape:
                raise other
            parameters[key].copy_(_like(parameters[key], value))
        for key in moments.keys():
            name, _, moment = key.rpartition('/')
            parameter = parameters[name]
            optimizer.state[parameter][moment] = _like(parameter, moments.get_tensor(key))
    if (newest / 'buffers.safetensors').is_file():
        for name, value in load_file(newest / 'buffers.safetensors').items():
            module.get_buffer(name).copy_(value)
    done = _Progress(**json.loads((newest / 'state.json').read_text()))
    for group in optimizer.param_groups:
        group['step'] = done.step
    return done


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the persistent buffers, such as the statistics of batch norm, on the
    CPU.
    """
    persistent = module.state_dict().keys()
    return {n: b.cpu().clone() for n, b in module.named_buffers() if n in persistent}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` on the device of ``parameter``, as the shard of this process if it is
    sharded."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        if value.shape != parameter.shape:
            return value
        # the optimiser is many times slower where its moments are laid out otherwise
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
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
