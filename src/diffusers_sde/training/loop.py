"""The training loop behind `training/train_sde.py`."""

import argparse
import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..store import file_digest, locked_folder
from . import checkpoints, hub, samples
from .accelerator import build_accelerator
from .card import CARD_NAME, CURVES_NAME, write_card
from .components import build_network, build_scheduler, check_fit, image_size, is_centered_by_network
from .data import load_images, where_of
from .ema import averaged_weights
from .guard import FiniteGuard
from .history import NAME, History
from .images import ImageFormat
from .losses import denoising_score_matching_loss, sliced_score_matching_loss
from .memory import keep_freed_memory
from .options import SECRETS, check_args
from .output import SAMPLES, OutputFolder, fresh_folder
from .plan import describe_memory, describe_plan
from .progress import LevelMeans, Progress
from .randomness import PositionNoise, Purpose
from .resuming import check_resumed, facts
from .schedule import learning_rate_schedule
from .sources import iterate_batches, open_source, to_data_range
from .states import load_state, random_state, restore_random_state
from .stopping import StopSignal
from .times import NoiseLevels, TrainingTimes

logger = logging.getLogger(__name__)

DIGEST_IMAGES = 64
"""Images by which a resumed run tells that its data are those of its checkpoint."""

NUM_LEVELS = 5
"""Equal parts of the range of t for which the loss is told."""

DEFAULT_EPOCHS = 100


def train(args: argparse.Namespace) -> int:
    """Train as the options say, up to the last step, the time limit or a signal; save checkpoint and pipeline.

    Args:
        args: from `parse_args`.

    Returns:
        The number of optimiser steps taken in all; 0 with `--dry_run`, which only tells the plan.

    Raises:
        ValueError: if options, data and network do not fit together, or --output_dir holds files of others or of
            another run, or another run is at work there.
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
    """One run: everything that is built once, and the step. It holds the lock of its output folder until it ends.

    Args:
        args: from `parse_args`.
        start: `time.monotonic()` at the start of the program.
    """

    RESULTS = ("model_index.json", "unet", "scheduler", CARD_NAME, CURVES_NAME)
    """Files and folders that a finished run leaves in its output folder."""

    def __init__(self, args: argparse.Namespace, start: float):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.stop = StopSignal(args.max_train_seconds, start)
        self._held = contextlib.ExitStack()
        try:
            self._build()
        except BaseException:
            self._held.close()
            raise

    def _build(self) -> None:
        from accelerate.utils import set_seed

        args = self.args
        self.accelerator = build_accelerator(args)
        self.output: OutputFolder | None = None
        self.resume_from = self._agree_on_resume_point()
        set_seed(args.seed)
        self.scheduler = build_scheduler(args)
        self.times = build_times(args, self.scheduler)
        self.network = build_network(args)
        check_fit(self.network, self.scheduler)
        self._prepare_repository()
        self.source = self._open_source()
        self.images_per_step = (
            args.train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        )
        self.max_steps = args.max_train_steps or self._steps_of_epochs()
        self.facts = facts(
            self.network, self.scheduler, self.images_per_step, self.source.num_images, self._data_digest()
        )
        self._prepare()
        # From here on the global generator is for dropout alone.
        set_seed(args.seed, device_specific=True)
        self.step = 0
        self._updating = False
        if self.resume_from is not None:
            self._resume()
        elif self.output is not None and args.overwrite_output_dir:
            self.output.clear()
        self.accelerator.wait_for_everyone()

    def _agree_on_resume_point(self) -> Path | None:
        """Lock the folder and find the resume point in the main process, and broadcast it or what is wrong."""
        from accelerate.utils import broadcast_object_list

        found: list = [None, None]
        if self.accelerator.is_main_process:
            try:
                found[0] = self._find_resume_point()
            except (ValueError, OSError) as error:
                found[1] = str(error)
        path, problem = broadcast_object_list(found)
        if problem is not None:
            raise ValueError(problem)
        return path

    def _find_resume_point(self) -> Path | None:
        args, output_dir = self.args, self.output_dir
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(f"--output_dir {output_dir} is a file; name a folder.")
        self._held.enter_context(locked_folder(output_dir))
        self.output = OutputFolder(output_dir, self.RESULTS)
        existing, anew = checkpoints.list_checkpoints(output_dir), args.overwrite_output_dir
        if args.resume_from_checkpoint is None and existing and not anew:
            raise ValueError(
                f"--output_dir {output_dir} holds {existing[-1].name} of an earlier run. Go on from it by "
                "--resume_from_checkpoint latest, start anew by --overwrite_output_dir, or choose another folder."
            )
        self.output.check(anew)
        found = None
        if args.resume_from_checkpoint is not None:
            found = checkpoints.find_checkpoint(output_dir, args.resume_from_checkpoint, self.output.ledger)
        if found is None and not anew and self._is_of_an_earlier_run():
            raise ValueError(
                f"--output_dir {output_dir} is of an earlier run, and has no checkpoint to go on from. Start anew by "
                "--overwrite_output_dir instead of --resume_from_checkpoint, or choose another folder."
            )
        if found is not None:
            self._check_options_of(found)
        for path in checkpoints.list_checkpoints(output_dir):
            if found is not None and checkpoints.checkpoint_step(path) > checkpoints.checkpoint_step(found):
                aside = checkpoints.set_aside(path, "abandoned")
                logger.warning(f"{path.name} is later than {found}, from which this run goes on; it is now {aside}.")
        return found

    def _is_of_an_earlier_run(self) -> bool:
        """Whether a start at step 0 would go over what an earlier run made; grids alone are from before a kill."""
        grids = self.args.resume_from_checkpoint is None and self.output.grids()
        return bool(grids) or self.output.has_results() or self.output.saved_before()

    def _steps_of_epochs(self) -> int:
        if self.source.num_images is None:
            raise ValueError("a stream of images tells its length only at its end; give --max_train_steps.")
        return math.ceil((self.args.num_epochs or DEFAULT_EPOCHS) * self.source.num_images / self.images_per_step)

    def _prepare_repository(self) -> None:
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
        self.learning_rate = learning_rate_schedule(
            args.lr_scheduler, args.learning_rate, args.lr_warmup_steps, self.max_steps
        )
        self.guard = FiniteGuard(optimizer, accelerator.device, scaled=accelerator.scaler is not None)
        self.max_grad_norm = args.max_grad_norm or math.inf
        self.centered = is_centered_by_network(self.network)
        # With update_after_step = -1 the decay after n updates is min(ema_decay, (1 + n) / (10 + n)).
        self.ema = EMAModel(self.network.parameters(), decay=args.ema_decay, update_after_step=-1, foreach=True)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.ema.to(accelerator.device)
        checkpoints.register_hooks(accelerator, self.ema)
        self.forward = torch.compile(self.model) if args.torch_compile else self.model
        self.levels = LevelMeans(NUM_LEVELS, 1, accelerator.device)

    def _arguments(self) -> dict:
        """The options without secrets, and what else fixes the order of the data."""
        arguments = {name: value for name, value in vars(self.args).items() if name not in SECRETS}
        counts = {"num_processes": self.accelerator.num_processes, "num_images": self.source.num_images}
        return arguments | counts | {"facts": self.facts | {"num_images": self.source.num_images}}

    def _data_digest(self) -> str | None:
        """SHA-256 of some of the images; `None` for a stream, which begins only once."""
        if self.source.num_images is None:
            return None
        count = min(self.source.num_images, DIGEST_IMAGES)
        batches = iterate_batches(self.source, batch_size=count)
        return hashlib.sha256(next(batches).numpy().tobytes()).hexdigest()

    def _check_options_of(self, checkpoint: Path) -> None:
        """Refuse what does not need network or data to be refused, before anything is set aside."""
        before = checkpoints.read_arguments(checkpoint)
        now = {name: value for name, value in vars(self.args).items() if name not in SECRETS}
        check_resumed(before, now | {"facts": before.get("facts") or {}}, str(checkpoint))

    def _resume(self) -> None:
        before = checkpoints.read_arguments(self.resume_from)
        if self.source.num_images is None:  # a stream knows its length only at its end
            self.source.num_images = before.get("num_images")
        changes = check_resumed(before, self._arguments(), str(self.resume_from))
        same_processes = before.get("num_processes") in (None, self.accelerator.num_processes)
        load_state(self.accelerator, self.ema, self.resume_from, same_processes)
        self.step = checkpoints.checkpoint_step(self.resume_from)
        if self.accelerator.is_main_process:
            for change in changes:
                logger.warning(f"resumed with {change}, from step {self.step + 1} on: not the same run any more.")

    def run(self) -> int:
        """Train, save, sample; returns the steps taken in all."""
        with self._held:
            return self._run()

    def _run(self) -> int:
        args, accelerator = self.args, self.accelerator
        if args.logger != "none":
            config = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in self._arguments().items()}
            accelerator.init_trackers("train_sde")
            log_options(accelerator, config)
        self._announce()
        self.progress = Progress(
            self.step, self.max_steps, self.images_per_step, accelerator.device, accelerator.is_local_main_process
        )
        self.saved_step = self.step if self.resume_from is not None else None
        self.history = None
        if self.output is not None:
            self.history = History(self.output_dir, self.step)
            self.output.ledger.add(NAME, file_digest(self.output_dir / NAME))
        self.budget, self._begun, self._first_step = (
            samples.GridBudget(self._time_share()),
            time.monotonic(),
            self.step,
        )
        with self.stop:
            with self._saving_on_errors():
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
        if self.args.lr_warmup_steps >= self.max_steps and self.args.lr_scheduler != "constant":
            logger.warning(
                f"--lr_warmup_steps {self.args.lr_warmup_steps} is not below the {self.max_steps} steps of the run: "
                f"the learning rate ends at {self.learning_rate(self.max_steps - 1):.3g}."
            )

    def _time_share(self) -> float:
        return self.args.save_images_time_share if self.args.save_images_sampler == "fast" else 1.0

    @contextlib.contextmanager
    def _saving_on_errors(self) -> Iterator[None]:
        """Save the state of the last whole step before an error goes on, unless that may hide or worsen it."""
        try:
            yield
        except (checkpoints.CheckpointError, FloatingPointError):  # the one saved, the other cannot
            raise
        except Exception as error:
            error.add_note(self._save_after(error))
            raise

    def _save_after(self, error: Exception) -> str:
        if self.accelerator.num_processes > 1:
            return "Several processes cannot save when one has failed: go on from the last checkpoint."
        if self._updating:
            return (
                f"It came within the update of step {self.step + 1}, so no state was saved: go on from the last one."
            )
        if self.saved_step == self.step:
            return f"The state after step {self.step} is in checkpoint-{self.step}."
        try:
            restore_random_state(self._random_state)
            self._save()
        except Exception as second:
            return f"The state after step {self.step} could not be saved: {second}"
        return f"The state after step {self.step} is saved in checkpoint-{self.step}."

    def _loop(self) -> None:
        args, accelerator = self.args, self.accelerator
        self.model.train()
        self._random_state = random_state()
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
            self._updating = False
            self._random_state = random_state()
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
                logger.info(f"stopping at step {self.step}: {self.stop.reason}.")
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
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
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
                    self._updating = True
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.detach()
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
        values["lr"] = self.learning_rate(self.step - 1)
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
        ledger = None if self.output is None else self.output.ledger
        checkpoints.save_checkpoint(self.accelerator, self.output_dir, self.step, limit, self._arguments(), ledger)
        self.saved_step = self.step

    def _sample(self, last: bool = False) -> None:
        """Draw a grid on the main process while the others wait, if there is time for it; given up on a signal."""
        if self.accelerator.is_main_process:
            args = self.args
            steps = samples.sampler_steps(args.save_images_sampler, args.num_inference_steps, self.scheduler)
            count = self._images_of_grid(steps, last)
            if count:
                with contextlib.suppress(samples.SamplingAborted):
                    self._draw_grid(count, steps)
        self.accelerator.wait_for_everyone()

    def _images_of_grid(self, evaluations: int, last: bool) -> int:
        """Number of images for which there is time: all or none, at the end also fewer."""
        wanted, elapsed = self.args.eval_batch_size, time.monotonic() - self._begun
        images = max(1, self.step - self._first_step) * self.images_per_step / self.accelerator.num_processes
        guess = (elapsed - self.budget.spent) / images / 3  # a training step is about three evaluations
        count = self.budget.affordable(wanted, evaluations, elapsed, guess)
        if count == wanted or (last and count):
            if count < wanted:
                logger.info(
                    f"the grid at step {self.step} has {count} of {wanted} images, {self._share_text(elapsed)}"
                )
            return count
        logger.info(f"the grid at step {self.step} is left out, {self._share_text(elapsed)}")
        return 0

    def _share_text(self, elapsed: float) -> str:
        return (
            f"as grids may take {self.budget.share:.0%} of the run's time and took {self.budget.spent:.1f} of "
            f"{elapsed:.1f} s; --save_images_time_share 1 draws all."
        )

    def _draw_grid(self, count: int, steps: int) -> None:
        began = time.monotonic()
        options = {"num_images": count, "should_abort": lambda: self.stop.terminated}
        with averaged_weights(self.network, self.ema) as network:
            if self.args.save_images_sampler == "fast":
                images = samples.draw_fast(network, self.scheduler, num_evaluations=steps, **options)
            else:
                images = samples.draw_samples(network, self.scheduler, num_inference_steps=steps, **options)
        with self.output.file(f"{SAMPLES}/step-{self.step}.png") as path:
            samples.save_grid(images, path)
        samples.log_images(self.accelerator, images, self.step)
        self.budget.add(time.monotonic() - began, count * steps)

    def _finish(self) -> None:
        if self.saved_step != self.step:
            self._save()
        if self.accelerator.is_main_process:
            self._save_result()
        self.accelerator.wait_for_everyone()
        if self.args.save_images_steps and not self.stop.terminated:
            self._sample(last=True)
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
        write_card(self.output, self.args, self.network, self.scheduler, self.step, processes)

    def _save_result(self) -> None:
        """Write the result to the output folder, each part complete or as before."""
        partial = fresh_folder(self.output_dir / ".partial-result")
        with averaged_weights(self.network, self.ema) as network:
            self._result(network).save_pretrained(partial)
        self.output.place(partial)
        partial.rmdir()


def log_options(accelerator, config: dict) -> None:
    """Give the options to the trackers, without the file that accelerate's tracker for TensorBoard overwrites."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer.add_hparams(config, metric_dict={})
            tracker.writer.flush()
        else:
            tracker.store_init_configuration(config)


def build_times(args: argparse.Namespace, scheduler) -> TrainingTimes:
    """Where and with which weights the options train.

    Raises:
        ValueError: if they have no meaning for this scheduler.
    """
    return TrainingTimes(
        scheduler, t_min=args.training_eps, weighting=args.loss_weighting, time_sampling=args.time_sampling
    )
