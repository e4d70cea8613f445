"""Starting `diffusers-sde`: answers that need no network are given without loading torch."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from diffusers_sde.sde import corrector_names, predictor_names
from diffusers_sde_cli.main import main
from diffusers_sde_cli.options import CORRECTORS, PREDICTORS


def names_of_commands(group: click.Group, context: click.Context, *before: str) -> list[list[str]]:
    """Every command as the words that name it, groups included."""
    found = [list(before)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            found += names_of_commands(command, context, *before, name)
        else:
            found.append([*before, name])
    return found


COMMANDS = names_of_commands(main, click.Context(main))


def test_every_command_answers_help_and_wrong_options_without_torch_and_diffusers():
    """One child process for all: what any of them loads stays loaded."""
    script = f"""
import sys
from click.testing import CliRunner
from diffusers_sde_cli.main import main
for words in {COMMANDS!r}:
    for option, expected in (("--help", 0), ("--no-such-option", 2)):
        result = CliRunner().invoke(main, [*words, option])
        assert result.exit_code == expected, (words, option, result.output)
        assert ("Usage: " in result.output), (words, option, result.output)
assert CliRunner().invoke(main, ["--version"]).exit_code == 0
print(sorted({{"torch", "diffusers", "numpy", "PIL"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_an_unknown_command_is_refused():
    result = CliRunner().invoke(main, ["smaple"])
    assert result.exit_code == 2
    assert "No such command 'smaple'" in result.output


@pytest.mark.parametrize(("written", "known"), [(PREDICTORS, predictor_names), (CORRECTORS, corrector_names)])
def test_the_names_that_are_written_out_are_those_of_the_library(written, known):
    assert sorted(written) == sorted(known())
