"""Whatever call a run dies at, its folder holds the old or the new, and another run completes it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_sde.conversion.output import check_output, whole_folder
from diffusers_sde.evaluation.rows import RowEvaluation
from diffusers_sde.evaluation.shards import ShardFolder
from diffusers_sde.image_folder import ImageFolder
from diffusers_sde.store import write_json
from tests.store.killing import every_kill, killed_at

MARKS = {"model": "m", "scheduler": {}, "dtype": "float32", "diffusers_sde": "0"}
OWN = b"a picture of the user's"


def content(folder):
    """Files by name, without the hidden ones, which are no results."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("[!.]*")) if path.is_file()}


def picture(seed, index):
    return Image.fromarray(np.random.default_rng([seed, index]).integers(0, 256, (8, 8), dtype=np.uint8))


def draw(folder, seed, overwrite=False):
    with ImageFolder(folder, {**MARKS, "seed": seed}, 3, overwrite) as images:
        images.draw(lambda indices, on_step_end: [picture(seed, i) for i in indices], 2, 1, show_progress=False)
        images.write_grid([range(3)])


@pytest.fixture
def undisturbed(tmp_path):
    for seed in (0, 1):
        draw(tmp_path / f"undisturbed{seed}", seed)
    return [content(tmp_path / f"undisturbed{seed}") for seed in (0, 1)]


def test_a_set_of_images_is_completed_wherever_its_run_was_killed(tmp_path, undisturbed):
    for call in every_kill(lambda call: draw(tmp_path / str(call), 0)):
        draw(tmp_path / str(call), 0)
        assert content(tmp_path / str(call)) == undisturbed[0], call


def test_a_set_of_images_is_replaced_wherever_a_run_was_killed(tmp_path, undisturbed):
    """A picture is always one of the settings that stand beside it, and a picture of the user's stays."""
    for call in range(500):
        (tmp_path / str(call)).mkdir()
        (tmp_path / str(call) / "holiday.png").write_bytes(OWN)
        draw(tmp_path / str(call), 0)
        with killed_at(call) as calls:
            draw(tmp_path / str(call), 1, overwrite=True)
        if len(calls) <= call:
            break
        found = content(tmp_path / str(call))
        seed = json.loads(found["settings.json"])["seed"]
        assert all(found[name] == undisturbed[seed].get(name, OWN) for name in found), call
        draw(tmp_path / str(call), 1, overwrite=True)
        assert content(tmp_path / str(call)) == undisturbed[1] | {"holiday.png": OWN}, call
    assert call > 10


class Rows(RowEvaluation):
    """Rows of the numbers of the images."""

    def settings(self):
        return {"versions": {}, "weights_sha256": "0", "seed": self.seed}

    def own_settings(self):
        return {}

    def _measure(self, indices):
        return [{"index": index, "value": index + 0.5} for index in indices]

    def _write_result(self, rows):
        result = {"num_images": len(rows), "settings": self._settings, "rows": rows}
        write_json(self.output, result)
        return result


def measure(folder, seed=0, overwrite=False):
    rows = Rows(None, range(5), folder / "rows.json", seed=seed, batch_size=2)
    rows.claim(overwrite)
    return rows.run()


def test_rows_are_completed_wherever_their_run_was_killed(tmp_path):
    for call in every_kill(lambda call: measure(tmp_path / str(call))):
        result = measure(tmp_path / str(call))
        assert [row["value"] for row in result["rows"]] == [0.5, 1.5, 2.5, 3.5, 4.5], call
        lines = (tmp_path / str(call) / "rows.json.parts" / "rows-0-of-1.jsonl").read_text().splitlines()
        assert len(lines) == 5, call


def fill(folder, seed=0, overwrite=False):
    shards = ShardFolder(folder, {"seed": seed}, 5, 2)
    shards.claim(overwrite)
    shards.fill(lambda indices: {"x": torch.tensor(indices) + 100 * seed}, 2)
    return shards.load("x")["x"]


def test_shards_are_replaced_wherever_a_run_was_killed(tmp_path):
    def run(call):
        fill(tmp_path / str(call), 1, overwrite=True)

    for call in range(60):
        fill(tmp_path / str(call))
    for call in every_kill(run, 60):
        assert fill(tmp_path / str(call), 1, overwrite=True).tolist() == [100, 101, 102, 103, 104], call


def write(folder, text):
    check_output(folder, overwrite=True)
    with whole_folder(folder) as partial:
        for name in ("model_index.json", "unet/config.json"):
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text)


def test_a_converted_folder_is_old_or_new_wherever_a_run_was_killed(tmp_path):
    for call in range(80):
        write(tmp_path / str(call), "old")
    for call in every_kill(lambda call: write(tmp_path / str(call), "new"), 80):
        check_output(tmp_path / str(call), overwrite=True)  # what the next run does first
        assert set(content(tmp_path / str(call)).values()) in ({b"old"}, {b"new"}), call
        write(tmp_path / str(call), "new")
        assert set(content(tmp_path / str(call)).values()) == {b"new"}, call
    assert not list(tmp_path.glob(".*"))
