"""Repositories of strangers: a good one with one thing changed, through four loaders."""

import io
import json
import os
import pickle
import shutil
from functools import cache, partial
from pathlib import Path

import diffusers
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save, save_file

from diffusers_sde import NCSNppModel, ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde_cli.sample import sample
from tests.tiny import legacy_unet, tiny_network

WEIGHTS = "diffusion_pytorch_model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000
# As they stand in a JSON file.
VALUES = {
    "null": "null",
    "text": '"x"',
    "list": "[]",
    "list_of_text": '["a", "b"]',
    "object": "{}",
    "minus": "-1",
    "zero": "0",
    "huge": "1000000000",
    "over_64_bits": "9223372036854775808",
    "thousand_digits": "9" * 1000,
    "fraction": "0.5",
    "nan": "NaN",
    "infinity": "Infinity",
    "true": "true",
    "deep": DEEP,
}


def save_pipeline(folder: Path, unet, scheduler) -> None:
    ScoreSdePipeline(unet, scheduler).save_pretrained(folder)


@cache
def originals() -> dict[str, Path]:
    """Good repositories: ours, and one of diffusers' network under a scheduler of diffusers'."""
    import tempfile

    root = Path(tempfile.mkdtemp())
    save_pipeline(root / "ours", tiny_network(), ScoreSdeVeScheduler(sigma_max=5.0, num_train_timesteps=4))
    for name in ("DDPM", "DDIM", "PNDM"):
        scheduler = getattr(diffusers, f"{name}Scheduler")(num_train_timesteps=20)
        positional = {"time_embedding_type": "positional", "norm_num_groups": 8, "center_input_sample": False}
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        save_pipeline(root / name, legacy_unet(**positional, **blocks), scheduler)
    return {path.name: path for path in root.iterdir()}


def edit_json(path: Path, key: str, text: str) -> None:
    """Put a JSON text in place of the value of a key."""
    content = json.loads(path.read_text())
    content[key] = "@@"
    path.write_text(json.dumps(content).replace('"@@"', text))


def edit_weights(folder: Path, change) -> None:
    """Write the weights after `change(dict of tensors) -> dict`."""
    path = folder / "unet" / WEIGHTS
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


class _Canary:
    def __reduce__(self):
        return os.system, (f"touch {os.environ.get('HOSTILE_CANARY', '/nonexistent')}",)


def _first(tensors: dict, change) -> dict:
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    return tensors | {name: change(tensors[name])}


def weight_changes() -> dict:
    """Changes of the tensors by name."""
    dtypes = (
        "bool",
        "int8",
        "uint8",
        "int32",
        "int64",
        "complex64",
        "float16",
        "bfloat16",
        "float64",
        "float8_e4m3fn",
    )
    return {
        **{f"all_{name}": lambda t, n=name: {k: v.to(getattr(torch, n)) for k, v in t.items()} for name in dtypes},
        **{f"one_{name}": lambda t, n=name: _first(t, lambda v: v.to(getattr(torch, n))) for name in dtypes},
        "one_missing": lambda t: dict(list(t.items())[1:]),
        "all_missing": lambda t: {"other": torch.zeros(3)},
        "nothing": lambda t: {},
        "one_more": lambda t: t | {"more.weight": torch.zeros(2)},
        "odd_name": lambda t: t | {"../../x\n\x1b[31m": torch.zeros(2)},
        "nan": lambda t: _first(t, lambda v: v * torch.nan),
        "infinite": lambda t: {k: v / 0 for k, v in t.items()},
        "one_nan": lambda t: _first(t, lambda v: v.flatten().index_fill(0, torch.tensor(0), torch.nan).view_as(v)),
        "transposed": lambda t: _first(t, lambda v: v.transpose(0, 1).contiguous()),
        "other_shape": lambda t: _first(t, lambda v: torch.zeros(1)),
        "scalar": lambda t: _first(t, lambda v: torch.tensor(1.0)),
        "empty_tensor": lambda t: _first(t, lambda v: torch.zeros(0, 3)),
    }


def file_changes() -> dict:
    """Changes of the files of a repository, by name."""

    def weights(text: bytes):
        return lambda folder: (folder / "unet" / WEIGHTS).write_bytes(text)

    def pickled(path: str):
        return lambda folder: (folder / path).write_bytes(pickle.dumps(_Canary()))

    def header(size: int):
        return weights(size.to_bytes(8, "little") + b"{}")

    def index(text: str):
        return lambda folder: (folder / "unet" / f"{WEIGHTS}.index.json").write_text(text)

    def shards(name: str):
        return index(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))

    def remove(path: str):
        return lambda folder: (folder / path).unlink()

    def link(path: str, target: str):
        def change(folder):
            (folder / path).unlink()
            (folder / path).symlink_to(target)

        return change

    def fifo(path: str):
        def change(folder):
            (folder / path).unlink()
            os.mkfifo(folder / path)

        return change

    def entry(component: str, text: str):
        return lambda folder: edit_json(folder / "model_index.json", component, text)

    def cut(folder):
        path = folder / "unet" / WEIGHTS
        path.write_bytes(path.read_bytes()[:-7])

    def bomb(folder):
        (folder / "unet" / WEIGHTS).unlink()
        import zipfile

        with zipfile.ZipFile(folder / "unet" / "diffusion_pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 300_000_000)

    def saved(content):
        def change(folder):
            (folder / "unet" / WEIGHTS).unlink()
            torch.save(content, folder / "unet" / "diffusion_pytorch_model.bin")

        return change

    def code(folder):
        text = f"open({os.environ.get('HOSTILE_CANARY', '/nonexistent')!r}, 'w')"
        for name in ("pipeline.py", "unet/diffusers_sde.py", "unet/diffusers.py", "scheduler/diffusers_sde.py"):
            (folder / name).write_text(text)
        edit_json(folder / "model_index.json", "_class_name", '["pipeline", "ScoreSdePipeline"]')

    configs = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    texts = {
        "empty": "",
        "null": "null",
        "number": "7",
        "list": "[1]",
        "text": '"x"',
        "half": '{"a": ',
        "deep": DEEP,
        "deep_value": f'{{"a": {DEEP}}}',
        "depth_500": f'{{"a": {"[" * 500}{"]" * 500}}}',
        "large": json.dumps({"a": "x" * 2_000_000}),
        "wide": json.dumps({"a": [0] * 300_000}),
        "self": '{"self": 1}',
        "items": '{"items": 1, "__class__": 2}',
        "kwargs": '{"kwargs": {"a": 1}, "dtype": "float32", "config": 3}',
    }
    return {
        **{f"{c}_{n}": lambda folder, c=c, t=t: (folder / c).write_text(t) for c in configs for n, t in texts.items()},
        **{f"{c}_bytes": lambda folder, c=c: (folder / c).write_bytes(b"\xff\xfe\0") for c in configs},
        **{f"{c}_removed": remove(c) for c in (*configs, f"unet/{WEIGHTS}")},
        **{f"{c}_fifo": fifo(c) for c in (*configs, f"unet/{WEIGHTS}")},
        **{f"{c}_loop": link(c, Path(c).name) for c in (*configs, f"unet/{WEIGHTS}")},
        **{f"{c}_zero": link(c, "/dev/zero") for c in (*configs, f"unet/{WEIGHTS}")},
        **{f"{c}_passwd": link(c, "/etc/passwd") for c in (*configs, f"unet/{WEIGHTS}")},
        "weights_empty": weights(b""),
        "weights_text": weights(b"version https://git-lfs.github.com/spec/v1"),
        "weights_zeros": weights(b"\0" * 1000),
        "weights_cut": cut,
        "weights_header_huge": header(2**62),
        "weights_header_negative": header(2**64 - 1),
        "weights_header_long": header(1000),
        "weights_pickle": pickled(f"unet/{WEIGHTS}"),
        "weights_header_deep": weights((200_000).to_bytes(8, "little") + DEEP.encode()),
        "offsets": weights(save({"x": torch.zeros(4)}).replace(b"[0,16]", b"[0,99]")),
        "beside_pickle": pickled("unet/diffusion_pytorch_model.bin"),
        "only_pickle": lambda f: (remove(f"unet/{WEIGHTS}")(f), pickled("unet/diffusion_pytorch_model.bin")(f)),
        "only_archive": bomb,
        "only_list": saved([torch.zeros(2)]),
        "only_module": saved({"a": {"b": torch.zeros(2)}, "c": 3}),
        "index_up": shards(f"../unet/{WEIGHTS}"),
        "index_absolute": shards("/etc/passwd"),
        "index_pickle": lambda f: (shards("evil.bin")(f), pickled("unet/evil.bin")(f)),
        "index_absent": shards("absent.safetensors"),
        "index_itself": shards(f"{WEIGHTS}.index.json"),
        "index_number": index(json.dumps({"metadata": {}, "weight_map": {"a": 7}})),
        "index_list": index(json.dumps({"metadata": {}, "weight_map": [1]})),
        "index_bare": index(json.dumps({"weight_map": {}})),
        "index_empty": index(json.dumps({"metadata": {}, "weight_map": {}})),
        "index_null": index("null"),
        "index_deep": index(DEEP),
        "code": code,
        "class_none": entry("_class_name", "null"),
        "class_number": entry("_class_name", "3"),
        "class_list": entry("_class_name", "[]"),
        "class_objects": entry("_class_name", "[{}, 3]"),
        "class_os": entry("_class_name", '"os.system"'),
        **{f"{c}_null": entry(c, "null") for c in ("unet", "scheduler")},
        **{f"{c}_number": entry(c, "7") for c in ("unet", "scheduler")},
        **{f"{c}_short": entry(c, '["diffusers"]') for c in ("unet", "scheduler")},
        **{f"{c}_nulls": entry(c, "[null, null]") for c in ("unet", "scheduler")},
        **{f"{c}_os": entry(c, '["os", "system"]') for c in ("unet", "scheduler")},
        **{f"{c}_posix": entry(c, '["subprocess", "Popen"]') for c in ("unet", "scheduler")},
        **{f"{c}_builtins": entry(c, '["builtins", "eval"]') for c in ("unet", "scheduler")},
        **{f"{c}_ours": entry(c, '["diffusers_sde", "embedded_model_path"]') for c in ("unet", "scheduler")},
        **{f"{c}_private": entry(c, '["diffusers_sde", "__version__"]') for c in ("unet", "scheduler")},
        **{f"{c}_vae": entry(c, '["diffusers", "AutoencoderKL"]') for c in ("unet", "scheduler")},
        **{f"{c}_bert": entry(c, '["transformers", "BertModel"]') for c in ("unet", "scheduler")},
        **{f"{c}_module": entry(c, '["stable_diffusion", "StableDiffusionPipeline"]') for c in ("unet", "scheduler")},
        "swapped": entry("unet", '["diffusers_sde", "ScoreSdeVeScheduler"]'),
        "other_network": entry("unet", '["diffusers_sde", "NCSNv2Model"]'),
        "classifier": entry("unet", '["diffusers_sde", "NoiseConditionalClassifier"]'),
        "more_components": entry("safety_checker", '["os", "system"]'),
        "ignored": entry("_ignore_files", "7"),
        "defaults": entry("_use_default_values", "7"),
        "quantized": lambda f: edit_json(
            f / "unet/config.json", "quantization_config", '{"quant_method": "bitsandbytes"}'
        ),
        "remote": lambda f: edit_json(f / "unet/config.json", "auto_map", '{"AutoModel": "evil.Evil"}'),
        "million_blocks": lambda f: edit_json(f / "unet/config.json", "block_out_channels", json.dumps([8] * 10**6)),
        "thousand_blocks": lambda f: edit_json(f / "unet/config.json", "block_out_channels", json.dumps([8] * 1000)),
        "wide_blocks": lambda f: edit_json(f / "unet/config.json", "block_out_channels", "[4096, 4096, 4096]"),
        "deepest": lambda f: edit_json(f / "unet/config.json", "layers_per_block", "32"),
        "other_act": lambda f: edit_json(f / "unet/config.json", "act_fn", '"eval"'),
        "crossed_sigmas": lambda f: edit_json(f / "scheduler/scheduler_config.json", "sigma_min", "100"),
        "slow_corrector": lambda f: edit_json(f / "scheduler/scheduler_config.json", "correct_steps", "1000000000"),
    }


def changes() -> dict:
    """All changes by name: (original, change of the folder)."""
    found = {f"weights_{name}": ("ours", partial(edit_weights, change=c)) for name, c in weight_changes().items()}
    found |= {f"file_{name}": ("ours", change) for name, change in file_changes().items()}
    keys = {
        ("ours", "unet/config.json"): [key for key in NCSNppModel().config if not key.startswith("_")],
        ("ours", "scheduler/scheduler_config.json"): [
            k for k in ScoreSdeVeScheduler().config if not k.startswith("_")
        ],
        ("DDPM", "unet/config.json"): [
            *("sample_size", "in_channels", "block_out_channels", "layers_per_block", "down_block_types", "act_fn"),
            *("attention_head_dim", "norm_num_groups", "time_embedding_type", "mid_block_scale_factor", "freq_shift"),
            *("num_class_embeds", "class_embed_type", "time_embedding_dim", "norm_eps", "dropout"),
        ],
        **{
            (name, "scheduler/scheduler_config.json"): [
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "trained_betas",
            ]
            for name in ("DDPM", "DDIM", "PNDM")
        },
    }
    for (original, path), names in keys.items():
        for key in names:
            for word, text in VALUES.items():

                def change(folder, path=path, key=key, text=text):
                    edit_json(folder / path, key, text)

                found[f"{original}_{Path(path).parent}_{key}_{word}"] = (original, change)
    return found


def through_ours(folder: Path) -> None:
    draw(ScoreSdePipeline.from_pretrained(folder))


def through_diffusers(folder: Path) -> None:
    """Where diffusers finds one of our classes; before, it reads `model_index.json` by itself."""
    index = folder / "model_index.json"
    text = index.read_text(errors="replace") if index.is_file() and not index.is_symlink() else ""
    if '"_class_name": "ScoreSdePipeline"' not in text or len(text) > 5000:
        return
    draw(diffusers.DiffusionPipeline.from_pretrained(folder))


def draw(pipeline) -> None:
    """A few steps, if the config does not ask for many."""
    pipeline.set_progress_bar_config(disable=True)
    if (
        getattr(pipeline.scheduler.config, "correct_steps", 0) <= 10
        and max(pipeline._requested_size(None, None)) <= 64
    ):
        images = pipeline(batch_size=1, num_inference_steps=4, output_type="pt").images
        assert images.isfinite().all()


def through_sample(folder: Path) -> None:
    """`diffusers-sde sample`: exit status 0 and a picture, or one line of error and another status."""
    output = folder.parent / f"{folder.name}-out"
    options = ["--model", str(folder), "--num-images", "1", "--steps", "4", "--output", str(output), "--no-grid"]
    result = CliRunner().invoke(sample, options)
    if result.exit_code == 0:
        assert (output / "00000.png").is_file()
        return
    if not isinstance(result.exception, SystemExit):
        raise result.exception
    raise ValueError(result.output)


def through_the_space(folder: Path) -> None:
    from score_space.models import load_model

    load_model(str(folder))


LOADERS = {"ours": through_ours, "diffusers": through_diffusers, "sample": through_sample, "space": through_the_space}


def cases() -> dict:
    """Every change through every loader; of the values of keys, each through one loader in turn."""
    found = {}
    for number, (name, (original, change)) in enumerate(changes().items()):
        is_value = name.startswith(tuple(originals())) and not name.startswith(("file_", "weights_"))
        loaders = [list(LOADERS)[number % 3]] if is_value else list(LOADERS)
        for loader in loaders:

            def case(folder, original=original, change=change, loader=loader):
                copy = folder / "model"
                shutil.copytree(originals()[original], copy)
                change(copy)
                with_output(LOADERS[loader], copy)

            found[f"{name}_by_{loader}"] = case
    return found


def with_output(function, folder: Path) -> None:
    """Call a loader with what diffusers logs kept off the output."""
    import contextlib

    with contextlib.redirect_stderr(io.StringIO()):
        function(folder)
