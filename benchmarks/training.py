"""Speed of a training step beside the official PyTorch code: CIFAR-10 NCSN++ of full size, in one run.

    python benchmarks/training.py                                # ours alone, float32 and bfloat16
    python benchmarks/training.py --official PATH_OF_A_CHECKOUT  # against score_sde_pytorch

A step is everything between two batches: random numbers, loss, gradients, clipping, Adam, and the average of the
weights; of ours also data, guard and counters. Steps are interleaved, and the ratios are of the medians: above 1 we
are faster. The official code has float32 only.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from diffusers_sde.configs import official_config
from diffusers_sde.training import Trainer, iterate_batches, parse_args

CONTENDERS = {"official": "no", "ours, float32": "no", "ours, bfloat16": "bf16"}
"""With their precision."""


def ours(args, folder: Path, precision: str):
    """A function that makes one of our steps."""
    np.savez(folder / "images.npz", np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), dtype=np.uint8))
    argv = ["--config", args.config, "--data", str(folder / "images.npz"), "--output_dir", str(folder / precision)]
    argv += ["--train_batch_size", str(args.batch), "--total_batch_size", str(args.batch), "--logger", "none"]
    if args.smallest:
        argv += ["--set", "model.nf=8", "model.num_res_blocks=1"]
    argv += ["--mixed_precision", precision, "--lr_warmup_steps", "1", *(["--torch_compile"] if args.compile else [])]
    trainer = Trainer(parse_args(argv), time.monotonic())
    trainer.model.train()
    batches = iterate_batches(trainer.source, batch_size=args.batch)

    def step() -> None:
        trainer._train_step(batches)
        trainer.step += 1

    return step


def official(args):
    """A function that makes a step of the official code. Its extension is not compiled: on the CPU it is not used."""
    import torch.utils.cpp_extension

    torch.utils.cpp_extension.load = lambda *args, **kwargs: None
    sys.path.insert(0, args.official)
    import losses  # of the checkout, likewise the others
    import sde_lib
    from models import ncsnpp  # noqa: F401 registers the network
    from models import utils as model_utils
    from models.ema import ExponentialMovingAverage

    config = namespace(official_config(args.config))
    config.device = torch.device("cpu")
    network = model_utils.get_model(config.model.name)(config)
    optimizer = losses.get_optimizer(config, network.parameters())
    ema = ExponentialMovingAverage(network.parameters(), decay=config.model.ema_rate)
    state = {"optimizer": optimizer, "model": network, "ema": ema, "step": 1}
    config.optim.warmup = 1
    sde = sde_lib.VESDE(config.model.sigma_min, config.model.sigma_max, config.model.num_scales)
    step_fn = losses.get_step_fn(
        sde,
        train=True,
        optimize_fn=losses.optimization_manager(config),
        reduce_mean=config.training.reduce_mean,
        continuous=config.training.continuous,
        likelihood_weighting=config.training.likelihood_weighting,
    )
    batch = torch.rand(args.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return lambda: step_fn(state, batch)


def namespace(values: dict) -> SimpleNamespace:
    return SimpleNamespace(**{k: namespace(v) if isinstance(v, dict) else v for k, v in values.items()})


def serve(name: str, args, pipe) -> None:
    """Make one step for each message, and answer with its seconds; each contender lives in a process of its own."""
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        step = official(args) if name == "official" else ours(args, Path(folder), CONTENDERS[name])
        pipe.send(torch.get_num_threads())
        while pipe.recv():
            start = time.perf_counter()
            step()
            pipe.send(time.perf_counter() - start)


def compare(args) -> None:
    """Print the table."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # the threads of those whose turn it is not leave the cores alone
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS if args.official else [name for name in CONTENDERS if name != "official"]:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, args, theirs)).start()
    threads = {pipe.recv() for pipe in pipes.values()}
    times = {name: [] for name in pipes}
    for repeat in range(args.repeats + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds = pipe.recv()
            if repeat:  # the first one is a warm-up
                times[name].append(seconds)
    for pipe in pipes.values():
        pipe.send(False)
    first = statistics.median(next(iter(times.values())))
    print(f"{args.config}, batch {args.batch}, {max(threads)} threads, {args.repeats} interleaved steps")
    print(f"{'':16}{'median s':>10}{'images/s':>10}{'ratio':>8}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:16}{median:10.3f}{args.batch / median:10.2f}{first / median:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="path of a checkout of score_sde_pytorch")
    parser.add_argument("--config", default="ve/cifar10_ncsnpp_continuous", help="official VE configuration of NCSN++")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--smallest", action="store_true", help="a run of seconds, to see that it works")
    args = parser.parse_args()
    if args.smallest:
        args.batch, args.repeats = 1, 1
    compare(args)


if __name__ == "__main__":
    main()
