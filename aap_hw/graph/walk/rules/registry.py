"""The table of rules: how labels pass through each family of ops. Adding an op is adding one function.

A rule reads the labels of what goes in, ties or freezes atoms, and returns the labels of what comes out. A
rule that meets a case it does not cover returns ``state.not_understood(call)``, which freezes all that went
in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from aap_hw.graph.program.call import Call
from aap_hw.graph.walk.labels import Labels
from aap_hw.registry import Registry

if TYPE_CHECKING:
    from aap_hw.graph.walk.labelling import Labelling

Result: TypeAlias = Labels | tuple[Labels, ...] | None
Rule: TypeAlias = "Callable[[Labelling, Call], Result]"

RULES: Registry[Rule] = Registry()
"""Rule by op name (see `Call.name`)."""

rule = RULES.register
