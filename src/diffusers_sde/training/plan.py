"""What a run will do, in words and numbers: the log's first lines, and all of `--dry-run`."""

import argparse

import torch

from .components import image_size, is_centered_by_network

_GB = 1e9
_PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}


def describe_plan(args: argparse.Namespace, network: torch.nn.Module, scheduler, num_processes: int) -> list[str]:
    """Network, SDE, loss, optimiser, batch and memory of a run, one line each.

    Args:
        args: with precision and batch sizes resolved.
        network: on any device, the meta device included.
        scheduler: of the SDE.
        num_processes: of the run.
    """
    height, width = image_size(network)
    parameters = sum(p.numel() for p in network.parameters())
    passes, per_pass = args.gradient_accumulation_steps, args.train_batch_size
    clipping = f"gradient norm at most {args.max_grad_norm:g}" if args.max_grad_norm else "no clipping"
    optimizer = (
        f"AdamW, learning rate {args.learning_rate:g} ({args.lr_scheduler}, {args.lr_warmup_steps} steps of warm-up), "
        f"betas {args.adam_beta1:g} and {args.adam_beta2:g}, {clipping}, weight average {args.ema_decay:g}"
    )
    return [
        f"network: {type(network).__name__}, {parameters / 1e6:.2f} M parameters, images of {height} x {width} pixels "
        f"and {network.config.in_channels} channels in {'[0, 1]' if is_centered_by_network(network) else '[-1, 1]'}",
        f"SDE: {_describe_sde(scheduler)}",
        f"loss: {args.loss} score matching, weighting {args.loss_weighting}, times {args.time_sampling}, "
        f"{args.loss_reduction} over the values of an image",
        f"optimiser: {optimizer}",
        f"batch: {per_pass} images x {passes} passes x {num_processes} processes = "
        f"{per_pass * passes * num_processes} images per step; precision {_PRECISIONS[args.mixed_precision]}",
    ]


def describe_memory(args: argparse.Namespace, network: torch.nn.Module) -> str:
    """The estimated memory of one process in training."""
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    states = 5 * weights  # weights, gradients, two moments, average
    activations = activation_bytes(network, args.train_batch_size)
    if args.mixed_precision in ("fp16", "bf16"):
        activations //= 2
    return (
        f"memory per process, estimated: {states / _GB:.2f} GB for weights, gradients, moments and average, "
        f"{activations / _GB:.2f} GB for activations, {(states + activations) / _GB:.2f} GB in all"
    )


def activation_bytes(network: torch.nn.Module, batch_size: int) -> int:
    """Bytes that a forward pass in float32 keeps for the backward pass, found without computing anything."""
    config = network.config
    with torch.device("meta"):
        copy = type(network).from_config(config)
        x = torch.empty(2, config.in_channels, *image_size(network))
        timestep = torch.empty(2) if config.get("time_embedding_type") == "fourier" else torch.empty(2).long()
    if getattr(network, "is_gradient_checkpointing", False):
        copy.enable_gradient_checkpointing()
    parameters = {id(p) for p in copy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in parameters:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        copy.train()(x, timestep)
    return sum(t.untyped_storage().nbytes() for t in kept.values()) * batch_size // 2


def _describe_sde(scheduler) -> str:
    config = scheduler.config
    names = ("sigma_min", "sigma_max", "beta_min", "beta_max")
    values = ", ".join(f"{name} {config[name]:g}" for name in names if name in config)
    time = "continuous time" if config.continuous else f"{config.num_train_timesteps} labels"
    corrector = "" if config.corrector == "none" else f" + {config.corrector} (snr {config.snr:g})"
    return (
        f"{type(scheduler.sde).__name__}, {values}, {time}; sampled by {config.predictor}{corrector} in "
        f"{config.num_train_timesteps} steps"
    )
