"""Networks of one construct each; the files say of which kind, the classes of which."""

from tests.graph.constructs import checks, filled, gates, layers, padded, pieces, places, shapes, sources, tables
from tests.graph.constructs.base import Construct

CONSTRUCTS: dict[str, type[Construct]] = {
    name: value
    for module in (layers, gates, pieces, places, shapes, sources, tables, filled, padded, checks)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Construct) and value is not Construct
}

__all__ = ["CONSTRUCTS", "Construct"]
