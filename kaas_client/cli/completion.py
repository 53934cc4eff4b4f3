"""``kaasctl completion``: the script that lets a shell complete its commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]

PROGRAM = "kaasctl"
COMPLETE_VARIABLE = f"_{PROGRAM.upper()}_COMPLETE"
"""Set by the script when it asks for completions."""


class Shell(StrEnum):
    """The shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print a shell's completion script. In bash: source <(kaasctl completion bash)."""
    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, shell=shell.value))
