"""A run replaces only what an earlier run wrote, and holds its folder alone."""

import json
import os
import shutil
import signal

import pytest

from diffusers_sde.store import locked_folder
from diffusers_sde.training import Trainer, list_checkpoints, train
from diffusers_sde.training.output import OutputFolder
from tests.training.launching import start


def content(folder):
    """Every file as bytes, by name, but for the lock."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FOREIGN = [
    "README.md",
    "curves.png",
    "unet/mine.txt",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/a.py",
    "model_index.json",
    "samples/step-4.png",
    "samples",
    "history.jsonl",
    "unet",
]


def test_files_of_others_are_refused_by_name_and_stay(make_args, tmp_path):
    """A README, a folder unet/ with notes, a picture: none is replaced, with --overwrite_output_dir neither."""
    for name in FOREIGN:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        for options in ({}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": "latest"}):
            with pytest.raises(ValueError, match=f"holds .*{name}.* this run writes its own.* Move it away"):
                train(make_args(**options))
            assert content(tmp_path / "run") == {name: b"mine"}
        shutil.rmtree(tmp_path / "run")


def test_empty_folders_and_links_of_others_are_refused(make_args, tmp_path):
    run = tmp_path / "run"
    (run / "unet" / "keep").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds unet/keep/, where"):
        train(make_args())
    shutil.rmtree(run / "unet")
    (tmp_path / "elsewhere").mkdir()
    (run / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="holds unet, where"):
        train(make_args())
    assert (run / "unet").is_symlink()


def test_a_finished_model_is_not_replaced_by_a_short_run(make_args, tmp_path):
    """Only --overwrite_output_dir replaces it, and then nothing of the old run is mixed in."""
    run = tmp_path / "run"
    train(make_args(save_images_steps=2))
    (run / "notes.txt").write_text("mine")
    shutil.rmtree(run / "checkpoint-4")
    before = content(run)
    for options in ({}, {"resume_from_checkpoint": "latest"}):
        with pytest.raises(ValueError, match="is of an earlier run, and has no checkpoint to go on from"):
            train(make_args(max_train_steps=1, **options))
        assert content(run) == before
    assert train(make_args(max_train_steps=1, overwrite_output_dir=True, save_images_steps=1)) == 1
    after = content(run)
    assert after["notes.txt"] == b"mine"
    assert [name for name in after if name.startswith("samples/")] == ["samples/step-1.png"]
    assert after["unet/diffusion_pytorch_model.safetensors"] != before["unet/diffusion_pytorch_model.safetensors"]
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-1"]


def test_what_is_put_into_a_runs_folders_later_stays(make_args, tmp_path):
    """Files in unet/ and in a checkpoint, and an edited card: resuming and starting anew name them."""
    run = tmp_path / "run"
    train(make_args())
    for name, options in (
        ("unet/mine.txt", {"resume_from_checkpoint": "latest"}),
        ("checkpoint-4/mine.txt", {"overwrite_output_dir": True}),
        ("README.md", {"resume_from_checkpoint": "latest"}),
    ):
        old = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).write_text("mine")
        with pytest.raises(ValueError, match=f"holds {name}, where"):
            train(make_args(max_train_steps=5, **options))
        assert (run / name).read_text() == "mine"
        (run / name).unlink() if old is None else (run / name).write_bytes(old)
    assert train(make_args(max_train_steps=5, resume_from_checkpoint="latest")) == 5


def test_what_appears_during_a_run_stays_and_the_state_is_saved(make_args, tmp_path, monkeypatch):
    step, run = Trainer._train_step, tmp_path / "run"

    def put(self, batches):
        (run / "unet").mkdir(exist_ok=True)
        (run / "unet" / "mine.txt").write_text("mine")
        return step(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", put)
    with pytest.raises(ValueError, match=r"unet/mine.txt is not as this run wrote it, and is left"):
        train(make_args())
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert (run / "unet" / "mine.txt").read_text() == "mine"
    (run / "unet" / "mine.txt").unlink()
    (run / "unet").rmdir()
    assert train(make_args(resume_from_checkpoint="latest")) == 4
    assert (run / "model_index.json").is_file()


def test_old_checkpoints_with_files_of_others_stay(make_args, tmp_path, caplog):
    run = tmp_path / "run"
    train(make_args(max_train_steps=2))
    (run / "checkpoint-2" / "notes.txt").write_text("mine")
    train(make_args(max_train_steps=4, checkpoints_total_limit=1, resume_from_checkpoint="latest"))
    assert (run / "checkpoint-2" / "notes.txt").read_text() == "mine"
    assert "checkpoint-2 stays: no training run wrote notes.txt in it" in caplog.text


def test_a_second_run_in_the_folder_is_refused(make_args, tmp_path):
    with locked_folder(tmp_path / "run"), pytest.raises(ValueError, match="another run is writing to"):
        train(make_args())
    assert train(make_args()) == 4
    trainer = Trainer(make_args(max_train_steps=6, resume_from_checkpoint="latest"), start=0.0)
    with pytest.raises(ValueError, match="another run is writing to"):
        train(make_args(max_train_steps=6, resume_from_checkpoint="latest"))
    assert trainer.run() == 6


def test_a_failed_start_lets_the_folder_go_and_removes_nothing(make_args, tmp_path):
    train(make_args())
    before = content(tmp_path / "run")
    with pytest.raises(ValueError, match="does not exist"):
        train(make_args(train_data_dir=tmp_path / "nowhere", overwrite_output_dir=True))
    assert content(tmp_path / "run") == before
    with locked_folder(tmp_path / "run"):
        pass


def test_an_output_folder_that_is_a_file(make_args, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        train(make_args())
    assert (tmp_path / "run").read_text() == "mine"


def test_both_flags_at_once_are_refused(make_args, capsys):
    with pytest.raises(SystemExit):
        make_args(overwrite_output_dir=True, resume_from_checkpoint="latest")
    assert "give one of them" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_not_taken_for_the_runs_own(make_args, tmp_path, caplog):
    """Its manifest is right; the record of the folder has another one. The run goes on from its own checkpoint."""
    one, other = tmp_path / "run", tmp_path / "other"
    options = {"max_train_steps": 4, "checkpointing_steps": 2}
    train(make_args(**options))
    train(make_args(output_dir=other, seed=5, **options))
    whole = content(one)
    shutil.rmtree(one / "checkpoint-4")
    shutil.copytree(other / "checkpoint-4", one / "checkpoint-4")
    with pytest.raises(ValueError, match="checkpoint-4 is damaged: it was written by another run"):
        train(make_args(resume_from_checkpoint="checkpoint-4", **options))
    assert train(make_args(resume_from_checkpoint="latest", **options)) == 4
    weights = "checkpoint-4/unet_ema/diffusion_pytorch_model.safetensors"
    assert content(one)[weights] == whole[weights]
    with pytest.raises(ValueError, match="--seed is 0, it was 5"):
        train(make_args(resume_from_checkpoint=other / "checkpoint-4", **options))


def test_a_run_killed_before_its_first_checkpoint_had_its_name_starts_again(make_args, tmp_path, monkeypatch):
    """Recorded, but not there: to take that for a lost checkpoint would stop a job that is restarted for ever."""

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    options = {"save_images_steps": 1, "checkpointing_steps": 2, "resume_from_checkpoint": "latest"}
    monkeypatch.setattr("diffusers_sde.training.checkpoints.replace_folder", kill)
    with pytest.raises(Killed):
        train(make_args(**options))
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert (tmp_path / "run" / "samples" / "step-1.png").is_file()
    assert train(make_args(**options)) == 4


def test_the_record_keeps_up_with_a_kill_at_any_file(tmp_path):
    """A file is in the record before it has its name."""
    output = OutputFolder(tmp_path, ("README.md",))
    with pytest.raises(KeyError), output.file("README.md") as path:
        path.write_text("half")
        raise KeyError
    assert not (tmp_path / "README.md").exists()
    with output.file("README.md") as path:
        path.write_text("whole")
    assert OutputFolder(tmp_path, ("README.md",))._foreign("README.md") == []
    lines = [json.loads(line) for line in (tmp_path / ".files.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["README.md"]


@pytest.mark.slow
def test_an_orphan_of_a_killed_launcher_keeps_its_folder(make_argv, tmp_path):
    """`accelerate launch` killed: its training process goes on, and a second run beside it is refused."""
    from tests.training.test_survival import SLOW_SCRIPT, wait_for_training

    (tmp_path / "slow.py").write_text(SLOW_SCRIPT)
    argv = make_argv(max_train_steps=100000, checkpointing_steps=100000)
    process = start(argv, tmp_path, script=tmp_path / "slow.py")
    wait_for_training(process, tmp_path)
    child = int(os.popen(f"pgrep -P {process.pid} -f slow.py").read().split()[0])
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)
        second = start(argv, tmp_path, script=tmp_path / "slow.py")
        assert second.wait(timeout=120) == 1
        assert "another run is writing to" in (tmp_path / "output.txt").read_text()
    finally:
        os.kill(child, signal.SIGKILL)
