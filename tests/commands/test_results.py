"""Folders and files of results: what is never removed, replaced or counted, and what is refused before any work."""

import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.evaluation.shards import ShardFolder, working_in
from diffusers_sde.image_folder import ImageFolder
from diffusers_sde.store import locked_folder
from diffusers_sde_cli.main import main
from tests.tiny import tiny_network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network = tiny_network(in_channels=1, out_channels=1)
    ScoreSdePipeline(network, ScoreSdeVeScheduler(sigma_max=2.0, num_train_timesteps=2)).save_pretrained(folder)
    return folder


def run(*args, expect=0):
    """Output of a command, spaces and line breaks alike."""
    result = CliRunner().invoke(main, [*map(str, args)])
    assert result.exit_code == expect, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return " ".join(result.output.split())


def picture(path, seed=9):
    """A picture of the user's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[0] != "."}


@pytest.fixture
def sample(model, tmp_path):
    """`sample` of some images into the folder `out`."""

    def call(*args, count=2, expect=0, output=tmp_path / "out"):
        return run("sample", "--model", model, "--num-images", count, "--output", output, *args, expect=expect)

    return call


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of the user's
# ---------------------------------------------------------------------------------------------------------------------


def test_own_pictures_in_a_folder_without_a_run_are_kept(sample, tmp_path):
    """`--overwrite` used to remove every picture there."""
    for number in range(3):
        picture(tmp_path / "out" / f"holiday{number}.png")
    before = content(tmp_path / "out")
    text = sample("--overwrite", expect=1)
    assert "holiday0.png, holiday1.png, holiday2.png" in text and "has no settings.json" in text
    assert content(tmp_path / "out") == before
    sample()  # they are not taken for pictures of other settings either
    assert content(tmp_path / "out").items() > before.items()


def test_own_pictures_beside_results_are_neither_removed_nor_counted(sample, tmp_path):
    sample()
    own = [picture(tmp_path / "out" / name) for name in ("holiday.png", "00007.png", "00000 (copy).png", "100.png")]
    before = {path.name: path.read_bytes() for path in own}
    sample()
    sample("--seed", 1, "--overwrite")
    found = content(tmp_path / "out")
    assert found.items() > before.items()
    assert {*found} - {*before} == {"00000.png", "00001.png", "grid.png", "settings.json"}
    text = sample("--seed", 1, count=9, expect=1)
    assert "holds 00007.png, which this run would write" in text
    assert content(tmp_path / "out") == found


@pytest.mark.parametrize("name", ["00001.png", "grid.png"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_name_that_is_taken_is_refused_before_anything_is_drawn(sample, tmp_path, name, overwrite):
    picture(tmp_path / "out" / name)
    before = content(tmp_path / "out")
    assert name in sample(*overwrite, expect=1)
    assert content(tmp_path / "out") == before


def test_a_result_that_the_user_has_exchanged_is_the_users(sample, tmp_path):
    """Under another name it would never be touched; under this one it neither counts as drawn nor gets lost."""
    sample()
    own = picture(tmp_path / "out" / "00001.png").read_bytes()
    Image.open(tmp_path / "out" / "00000.png").convert("RGB").save(tmp_path / "out" / "00000.png", format="JPEG")
    for options in ((), ("--seed", 1, "--overwrite")):
        assert "00000.png, 00001.png" in sample(*options, expect=1)
    assert (tmp_path / "out" / "00001.png").read_bytes() == own
    sample("--seed", 1, "--overwrite", "--no-grid", count=1, expect=1)
    assert (tmp_path / "out" / "00001.png").read_bytes() == own


def test_a_link_or_a_folder_of_a_results_name_is_refused(sample, tmp_path):
    own = picture(tmp_path / "elsewhere" / "mine.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.png").symlink_to(own)
    (tmp_path / "out" / "00001.png").mkdir()
    before = own.read_bytes()
    assert "00000.png, 00001.png" in sample(expect=1)
    assert own.read_bytes() == before and (tmp_path / "out" / "00000.png").is_symlink()


def test_a_pipe_of_a_results_name_does_not_hang(sample, tmp_path):
    sample()
    for name in ("00001.png", "grid.png"):
        (tmp_path / "out" / name).unlink()
        os.mkfifo(tmp_path / "out" / name)
    assert "00001.png, grid.png" in sample(expect=1)


@pytest.mark.parametrize("strange", ['{"editor.fontSize": 12}', "[]", '{"seed": 0, "versions": {}, "shard_size": 5}'])
def test_settings_of_something_else_are_kept(sample, tmp_path, strange):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text(strange)
    for options in ((), ("--overwrite",)):
        assert "settings.json" in sample(*options, expect=1)
    assert content(tmp_path / "out") == {"settings.json": strange.encode()}


# ---------------------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "relative", "link", "hard link", "folder link"])
def test_an_input_is_never_removed(model, sample, tmp_path, monkeypatch, way):
    """A result of an earlier run in the same folder, under whatever name it is given."""
    sample()
    result = tmp_path / "out" / "00000.png"
    given = tmp_path / "given.png"
    if way == "link":
        given.symlink_to(result)
    elif way == "hard link":
        os.link(result, given)
    elif way == "folder link":
        (tmp_path / "alias").symlink_to(tmp_path / "out")
        given = tmp_path / "alias" / "00000.png"
    elif way == "relative":
        monkeypatch.chdir(tmp_path / "out")
        given = "../out/00000.png"
    else:
        given = result
    before = content(tmp_path / "out")
    common = ("--model", model, "--output", tmp_path / "out", "--num-samples", 1)
    for options in (("edit", given), ("inpaint", given, "--hide", "left")):
        for overwrite in ((), ("--overwrite",)):
            assert "an input" in run(*options, *common, *overwrite, expect=1)
    assert content(tmp_path / "out") == before


def test_an_own_picture_is_edited_in_its_folder(model, tmp_path):
    """The case of the report: `edit d/holiday0.png --output d --overwrite` removed its input."""
    given = picture(tmp_path / "d" / "holiday0.png")
    before = given.read_bytes()
    common = ("edit", given, "--model", model, "--output", tmp_path / "d", "--num-samples", 1)
    assert "holiday0.png" in run(*common, "--overwrite", expect=1)
    run(*common)
    run(*common, "--strength", 0.9, "--overwrite")
    assert given.read_bytes() == before


def test_a_mask_and_a_data_set_are_inputs(model, sample, tmp_path):
    sample("--seed", 3)
    before = content(tmp_path / "out")
    common = ("inpaint", "--model", model, "--output", tmp_path / "out", "--num-samples", 1, "--overwrite")
    given = picture(tmp_path / "given.png")
    assert "an input" in run(*common, given, "--mask", tmp_path / "out" / "00001.png", expect=1)
    picture(tmp_path / "out" / "test" / "a.png")
    text = run(*common, "--hide", "left", "--data", tmp_path / "out", expect=1)
    assert "is part of an input" in text
    (tmp_path / "out" / "test" / "a.png").unlink()
    (tmp_path / "out" / "test").rmdir()
    assert content(tmp_path / "out") == before


# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["", '{"seed": ', "null"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_damaged_settings_are_named(sample, tmp_path, broken, overwrite):
    """Not "Expecting value: line 1 column 1"."""
    sample()
    (tmp_path / "out" / "settings.json").write_text(broken)
    before = content(tmp_path / "out")
    text = sample(*overwrite, expect=1)
    assert str(tmp_path / "out" / "settings.json") in text and "choose another --output" in text
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("length", [0, 5, 30, -1])
def test_a_picture_that_is_cut_off_is_drawn_again(sample, tmp_path, length):
    sample()
    before = content(tmp_path / "out")
    path = tmp_path / "out" / "00001.png"
    path.write_bytes(before["00001.png"][:length])
    kept = (tmp_path / "out" / "00000.png").stat().st_mtime_ns
    sample()
    difference = np.asarray(Image.open(path)).astype(int)
    path.write_bytes(before["00001.png"])
    assert np.abs(difference - np.asarray(Image.open(path))).max() <= 1  # of a batch of another size
    assert (tmp_path / "out" / "00000.png").stat().st_mtime_ns == kept


def test_a_picture_with_a_changed_byte_is_drawn_again(sample, tmp_path):
    sample()
    path = tmp_path / "out" / "00001.png"
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)
    sample()
    assert path.read_bytes() != changed
    Image.open(path).load()


def test_results_of_a_version_without_a_record_go_on(sample, tmp_path):
    """Their pictures are known by their names; a damaged one is drawn again."""
    sample(count=3)
    (tmp_path / "out" / ".files.jsonl").unlink()
    picture(tmp_path / "out" / "holiday.png")
    kept = (tmp_path / "out" / "00000.png").stat().st_mtime_ns
    (tmp_path / "out" / "00001.png").write_bytes(b"")
    sample(count=3)
    assert (tmp_path / "out" / "00000.png").stat().st_mtime_ns == kept
    assert Image.open(tmp_path / "out" / "00001.png").size == (8, 8)
    (tmp_path / "out" / ".files.jsonl").unlink()
    sample("--seed", 1, "--overwrite", count=1)
    assert {*content(tmp_path / "out")} == {"00000.png", "grid.png", "settings.json", "holiday.png"}


def test_a_full_disk_is_one_error_that_names_the_file(sample, tmp_path, monkeypatch):
    """And what is there is as it was; the same command goes on when there is room."""
    sample("--no-grid", count=1)
    save = Image.Image.save

    def full(image, path, **options):
        path.write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    text = sample(expect=1)
    assert "No space left on device" in text and str(tmp_path / "out" / "00001.png") in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"00000.png", "settings.json", ".files.jsonl"}
    monkeypatch.setattr(Image.Image, "save", save)
    sample()
    assert {*content(tmp_path / "out")} == {"00000.png", "00001.png", "grid.png", "settings.json"}


# ---------------------------------------------------------------------------------------------------------------------
# Two runs, and the grid
# ---------------------------------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder_are_refused(model, sample, tmp_path):
    with locked_folder(tmp_path / "out"):
        assert "another run is writing to" in sample(expect=1)
        given = picture(tmp_path / "given.png")
        text = run("edit", given, "--model", model, "--output", tmp_path / "out", expect=1)
        assert "another run is writing to" in text
    assert not content(tmp_path / "out")
    sample()


def test_a_narrow_picture_is_not_enlarged_beyond_bounds(model, tmp_path):
    """1 x 60000 pixels made a grid of 3 * 10^10."""
    narrow = Image.new("L", (1, 60_000))
    settings = {"model": "m", "scheduler": {}, "dtype": "float32", "diffusers_sde": "0"}
    with ImageFolder(tmp_path / "out", settings, 2) as folder:
        folder.draw(lambda indices, on_step_end: [narrow] * len(indices), 2, 1, show_progress=False)
        grid = folder.write_grid([[narrow, 0], [narrow, 1]])
        assert str(grid) == str(tmp_path / "out" / "grid.png")
        assert Image.open(grid.path).size == (2, 120_000)
        wide = folder.write_grid([[narrow.transpose(Image.Transpose.ROTATE_90)] * 2])
        assert Image.open(wide.path).size == (120_000, 1)
        many = folder.write_grid([range(2)] * 1000)
        assert np.prod(Image.open(many.path).size) <= 2**25 and "(the first 279 of 1000 rows)" in str(many)
        large = folder.write_grid([[Image.new("L", (7000, 7000), 200), 0]])
        assert Image.open(large.path).size == (2 * 3500, 3500)


# ---------------------------------------------------------------------------------------------------------------------
# Files of other commands
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    for number in range(4):
        picture(tmp_path / "data" / "test" / f"{number}.png", number)
        picture(tmp_path / "data" / "train" / f"{number}.png", number)
    return tmp_path / "data"


STRANGE = {"json": '{"important": [1, 2]}', "npz": "", "csv": "name,grade\nAda,1\n"}


def test_likelihood_keeps_files_of_others(model, data, tmp_path):
    common = ("likelihood", "--model", model, "--data", data, "--method", "elbo", "--num-times", 2, "--num-images", 2)
    for name in ("a.json", "b.csv"):
        (tmp_path / name).write_text(STRANGE[name[2:]])
    for overwrite in ((), ("--overwrite",)):
        assert "a.json exists and is not" in run(*common, "--output", tmp_path / "a.json", *overwrite, expect=1)
        assert "b.csv exists and is not" in run(*common, "--output", tmp_path / "b.json", *overwrite, expect=1)
    assert (tmp_path / "a.json").read_text() == STRANGE["json"] and (tmp_path / "b.csv").read_text() == STRANGE["csv"]
    assert "the result is JSON" in run(*common, "--output", tmp_path / "c.csv", expect=1)
    (tmp_path / "c.json").touch()  # as mktemp does
    run(*common, "--output", tmp_path / "c.json")
    run(*common, "--output", tmp_path / "c.json")
    assert "(seed differ)" in run(*common, "--seed", 1, "--output", tmp_path / "c.json", expect=1)
    (tmp_path / "c.json.parts" / "notes.jsonl").write_text("mine\n")
    run(*common, "--seed", 1, "--output", tmp_path / "c.json", "--overwrite")
    assert (tmp_path / "c.json.parts" / "notes.jsonl").read_text() == "mine\n"
    with locked_folder(tmp_path / "c.json.parts", ".lock-0-of-1"):
        assert "another run is writing to" in run(*common, "--seed", 1, "--output", tmp_path / "c.json", expect=1)


def test_evaluate_keeps_files_of_others(model, data, tmp_path):
    common = (
        "evaluate",
        "--model",
        model,
        "--data",
        data,
        "--metrics",
        "loss",
        "--num-images",
        2,
        "--noise-levels",
        2,
    )
    (tmp_path / "a.json").write_text(STRANGE["json"])
    assert "a.json exists and is not" in run(*common, "--output", tmp_path / "a.json", "--overwrite", expect=1)
    assert (tmp_path / "a.json").read_text() == STRANGE["json"]
    run(*common, "--output", tmp_path / "b.json")
    (tmp_path / "b.json.parts" / "loss.json.parts" / "rows-0-of-1.jsonl").open("a").write("no row\n")
    assert "rows-0-of-1.jsonl has a line that is not a row" in run(*common, "--output", tmp_path / "b.json", expect=1)


def test_suggest_snr_keeps_files_of_others(model, data, tmp_path):
    for number in range(28):
        picture(data / "test" / f"{number + 4}.png", number)
    common = ("suggest", "snr", "--model", model, "--data", data, "--num-samples", 16, "--snr-grid", "0.1")
    for strange in (STRANGE["json"], "[1]", '{"settings": 3, "points": 4}'):
        (tmp_path / "a.json").write_text(strange)
        assert "a.json exists and is not" in run(*common, "--output", tmp_path / "a.json", "--overwrite", expect=1)
        assert (tmp_path / "a.json").read_text() == strange
    run(*common, "--refine", 0, "--output", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["points"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.json", "data"}


def test_stats_keeps_files_of_others(data, tmp_path):
    common = ("stats", data, "--extractor", "classifier", "--resize", "--size", 32, "--channels", 1)
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8), np.uint8))
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(3), sigma=np.eye(3))
    for name in ("images.npz", "foreign.npz"):
        before = (tmp_path / name).read_bytes()
        assert f"{name} exists and is not" in run(*common, "--output", tmp_path / name, "--overwrite", expect=1)
        assert (tmp_path / name).read_bytes() == before
    run(*common, "--output", tmp_path / "own.npz")
    run(*common, "--output", tmp_path / "own.npz", "--num-images", 3, "--overwrite")


def test_evaluate_leaves_shards_of_others_and_the_folder_to_a_run_at_work(tmp_path):
    """Rows or shards of two settings are never mixed, whatever the number of processes of the two runs."""

    def folder(seed):
        return ShardFolder(tmp_path / "samples", {"seed": seed}, 4, 2)

    (tmp_path / "samples").mkdir()
    with FileLock(tmp_path / "samples" / ".lock-1-of-2"):  # as another process holds it
        with working_in(tmp_path / "samples", 0, 2):  # its companion
            folder(0).claim(num_processes=2)
            folder(0).fill(lambda indices: {"x": torch.tensor(indices)}, 2)
        with pytest.raises(ValueError, match="another run"), working_in(tmp_path / "samples", 1, 2):
            pass
        with working_in(tmp_path / "samples", 0, 1), pytest.raises(ValueError, match="another run is writing"):
            folder(1).claim(overwrite=True)
    assert folder(0).read(0) is not None
    with working_in(tmp_path / "samples", 0, 1):
        folder(1).claim(overwrite=True)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "shard-00000.safetensors").write_bytes(b"mine")
    strange = ShardFolder(tmp_path / "strange", {"seed": 0}, 4, 2)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"no settings\.json.*shard-00000\.safetensors"):
            strange.claim(overwrite)
