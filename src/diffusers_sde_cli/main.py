"""The group of all commands."""

import importlib

import click


class LazyGroup(click.Group):
    """Group whose commands are imported when one of them is asked for.

    Args:
        modules: module of this package for each name of a command. The command's object in it has the same name, with
            underscores for hyphens.
    """

    def __init__(self, *args, modules: dict[str, str], **kwargs):
        super().__init__(*args, **kwargs)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        module = importlib.import_module(f"{__package__}.{self.modules[cmd_name]}")
        return getattr(module, cmd_name.replace("-", "_"))


@click.group(
    cls=LazyGroup,
    modules={
        "sample": "sample",
        "inpaint": "conditional",
        "colorize": "conditional",
        "class-conditional": "conditional",
        "restore": "conditional",
        "edit": "conditional",
        "likelihood": "likelihood",
        "evaluate": "evaluate",
        "stats": "stats",
        "suggest": "suggest",
        "convert": "convert",
    },
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="diffusers-sde", prog_name="diffusers-sde")
def main() -> None:
    """Score-based generative modelling through SDEs, on diffusers."""
