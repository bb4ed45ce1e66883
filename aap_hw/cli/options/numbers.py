"""Numbers within limits. What is none is called so, where click's types call it 'not a valid float range'."""

import click


class Whole(click.IntRange):
    """A whole number within limits."""

    name = "integer"


class Number(click.FloatRange):
    """A number within limits."""

    name = "number"
