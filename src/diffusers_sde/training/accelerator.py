"""The `Accelerator` of a run, and its batch sizes."""

import argparse
from datetime import timedelta
from pathlib import Path

DEFAULT_BATCH_SIZE = 16
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def resolve_batch_sizes(args: argparse.Namespace, num_processes: int) -> None:
    """Fill in `train_batch_size` and `gradient_accumulation_steps` from `total_batch_size`.

    Raises:
        ValueError: if the images of a step cannot be shared out evenly.
    """
    total, per_pass, passes = args.total_batch_size, args.train_batch_size, args.gradient_accumulation_steps
    if total is None:
        args.train_batch_size, args.gradient_accumulation_steps = per_pass or DEFAULT_BATCH_SIZE, passes or 1
        return
    if per_pass and passes and total != num_processes * per_pass * passes:
        raise ValueError(
            f"--total_batch_size {total} is not {num_processes} processes x --train_batch_size {per_pass} x "
            f"--gradient_accumulation_steps {passes} = {num_processes * per_pass * passes}; leave one of them out."
        )
    passes = passes or 1
    shares = num_processes * (per_pass or passes)
    if total % shares:
        by = "--train_batch_size" if per_pass else "--gradient_accumulation_steps"
        raise ValueError(
            f"--total_batch_size {total} cannot be shared out over {num_processes} processes with {by} "
            f"{per_pass or passes}; it must be a multiple of {shares}."
        )
    if per_pass:
        args.gradient_accumulation_steps = total // shares
    else:
        args.train_batch_size, args.gradient_accumulation_steps = total // shares, passes


def build_accelerator(args: argparse.Namespace):
    """The `Accelerator` of a run, with precision and batch sizes of `args` resolved.

    Raises:
        ValueError: if the precision is not possible on this device, the logger is not installed, the weights would be
            sharded, or the images of a step cannot be shared out evenly.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import ProjectConfiguration, is_tensorboard_available, is_wandb_available

    installed = {"none": True, "tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if not installed[args.logger]:
        package = "diffusers-sde[train]" if args.logger == "tensorboard" else args.logger
        raise ValueError(f'--logger {args.logger} is not installed; pip install "{package}", or pass --logger none.')
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=str(Path(args.output_dir) / args.logging_dir)
        ),
        step_scheduler_with_optimizer=False,
        # Other processes wait while the main one draws a grid.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    if accelerator.distributed_type in _SHARDED:
        raise ValueError(
            f"the accelerate configuration asks for {accelerator.distributed_type.value}, which shards the weights; "
            "the weight average and the checkpoints here need them whole. These networks fit one device: choose plain "
            "data parallelism by `accelerate config`, and --gradient_checkpointing for less memory."
        )
    args.mixed_precision = accelerator.mixed_precision
    if args.gradient_accumulation_steps is None and accelerator.gradient_accumulation_steps > 1:
        # That of accelerate's own environment.
        args.gradient_accumulation_steps = accelerator.gradient_accumulation_steps
    resolve_batch_sizes(args, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
    return accelerator
