"""Damaged and hostile training states: the weights of the undisturbed run, or one error; see damaged_states.py."""

import shutil

import pytest
from accelerate.state import AcceleratorState, GradientState

from diffusers_sde.training import train
from tests.training.damaged_states import FILES, HIT, cases, damage_run
from tests.training.test_survival import bits

OPTIONS = {"max_train_steps": 5, "checkpointing_steps": 2, "save_images_steps": 0}
ALL = cases()
FEW = [
    ("random_states_0.pkl", "bomb", "without record"),
    ("random_states_0.pkl", "noise", "without record"),
    ("optimizer.bin", "cut", "without record"),
    ("optimizer.bin", "bomb", "with its manifest"),
    ("unet_ema/config.json", "null", "without record"),
    ("training_args.json", "null", "without record"),
    ("training_args.json", "nested", "without record"),
    ("unet/diffusion_pytorch_model.safetensors", "flip", "as it is"),
    ("manifest.json", '{"files": {"x": null}}', "manifest"),
    ("training_args.json", "cut", "record"),
]


def reset():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def runs(make_args, tmp_path):
    """The undisturbed run of 5 steps, one that was stopped at 4, and one of another seed."""
    whole, stopped, other = (tmp_path / name for name in ("whole", "stopped", "other"))
    train(make_args(output_dir=whole, **OPTIONS))
    for folder, changes in ((stopped, {}), (other, {"seed": 9})):
        reset()
        train(make_args(output_dir=folder, **OPTIONS | {"max_train_steps": 4} | changes))
    return whole, stopped, other


def outcome(make_args, runs, tmp_path, case):
    """ "same bits", or the message of the refusal."""
    whole, stopped, other = runs
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(stopped, run)
    damage_run(run, other, case)
    reset()
    try:
        assert train(make_args(output_dir=run, resume_from_checkpoint="latest", **OPTIONS)) == 5
    except (ValueError, OSError) as error:
        result = str(error)
    else:
        assert bits(run, 5) == bits(whole, 5), case
        result = "same bits"
    assert not (tmp_path / HIT).exists() and not (run / HIT).exists(), case
    assert len(result) < 1000 and "\n" not in result, result
    return result


def check(make_args, runs, tmp_path, chosen):
    refused = {}
    for case in chosen:
        result = outcome(make_args, runs, tmp_path, case)
        if result != "same bits":
            refused[case] = result
    return refused


def test_there_are_over_150_cases_and_the_few_are_of_them():
    assert len(set(ALL)) == len(ALL) >= 150
    assert set(FEW) <= set(ALL)
    assert {case[0] for case in ALL} == set(FILES)


def test_a_few_damaged_states(make_args, runs, tmp_path):
    """Without record and with a rewritten manifest, nothing but reading the file shows that it is damaged."""
    refused = check(make_args, runs, tmp_path, FEW)
    assert set(refused) == {case for case in FEW if case[2] in ("without record", "record")}
    for case, message in refused.items():
        name = ".files.jsonl" if case[2] == "record" else case[0].split("/")[0]
        assert name in message, (case, message)


@pytest.mark.slow
def test_all_damaged_states(make_args, runs, tmp_path):
    """Every damage is found by manifest and record, and the run goes on from the checkpoint before.

    Where the record itself is damaged, the results in the folder are not known to be of the run any more.
    """
    refused = check(make_args, runs, tmp_path, [case for case in ALL if case[2] != "without record"])
    assert {case[2] for case in refused} == {"record"}
    assert all(".files.jsonl" in message for message in refused.values())


@pytest.mark.slow
def test_all_damaged_states_without_record(make_args, runs, tmp_path):
    """A file that cannot be read is refused by name.

    Left out are numbers that were changed, given a new manifest, and stand in a folder without a record: they can be
    read, and nothing is left by which to tell.
    """
    for case in [case for case in ALL if case[2] == "without record" and case[1] not in ("flip", "exchange")]:
        result = outcome(make_args, runs, tmp_path, case)
        if case[0] == "unet/config.json":  # not read: the network is that of the options
            assert result == "same bits", case
        else:
            assert case[0].split("/")[0] in result, case
