"""Help of a command that has sub-commands. What each command says of itself is in its own module."""

import click


class WholeSentences(click.Group):
    """A command group whose help has the first sentence of each sub-command to its end, where click's cuts it off."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sub-commands and their sentences, in the order that they are listed in."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        sentences = [(name, command.get_short_help_str(limit=1000)) for name, command in commands if command]
        with formatter.section("Commands"):
            formatter.write_dl(sentences)
