"""The training loop behind `training/train_sde.py`."""

import argparse
import contextlib
import dataclasses
import logging
import math
import shutil
import time
from datetime import timedelta
from pathlib import Path

import torch

from ..schedulers import network_score
from . import checkpoints, hub, samples
from .components import build_network, build_scheduler, image_size, is_centered_by_network
from .data import describe, iterate_batches, load_images, open_source, to_data_range
from .ema import averaged_weights
from .images import ImageFormat
from .losses import denoising_score_matching_loss
from .options import SECRETS, check_args
from .progress import Progress
from .randomness import ShuffledOrder, StepNoise
from .stopping import StopSignal

logger = logging.getLogger(__name__)

_RESUME_KEYS = (
    "sde sigma_min sigma_max beta_min beta_max training_eps loss_reduction random_flip resolution channels pad "
    "center_crop train_batch_size gradient_accumulation_steps learning_rate lr_scheduler lr_warmup_steps seed "
    "mixed_precision num_processes num_images label_column"
).split()


def train(args: argparse.Namespace) -> int:
    """Train as the options say, up to the last step, the time limit or SIGTERM; save checkpoint and pipeline.

    Args:
        args: from `parse_args`.

    Returns:
        The number of optimiser steps taken in all.

    Raises:
        ValueError: if options, data and network do not fit together.
        FloatingPointError: if the loss is not finite.
    """
    start = time.monotonic()
    check_args(args)
    return Trainer(args, start).run()


class Trainer:
    """One run: everything that is built once, and the step.

    Args:
        args: from `parse_args`.
        start: `time.monotonic()` at the start of the program.
    """

    def __init__(self, args: argparse.Namespace, start: float):
        from accelerate.utils import set_seed

        self.args = args
        self.output_dir = Path(args.output_dir)
        self.stop = StopSignal(args.max_train_seconds, start)
        self.resume_from = self._find_resume_point()
        self.accelerator = build_accelerator(args)
        set_seed(args.seed)
        self.scheduler = build_scheduler(args)
        self.network = build_network(args)
        self._prepare_output_dir()
        self.source = self._open_source()
        self.order = ShuffledOrder(len(self.source), args.seed)
        self.images_per_step = (
            args.train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        )
        self.max_steps = args.max_train_steps or math.ceil(args.num_epochs * len(self.source) / self.images_per_step)
        self._prepare()
        # From here on the global generator is for dropout alone.
        set_seed(args.seed, device_specific=True)
        self.step = 0
        if self.resume_from is not None:
            self._resume()

    def _find_resume_point(self) -> Path | None:
        args = self.args
        if args.resume_from_checkpoint is not None:
            return checkpoints.find_checkpoint(args.output_dir, args.resume_from_checkpoint)
        existing = checkpoints.list_checkpoints(args.output_dir)
        if existing and not args.overwrite_output_dir:
            raise ValueError(
                f"--output_dir {args.output_dir} holds {existing[-1].name} of an earlier run. Go on from it by "
                "--resume_from_checkpoint latest, start anew by --overwrite_output_dir, or choose another folder."
            )
        return None

    def _prepare_output_dir(self) -> None:
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if self.resume_from is None:
                for path in checkpoints.list_checkpoints(self.output_dir):
                    shutil.rmtree(path)
        self.repository = None
        if self.args.push_to_hub and self.accelerator.is_main_process:
            self.repository = hub.create_repository(self.args)
        self.accelerator.wait_for_everyone()

    def _open_source(self):
        args = self.args
        image_format = ImageFormat(
            size=image_size(self.network),
            channels=self.network.config.in_channels,
            convert=args.channels is not None,
            pad=args.pad,
            center_crop=args.center_crop,
        )
        with self.accelerator.local_main_process_first():
            dataset = load_images(
                dataset_name=args.dataset_name,
                dataset_config_name=args.dataset_config_name,
                train_data_dir=args.train_data_dir,
                image_column=args.image_column,
                cache_dir=args.cache_dir,
            )
        return open_source(
            dataset,
            image_format,
            seed=args.seed,
            memory_limit=args.in_memory_limit,
            num_workers=args.dataloader_num_workers,
            show_progress=self.accelerator.is_local_main_process,
        )

    def _prepare(self) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        args, accelerator = self.args, self.accelerator
        if args.channels_last:
            self.network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=self.max_steps
        )
        self.centered = is_centered_by_network(self.network)
        self.ema = EMAModel(self.network.parameters(), decay=args.ema_decay, foreach=True)
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(self.network, optimizer, self.lr_scheduler)
        self.ema.to(accelerator.device)
        checkpoints.register_hooks(accelerator, self.ema)
        self.forward = torch.compile(self.model) if args.torch_compile else self.model
        self.score_fn = network_score(self.scheduler, self.forward)

    def _arguments(self) -> dict:
        """The options without secrets, and what else fixes the order of the data."""
        arguments = {name: value for name, value in vars(self.args).items() if name not in SECRETS}
        return arguments | {"num_processes": self.accelerator.num_processes, "num_images": len(self.source)}

    def _resume(self) -> None:
        self.accelerator.load_state(str(self.resume_from))
        self.step = checkpoints.checkpoint_step(self.resume_from)
        before, now = checkpoints.read_arguments(self.resume_from), self._arguments()
        for key in _RESUME_KEYS:
            if key in before and before[key] != now[key]:
                logger.warning(f"resumed with --{key} {now[key]} instead of {before[key]}: not the same run any more.")
        later = [path.name for path in checkpoints.list_checkpoints(self.output_dir)]
        later = [name for name in later if int(name.removeprefix("checkpoint-")) > self.step]
        if later:
            logger.warning(f"{', '.join(later)} of {self.output_dir} are later than {self.resume_from} and stay.")

    def run(self) -> int:
        """Train, save, sample; returns the steps taken in all."""
        args, accelerator = self.args, self.accelerator
        if args.logger != "none":
            config = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in self._arguments().items()}
            accelerator.init_trackers("train_sde", config=config)
        self._announce()
        self.progress = Progress(
            self.step, self.max_steps, self.images_per_step, accelerator.device, accelerator.is_local_main_process
        )
        self.saved_step = self.step if self.resume_from is not None else None
        with self.stop:
            self._loop()
            self._finish()
        self.progress.close()
        accelerator.end_training()
        return self.step

    def _announce(self) -> None:
        if not self.accelerator.is_main_process:
            return
        parameters = sum(p.numel() for p in self.network.parameters())
        network, sde = type(self.network).__name__, type(self.scheduler.sde).__name__
        for line in (
            f"data: {describe(self.source)}, range {'[0, 1]' if self.centered else '[-1, 1]'}",
            f"network: {network}, {parameters / 1e6:.2f} M parameters; SDE: {sde}",
            f"batch: {self.args.train_batch_size} x {self.args.gradient_accumulation_steps} passes x "
            f"{self.accelerator.num_processes} processes = {self.images_per_step} images per step",
            f"steps: {self.step} of {self.max_steps} done, {len(self.source) / self.images_per_step:.1f} per epoch",
        ):
            logger.info(line)

    def _loop(self) -> None:
        args, accelerator = self.args, self.accelerator
        self.model.train()
        accumulation = args.gradient_accumulation_steps
        batches = iterate_batches(
            self.source,
            self.order,
            batch_size=args.train_batch_size,
            first_micro_step=self.step * accumulation,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        while self.step < self.max_steps:
            self.progress.step(*self._train_step(batches))
            self.step += 1
            logs = self.step % args.logging_steps == 0
            if logs or self.step == self.max_steps:
                self._log()
            with self.progress.paused():
                if self.step % args.checkpointing_steps == 0:
                    self._save()
                if args.save_images_steps and self.step % args.save_images_steps == 0 and self.step < self.max_steps:
                    self._sample()
            # Several processes agree by a message, which costs a synchronisation: with the log only.
            if (accelerator.num_processes == 1 or logs) and self.stop.agreed(accelerator):
                logger.info(f"stopping at step {self.step}: {'SIGTERM' if self.stop.terminated else 'time is up'}.")
                return

    def _train_step(self, batches) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step; mean loss and gradient norm, on the device."""
        accelerator, accumulation = self.accelerator, self.args.gradient_accumulation_steps
        total = torch.zeros((), device=accelerator.device)
        norm = torch.zeros((), device=accelerator.device)
        for micro_step in range(self.step * accumulation, (self.step + 1) * accumulation):
            x_0, draw = self._batch(next(batches), micro_step)
            with accelerator.accumulate(self.model):
                loss = self._loss(x_0, draw, micro_step)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.detach()
        if not accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
        self.ema.step(self.network.parameters())
        return total / accumulation, norm

    def _loss(self, x_0: torch.Tensor, draw: StepNoise, micro_step: int) -> torch.Tensor:
        """Mean loss of one pass."""
        return denoising_score_matching_loss(
            self.scheduler.sde, self.score_fn, x_0, draw.t, draw.noise, reduction=self.args.loss_reduction
        ).mean()

    def _batch(self, images: torch.Tensor, micro_step: int) -> tuple[torch.Tensor, StepNoise]:
        """Network input and random numbers of one pass, on the device."""
        args, device = self.args, self.accelerator.device
        draw = StepNoise.draw(
            tuple(images.shape), args.seed, micro_step, self.accelerator.process_index, args.training_eps, device
        )
        if device.type == "cuda":
            images = images.pin_memory().to(device, non_blocking=True)
        x_0 = to_data_range(images.to(device), self.centered, draw.flip if args.random_flip else None)
        if args.channels_last:
            x_0 = x_0.contiguous(memory_format=torch.channels_last)
            draw = dataclasses.replace(draw, noise=draw.noise.contiguous(memory_format=torch.channels_last))
        return x_0, draw

    def _log(self) -> None:
        values = self.progress.summary(self.accelerator)
        values["lr"] = self.lr_scheduler.get_last_lr()[0]
        values["ema_decay"] = self.ema.cur_decay_value
        values["epoch"] = self.step * self.images_per_step / len(self.source)
        self.accelerator.log(values, step=self.step)

    def _save(self) -> None:
        limit = self.args.checkpoints_total_limit
        checkpoints.save_checkpoint(self.accelerator, self.output_dir, self.step, limit, self._arguments())
        self.saved_step = self.step

    def _sample(self) -> None:
        """Draw a grid on the main process while the others wait; given up on SIGTERM."""
        if self.accelerator.is_main_process:
            with contextlib.suppress(samples.SamplingAborted):
                with averaged_weights(self.network, self.ema) as network:
                    images = samples.draw_samples(
                        network,
                        self.scheduler,
                        num_images=self.args.eval_batch_size,
                        num_inference_steps=self.args.num_inference_steps,
                        should_abort=lambda: self.stop.terminated,
                    )
                samples.save_grid(images, self.output_dir / "samples" / f"step-{self.step}.png")
                samples.log_images(self.accelerator, images, self.step)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        if self.saved_step != self.step:
            self._save()
        if self.accelerator.is_main_process:
            self._save_result()
        self.accelerator.wait_for_everyone()
        if self.args.save_images_steps and not self.stop.terminated:
            self._sample()
        if self.repository is not None:
            hub.upload(self.args, self.repository, self.step)

    def _result(self, network: torch.nn.Module):
        """What the run is for, with `save_pretrained`: the pipeline of the network with averaged weights."""
        from ..pipelines import ScoreSdePipeline

        return ScoreSdePipeline(unet=network, scheduler=self.scheduler)

    def _save_result(self) -> None:
        """Write the result to the output folder, each part complete or as before."""
        partial = self.output_dir / ".partial-result"
        shutil.rmtree(partial, ignore_errors=True)
        with averaged_weights(self.network, self.ema) as network:
            self._result(network).save_pretrained(partial)
        for entry in sorted(partial.iterdir()):
            if entry.is_dir():
                checkpoints.replace_folder(entry, self.output_dir / entry.name)
            else:
                entry.replace(self.output_dir / entry.name)
        partial.rmdir()


def build_accelerator(args: argparse.Namespace):
    """The `Accelerator` of a run.

    Raises:
        ValueError: if the precision is not possible on this device, or the logger is not installed.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.utils import ProjectConfiguration, is_tensorboard_available, is_wandb_available

    installed = {"none": True, "tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if not installed[args.logger]:
        raise ValueError(f"--logger {args.logger} is not installed; pip install {args.logger}, or pass --logger none.")
    return Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=None if args.logger == "none" else args.logger,
        project_config=ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=str(Path(args.output_dir) / args.logging_dir)
        ),
        step_scheduler_with_optimizer=False,
        # Other processes wait while the main one draws a grid.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
