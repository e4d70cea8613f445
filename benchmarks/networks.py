"""Speed and memory of NCSNppModel beside the official PyTorch code and diffusers' UNet2DModel, in one run.

    python benchmarks/networks.py                                # against UNet2DModel, where it expresses the network
    python benchmarks/networks.py --official PATH_OF_A_CHECKOUT  # against score_sde_pytorch as well

All three get the same weights' shapes and inputs. Runs are interleaved, and the ratios are of the medians: above 1 we
are faster, or need less memory. Memory is the highest resident size of a process of its own, less that before the
first run.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from diffusers_sde import NCSNppModel

NETWORKS = {
    "cifar10-ncsnpp": {},
    "ffhq-256-ncsnpp": {
        "sample_size": 256,
        "block_out_channels": (128, 128, 256, 256, 256, 256, 256),
        "layers_per_block": 2,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "dropout": 0.0,
    },
    "ffhq-1024-ncsnpp": {
        "sample_size": 1024,
        "block_out_channels": (16, 32, 64, 128, 256, 512, 512, 512),
        "layers_per_block": 1,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "dropout": 0.0,
    },
    "small": {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1},
    "smallest": {
        **{"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "attn_resolutions": ()},
        **{"progressive": "output_skip", "progressive_input": "input_skip", "dropout": 0.0},
    },
}


def ours(name: str) -> torch.nn.Module:
    return NCSNppModel(**NETWORKS[name])


def unet2d(name: str) -> torch.nn.Module | None:
    """diffusers' network of the same architecture, or None if it cannot express it."""
    from diffusers import UNet2DModel

    config = ours_config(name)
    if config["progressive"] != "output_skip":
        return None
    widths = config["block_out_channels"]
    attention = [config["sample_size"] // 2**i in config["attn_resolutions"] for i in range(len(widths))]
    return UNet2DModel(
        sample_size=config["sample_size"],
        block_out_channels=widths,
        layers_per_block=config["layers_per_block"],
        down_block_types=["AttnSkipDownBlock2D" if a else "SkipDownBlock2D" for a in attention],
        up_block_types=["AttnSkipUpBlock2D" if a else "SkipUpBlock2D" for a in reversed(attention)],
        center_input_sample=True,
        time_embedding_type="fourier",
        norm_eps=1e-6,
        norm_num_groups=None,
        attention_head_dim=None,
        mid_block_scale_factor=2**0.5,
        act_fn="silu",
    )


def official(name: str, checkout: str) -> torch.nn.Module:
    """The network of the official code, whose extension is not compiled: on the CPU it is not used."""
    import torch.utils.cpp_extension

    torch.utils.cpp_extension.load = lambda *args, **kwargs: None
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from models.ncsnpp import NCSNpp  # of the checkout

    config = ours_config(name)
    model = SimpleNamespace(
        nonlinearity="swish",
        normalization="GroupNorm",
        nf=config["block_out_channels"][0],
        ch_mult=[width // config["block_out_channels"][0] for width in config["block_out_channels"]],
        num_res_blocks=config["layers_per_block"],
        attn_resolutions=config["attn_resolutions"],
        dropout=config["dropout"],
        resamp_with_conv=True,
        conditional=True,
        fir=True,
        fir_kernel=[1, 3, 3, 1],
        skip_rescale=True,
        resblock_type="biggan",
        progressive=config["progressive"],
        progressive_input=config["progressive_input"],
        progressive_combine="sum",
        embedding_type="fourier",
        init_scale=0.0,
        fourier_scale=16,
        scale_by_sigma=True,
        sigma_max=50,
        sigma_min=0.01,
        num_scales=1000,
    )
    data = SimpleNamespace(image_size=config["sample_size"], num_channels=3, centered=False)
    return NCSNpp(SimpleNamespace(model=model, data=data, training=SimpleNamespace(continuous=True)))


def ours_config(name: str) -> dict:
    with torch.device("meta"):
        return dict(ours(name).config)


def build(which: str, name: str, checkout: str | None) -> torch.nn.Module | None:
    if which == "ours":
        return ours(name)
    return unet2d(name) if which == "UNet2DModel" else official(name, checkout)


def make_run(network: torch.nn.Module, which: str, mode: str, batch: int, size: int, bf16: bool):
    """A function that makes one forward pass, or forward, backward and Adam step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, size, size, generator=generator)
    sigma = torch.rand(batch, generator=generator) + 0.1
    train = mode == "train"
    network.train(train)
    # Layout and optimiser are part of how each is run: the official code knows neither of ours.
    if which == "ours":
        network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), fused=which == "ours") if train else None

    def run() -> None:
        with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = network(x, sigma)
        if train:
            getattr(output, "sample", output).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def peak_memory(args, which: str) -> float:
    """Highest resident size in MiB of one run in a process of its own, above that of the idle network."""
    command = [sys.executable, __file__, "--measure-memory", which, "--network", args.network, "--mode", args.mode]
    command += ["--batch", str(args.batch), "--size", str(args.size), *(["--bf16"] if args.bf16 else [])]
    command += ["--official", args.official] if args.official else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(args) -> None:
    network = build(args.measure_memory, args.network, args.official)
    run = make_run(network, args.measure_memory, args.mode, args.batch, args.size, args.bf16)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the highest size so far
    before = resident_mib("VmRSS")
    run()
    print(resident_mib("VmHWM") - before)


def resident_mib(key: str) -> float:
    """VmRSS: the resident size of this process now; VmHWM: its highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def compare(args) -> None:
    """Print one table."""
    kinds = ["ours", *(["official"] if args.official else []), "UNet2DModel"]
    networks = {kind: build(kind, args.network, args.official) for kind in kinds}
    runs = {
        kind: make_run(network, kind, args.mode, args.batch, args.size, args.bf16)
        for kind, network in networks.items()
        if network is not None
    }
    times = {kind: [] for kind in runs}
    for repeat in range(args.repeats + 1):
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first one is a warm-up
                times[kind].append(time.perf_counter() - start)
    dtype = "bfloat16 autocast" if args.bf16 else "float32"
    print(f"{args.network}, {args.mode}, batch {args.batch}, {args.size} x {args.size}, {dtype}")
    print(f"{'':14}{'median s':>10}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}")
    memory = {kind: peak_memory(args, kind) for kind in runs}
    for kind, values in times.items():
        median = statistics.median(values)
        speed, less = median / statistics.median(times["ours"]), memory[kind] / max(memory["ours"], 1e-9)
        print(f"{kind:14}{median:10.3f}{speed:8.2f}{memory[kind]:10.0f}{less:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="path of a checkout of score_sde_pytorch")
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--mode", choices=("forward", "train"), default="forward")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, help="height and width; default: the network's")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--smallest", action="store_true", help="a run of seconds, to see that it works")
    parser.add_argument("--measure-memory", metavar="KIND", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smallest:
        args.network, args.batch, args.repeats = "smallest", 1, 1
    args.size = args.size or ours_config(args.network)["sample_size"]
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.measure_memory:
        measure_memory(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
