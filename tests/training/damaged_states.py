"""Runs whose state on disk was cut, flipped, emptied, removed, rewritten or exchanged: 200 cases.

Each has to end with the weights of the undisturbed run, or in one ValueError or OSError; a run that had a checkpoint
never starts anew. tests/training/test_damaged_states.py runs them.
"""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

from diffusers_sde.training.checkpoints import write_manifest

LAST, BEFORE = "checkpoint-4", "checkpoint-2"
FILES = (
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    *("unet_ema/config.json", "unet_ema/diffusion_pytorch_model.safetensors"),
    *("optimizer.bin", "random_states_0.pkl", "training_args.json", "manifest.json"),
)
HIT = "ran.txt"


class Bomb:
    """A pickle that would write a file where it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "ran"))


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path, other: Path) -> None:
    path.unlink()


def exchange(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def noise(path: Path, other: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def null(path: Path, other: Path) -> None:
    path.write_text("null")


def nested(path: Path, other: Path) -> None:
    path.write_text("[" * 100000)


def bomb(path: Path, other: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.parents[2] / HIT)))


HARMS: tuple[Callable[[Path, Path], None], ...] = (
    cut,
    flip,
    empty,
    remove,
    exchange,
    noise,
    folder,
    null,
    nested,
    bomb,
)

MANIFESTS = ("null", "[]", "{}", '{"files": null}', '{"files": []}', '{"files": {}}', '{"files": {"x": null}}', "{")
RECORDS = ("remove", "empty", "cut", "noise")


def cases() -> list[tuple[str, str, str]]:
    """(file, harm, way): "as it is", "with its manifest" rewritten, or also "without record" of the output folder."""
    found = [(file, harm.__name__, "as it is") for file in FILES for harm in HARMS]
    rest = [file for file in FILES if file != "manifest.json"]
    for way in ("with its manifest", "without record"):
        found += [(file, harm.__name__, way) for file in rest for harm in HARMS if harm is not remove]
    found += [("manifest.json", text, "manifest") for text in MANIFESTS]
    return found + [("training_args.json", harm, "record") for harm in RECORDS]


def damage_run(run: Path, other: Path, case: tuple[str, str, str]) -> None:
    """Do to the last checkpoint of a run, or to the record of its folder, what a case says."""
    file, harm, way = case
    record = run / ".files.jsonl"
    if way == "manifest":
        (run / LAST / file).write_text(harm)
        return
    target = record if way == "record" else run / LAST / file
    by_name = {h.__name__: h for h in HARMS}
    by_name[harm](target, other / LAST / file)
    if way in ("with its manifest", "without record"):
        write_manifest(run / LAST)
    if way == "without record":
        record.unlink()
        for path in [*run.glob("*.json"), run / "history.jsonl", run / "README.md", run / "curves.png"]:
            path.unlink(missing_ok=True)
        for name in ("unet", "scheduler", BEFORE):
            shutil.rmtree(run / name)
