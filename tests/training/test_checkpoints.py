import numpy as np
import pytest

from diffusers_sde.training import find_checkpoint, list_checkpoints
from diffusers_sde.training.checkpoints import damage, remove_old, replace_folder, set_aside, write_manifest
from diffusers_sde.training.samples import image_grid


@pytest.fixture
def run_dir(tmp_path):
    """Checkpoints 2, 4 and 10, and names that only look like one."""
    for name in ("checkpoint-10", "checkpoint-2", "checkpoint-4", ".partial-checkpoint-12", "checkpoint-best"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "weights").write_bytes(name.encode())
        (tmp_path / name / "state").write_bytes(b"0123456789")
        write_manifest(tmp_path / name)
    (tmp_path / "checkpoint-99").write_text("a file")
    return tmp_path


def names(run_dir):
    return [path.name for path in list_checkpoints(run_dir)]


def test_checkpoints_are_listed_by_number(run_dir, tmp_path):
    assert names(run_dir) == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]
    assert list_checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("wanted", ["checkpoint-4", "{run_dir}/checkpoint-4"])
def test_a_checkpoint_is_found_by_name_and_path(run_dir, wanted):
    assert find_checkpoint(run_dir, wanted.format(run_dir=run_dir)) == run_dir / "checkpoint-4"


def test_the_latest_checkpoint(run_dir, tmp_path):
    assert find_checkpoint(run_dir, "latest") == run_dir / "checkpoint-10"
    assert find_checkpoint(tmp_path / "nowhere", "latest") is None


def test_a_missing_checkpoint_is_refused_with_a_list(run_dir, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint-7 is not .* holds checkpoint-2, checkpoint-4, checkpoint-10"):
        find_checkpoint(run_dir, "checkpoint-7")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "nowhere", "checkpoint-7")


@pytest.mark.parametrize(
    ("limit", "newest", "left"),
    [
        (None, 10, [2, 4, 10]),
        (5, 10, [2, 4, 10]),
        (2, 10, [4, 10]),
        (1, 10, [10]),
        (1, 2, [2]),  # resumed from an old one: the one just written stays
        (2, 2, [2, 10]),
    ],
)
def test_the_oldest_go_and_the_newest_stays(run_dir, limit, newest, left):
    remove_old(run_dir, run_dir / f"checkpoint-{newest}", limit)
    assert names(run_dir) == [f"checkpoint-{step}" for step in left]
    assert not list(run_dir.glob(".old-*"))


def test_replacing_a_folder(tmp_path):
    for name, text in (("new", "1"), ("target", "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    replace_folder(tmp_path / "new", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "file").read_text() == "1"


def cut(folder):
    (folder / "state").write_bytes(b"012345678")


def change(folder):
    (folder / "unet" / "weights").write_bytes(b"checkpoint-1O")


def remove(folder):
    (folder / "state").unlink()


def without_manifest(folder):
    (folder / "manifest.json").unlink()


def manifest_cut(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


DAMAGES = [
    (cut, "state has 9 bytes instead of 10"),
    (change, "the checksum of unet/weights differs"),
    (remove, "state is missing"),
    (without_manifest, "manifest.json is missing"),
    (manifest_cut, "manifest.json cannot be read"),
    *(
        (lambda folder, text=text: (folder / "manifest.json").write_text(text), "manifest.json cannot be read")
        for text in (
            *("null", "[]", "{}", '{"files": null}', '{"files": []}', '{"files": {}}', '{"files": {"state": null}}'),
            *(
                '{"files": {"state": {}}}',
                '{"files": {"state": {"bytes": "10"}}}',
                '{"files": {"../state": {"bytes": 1}}}',
            ),
        )
    ),
]


@pytest.mark.parametrize(("harm", "reason"), DAMAGES)
def test_a_damaged_latest_checkpoint_is_told_and_the_one_before_is_used(run_dir, caplog, harm, reason):
    assert damage(run_dir / "checkpoint-10") is None
    harm(run_dir / "checkpoint-10")
    assert damage(run_dir / "checkpoint-10") == reason
    assert find_checkpoint(run_dir, "latest") == run_dir / "checkpoint-4"
    assert f"checkpoint-10 is damaged: {reason}; the one before it is used instead" in caplog.text
    assert names(run_dir) == ["checkpoint-2", "checkpoint-4"]
    assert (run_dir / "damaged-checkpoint-10").is_dir()


def test_when_all_are_damaged_latest_is_an_error(run_dir):
    """A new start would throw away days of training, with exit status 0; again when it is asked a second time."""
    for path in list_checkpoints(run_dir):
        cut(path)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"no checkpoint in .* is intact: checkpoint-10: state has 9 bytes.*anew by"
        ):
            find_checkpoint(run_dir, "latest")
    assert names(run_dir) == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]


def test_a_damaged_checkpoint_that_was_named_is_refused(run_dir):
    cut(run_dir / "checkpoint-4")
    with pytest.raises(ValueError, match=r"checkpoint-4 is damaged: state has 9 bytes.*holds checkpoint-2, ch"):
        find_checkpoint(run_dir, "checkpoint-4")
    assert names(run_dir) == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]


def test_what_is_set_aside_is_not_listed_nor_removed(run_dir):
    assert set_aside(run_dir / "checkpoint-4", "abandoned") == run_dir / "abandoned-checkpoint-4"
    remove_old(run_dir, run_dir / "checkpoint-10", 1)
    assert names(run_dir) == ["checkpoint-10"]
    assert (run_dir / "abandoned-checkpoint-4" / "state").is_file()


def test_image_grid_places_images_row_by_row():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), dtype=np.uint8)
    grid = image_grid(images)
    assert grid.shape == (4, 9, 1)
    assert grid[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
