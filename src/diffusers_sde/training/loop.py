"""The training loop behind `training/train_sde.py`."""

import argparse
import contextlib
import json
import logging
import math
import shutil
import time
from pathlib import Path

import torch

from . import checkpoints, hub, samples
from .accelerator import build_accelerator
from .card import write_card
from .components import build_network, build_scheduler, check_fit, image_size, is_centered_by_network
from .data import load_images, where_of
from .ema import averaged_weights
from .guard import FiniteGuard
from .history import History
from .images import ImageFormat
from .losses import denoising_score_matching_loss, sliced_score_matching_loss
from .memory import keep_freed_memory
from .options import SECRETS, check_args
from .plan import describe_memory, describe_plan
from .progress import LevelMeans, Progress
from .randomness import PositionNoise, Purpose
from .sources import iterate_batches, open_source, to_data_range
from .stopping import StopSignal
from .times import NoiseLevels, TrainingTimes

logger = logging.getLogger(__name__)

NUM_LEVELS = 5
"""Equal parts of the range of t for which the loss is told."""

_RESUME_KEYS = (
    "config set sde sigma_min sigma_max beta_min beta_max continuous num_train_timesteps training_eps loss "
    "loss_weighting time_sampling loss_reduction random_flip uniform_dequantization resolution channels crop_size "
    "pad center_crop streaming shuffle_buffer_size train_batch_size gradient_accumulation_steps learning_rate "
    "lr_scheduler lr_warmup_steps seed mixed_precision num_processes num_images label_column"
).split()


def train(args: argparse.Namespace) -> int:
    """Train as the options say, up to the last step, the time limit or SIGTERM; save checkpoint and pipeline.

    Args:
        args: from `parse_args`.

    Returns:
        The number of optimiser steps taken in all; 0 with `--dry_run`, which only tells the plan.

    Raises:
        ValueError: if options, data and network do not fit together.
        CheckpointError: if the disk is full.
        FloatingPointError: if the gradient was not finite for many steps in a row; the state is saved.
    """
    start = time.monotonic()
    check_args(args)
    if args.dry_run:
        tell_plan(args)
        return 0
    return Trainer(args, start).run()


def tell_plan(args: argparse.Namespace) -> None:
    """Log what a run with these options would do; nothing is read or written."""
    accelerator = build_accelerator(args)
    scheduler = build_scheduler(args)
    build_times(args, scheduler)
    with torch.device("meta"):
        network = build_network(args)
    check_fit(network, scheduler)
    if accelerator.is_main_process:
        for line in describe_plan(args, network, scheduler, accelerator.num_processes):
            logger.info(line)
        logger.info(describe_memory(args, network))


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
        self.accelerator = build_accelerator(args)
        self.resume_from = self._agree_on_resume_point()
        set_seed(args.seed)
        self.scheduler = build_scheduler(args)
        self.times = build_times(args, self.scheduler)
        self.network = build_network(args)
        check_fit(self.network, self.scheduler)
        self._prepare_output_dir()
        self.source = self._open_source()
        self.images_per_step = (
            args.train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        )
        self.max_steps = args.max_train_steps or self._steps_of_epochs()
        self._prepare()
        # From here on the global generator is for dropout alone.
        set_seed(args.seed, device_specific=True)
        self.step = 0
        if self.resume_from is not None:
            self._resume()

    def _agree_on_resume_point(self) -> Path | None:
        """The main process looks, and says to all what it found."""
        from accelerate.utils import broadcast_object_list

        found: list = [None, None]
        if self.accelerator.is_main_process:
            try:
                found[0] = self._find_resume_point()
            except ValueError as error:
                found[1] = str(error)
        path, problem = broadcast_object_list(found)
        if problem is not None:
            raise ValueError(problem)
        return path

    def _find_resume_point(self) -> Path | None:
        args = self.args
        if args.resume_from_checkpoint is None:
            existing = checkpoints.list_checkpoints(args.output_dir)
            if existing and not args.overwrite_output_dir:
                raise ValueError(
                    f"--output_dir {args.output_dir} holds {existing[-1].name} of an earlier run. Go on from it by "
                    "--resume_from_checkpoint latest, start anew by --overwrite_output_dir, or choose another folder."
                )
            return None
        found = checkpoints.find_checkpoint(args.output_dir, args.resume_from_checkpoint)
        for path in checkpoints.list_checkpoints(args.output_dir):
            if found is not None and checkpoints.checkpoint_step(path) > checkpoints.checkpoint_step(found):
                aside = checkpoints.set_aside(path, "abandoned")
                logger.warning(f"{path.name} is later than {found}, from which this run goes on; it is now {aside}.")
        return found

    def _steps_of_epochs(self) -> int:
        if self.source.num_images is None:
            raise ValueError("a stream of images tells its length only at its end; give --max_train_steps.")
        return math.ceil(self.args.num_epochs * self.source.num_images / self.images_per_step)

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
            crop_size=args.crop_size,
        )
        with self.accelerator.local_main_process_first():
            dataset = load_images(**where_of(args), image_column=args.image_column, streaming=args.streaming)
        return open_source(
            dataset,
            image_format,
            seed=args.seed,
            memory_limit=args.in_memory_limit,
            num_threads=args.dataloader_num_workers,
            shuffle_buffer_size=args.shuffle_buffer_size,
            show_progress=self.accelerator.is_local_main_process,
        )

    def _prepare(self) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        args, accelerator = self.args, self.accelerator
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        if args.channels_last:
            self.network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
            fused=True,
        )
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=self.max_steps
        )
        self.guard = FiniteGuard(optimizer, accelerator.device, scaled=accelerator.scaler is not None)
        self.max_grad_norm = args.max_grad_norm or math.inf
        self.centered = is_centered_by_network(self.network)
        # With update_after_step = -1 the decay after n updates is min(ema_decay, (1 + n) / (10 + n)).
        self.ema = EMAModel(self.network.parameters(), decay=args.ema_decay, update_after_step=-1, foreach=True)
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(self.network, optimizer, self.lr_scheduler)
        self.ema.to(accelerator.device)
        checkpoints.register_hooks(accelerator, self.ema)
        self.forward = torch.compile(self.model) if args.torch_compile else self.model
        self.levels = LevelMeans(NUM_LEVELS, 1, accelerator.device)

    def _arguments(self) -> dict:
        """The options without secrets, and what else fixes the order of the data."""
        arguments = {name: value for name, value in vars(self.args).items() if name not in SECRETS}
        return arguments | {"num_processes": self.accelerator.num_processes, "num_images": self.source.num_images}

    def _resume(self) -> None:
        self.accelerator.load_state(str(self.resume_from))
        self.step = checkpoints.checkpoint_step(self.resume_from)
        before = checkpoints.read_arguments(self.resume_from)
        if self.source.num_images is None:  # a stream knows its length only at its end
            self.source.num_images = before.get("num_images")
        now = json.loads(json.dumps(self._arguments()))
        for key in _RESUME_KEYS:
            if key in before and before[key] != now[key]:
                logger.warning(f"resumed with --{key} {now[key]} instead of {before[key]}: not the same run any more.")

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
        self.history = History(self.output_dir, self.step) if accelerator.is_main_process else None
        with self.stop:
            self._loop()
            self._finish()
        self.progress.close()
        accelerator.end_training()
        return self.step

    def _announce(self) -> None:
        if not self.accelerator.is_main_process:
            return
        for line in (
            f"data: {self.source.describe()}",
            *describe_plan(self.args, self.network, self.scheduler, self.accelerator.num_processes),
            f"steps: {self.step} of {self.max_steps} done",
        ):
            logger.info(line)

    def _loop(self) -> None:
        args, accelerator = self.args, self.accelerator
        self.model.train()
        accumulation = args.gradient_accumulation_steps
        batches = iterate_batches(
            self.source,
            batch_size=args.train_batch_size,
            first_micro_step=self.step * accumulation,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        while self.step < self.max_steps:
            self.progress.step(*self._train_step(batches))
            self.step += 1
            if self.guard.gives_up(self.step):
                self._give_up()
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

    def _give_up(self) -> None:
        self._save()
        raise FloatingPointError(
            f"the gradient was not finite in the last {self.guard.limit} steps up to {self.step}. The state is saved; "
            "resume from an earlier checkpoint with a lower --learning_rate, or without --mixed_precision."
        )

    def _train_step(self, batches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One optimiser step; mean loss, gradient norm, and whether it was skipped, on the device."""
        accelerator, accumulation = self.accelerator, self.args.gradient_accumulation_steps
        total = torch.zeros((), device=accelerator.device)
        norm, skipped = torch.zeros_like(total), torch.zeros_like(total)
        for micro_step in range(self.step * accumulation, (self.step + 1) * accumulation):
            x_0, noise = self._batch(next(batches), micro_step)
            with accelerator.accumulate(self.model):
                loss = self._loss(x_0, noise)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
                    skipped = self.guard.check(norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.detach()
        if not accelerator.optimizer_step_was_skipped:
            self.lr_scheduler.step()
        self.ema.step(self.network.parameters())
        return total / accumulation, norm, skipped

    def _batch(self, images: torch.Tensor, micro_step: int) -> tuple[torch.Tensor, PositionNoise]:
        """Network input of one pass on the device, and where its random numbers come from."""
        args, accelerator = self.args, self.accelerator
        position = (micro_step * accelerator.num_processes + accelerator.process_index) * len(images)
        noise = PositionNoise(args.seed, position, len(images), accelerator.device)
        if accelerator.device.type == "cuda":
            images = images.pin_memory().to(accelerator.device, non_blocking=True)
        x_0 = to_data_range(
            images.to(accelerator.device),
            self.centered,
            flip=noise.uniform(Purpose.FLIP) < 0.5 if args.random_flip else None,
            dequantization=(
                noise.uniform(Purpose.DEQUANTIZATION, images.shape[1:]) if args.uniform_dequantization else None
            ),
        )
        return self._laid_out(x_0), noise

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.args.channels_last else x

    def _loss(self, x_0: torch.Tensor, noise: PositionNoise) -> torch.Tensor:
        """Mean loss of one pass."""
        args, sde = self.args, self.scheduler.sde
        levels = self.times(noise.uniform(Purpose.TIME))
        options = {"reduction": args.loss_reduction, "weight": levels.weight}
        normal = self._laid_out(noise.normal(Purpose.NOISE, x_0.shape[1:]))
        arguments = (sde, self._score_fn(levels), x_0, levels.t, normal)
        if args.loss == "sliced":
            losses = sliced_score_matching_loss(*arguments, noise.signs(Purpose.PROBE, x_0.shape[1:]), **options)
        else:
            losses = denoising_score_matching_loss(*arguments, **options)
        self.levels.add(levels.t, losses.detach())
        return losses.mean()

    def _score_fn(self, levels: NoiseLevels):
        """The network's score at these noise levels, in float32."""

        def score_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.scheduler.score_from_output(self.forward(x, levels.timestep).sample.float(), t)

        return score_fn

    def _log(self) -> None:
        values = self.progress.summary(self.accelerator)
        values |= self._level_values(self.levels.take(self.accelerator))
        values["lr"] = self.lr_scheduler.get_last_lr()[0]
        values["ema_decay"] = self.ema.cur_decay_value
        if self.source.num_images is not None:
            values["epoch"] = self.step * self.images_per_step / self.source.num_images
        self.accelerator.log(values, step=self.step)
        if self.history is not None:
            self.history.add(self.step, values)

    def _level_values(self, means: list[list[float]]) -> dict[str, float]:
        """Means by noise level, named for the log."""
        return {f"loss/level_{level}": loss for level, (loss,) in enumerate(means)}

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
        if self.accelerator.is_main_process:
            self._describe_result()
        if self.repository is not None:
            hub.upload(self.args, self.repository, self.step)

    def _result(self, network: torch.nn.Module):
        """What the run is for, with `save_pretrained`: the pipeline of the network with averaged weights."""
        from ..pipelines import ScoreSdePipeline

        return ScoreSdePipeline(unet=network, scheduler=self.scheduler)

    def _describe_result(self) -> None:
        processes = self.accelerator.num_processes
        write_card(self.output_dir, self.args, self.network, self.scheduler, self.step, processes)

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


def build_times(args: argparse.Namespace, scheduler) -> TrainingTimes:
    """Where and with which weights the options train.

    Raises:
        ValueError: if they have no meaning for this scheduler.
    """
    return TrainingTimes(
        scheduler, t_min=args.training_eps, weighting=args.loss_weighting, time_sampling=args.time_sampling
    )
