"""`mergewise completion`: the script that completes commands in a shell."""

from __future__ import annotations

import click

from mergewise.cli._options import our_command
from mergewise.cli._output import Output


@our_command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(out: Output, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(mergewise completion bash)" in ~/.bashrc
    zsh:  eval "$(mergewise completion zsh)" in ~/.zshrc
    fish: mergewise completion fish > ~/.config/fish/completions/mergewise.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "mergewise", "_MERGEWISE_COMPLETE").source())
