"""A command that has sub-commands: its help, and the answer to a name that is none of them.

What each command says of itself is in its own module.
"""

import click

from aap_hw.errors import closest


class WholeSentences(click.Group):
    """A command group that suggests the nearest name for a wrong one, and cuts no sentence of its help short."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sub-commands and their sentences, in the order that they are listed in."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        sentences = [(name, command.get_short_help_str(limit=1000)) for name, command in commands if command]
        with formatter.section("Commands"):
            formatter.write_dl(sentences)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command that is asked for, or fail with the nearest name there is."""
        names = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in names:
            ctx.fail(f"there is no sub-command '{args[0]}'{closest(args[0], names)}")
        return super().resolve_command(ctx, args)
