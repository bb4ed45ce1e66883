"""Which channel groups the user allows to be cut: by shell patterns over their names, and by what they are.

A pattern that begins with ``kind:`` is one over kinds (`kinds`), as in ``kind:mlp``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from aap_hw.errors import UserError
from aap_hw.graph.channel_graph import ChannelGraph
from aap_hw.graph.groups.groups import ChannelGroup
from aap_hw.graph.groups.kinds import KINDS

KIND = "kind:"


def select(
    graph: ChannelGraph, only: Sequence[str] = (), skip: Sequence[str] = (), *, renormalised: bool | None = True
) -> ChannelGraph:
    """The same graph with all groups frozen that are not wanted; what was frozen stays so.

    Parameters
    ----------
    only
        Patterns of groups that may be cut; none means all of them.
    skip
        Patterns of groups that may not be, whatever `only` says.
    renormalised
        Whether channels that a norm is taken over may be. None leaves them alone as nothing is trained afterwards.

    Raises
    ------
    UserError
        If a pattern matches no group, one of `only` none that can be cut, or nothing is left that may be.
    """
    free = [group.name for group in graph.groups if group.frozen is None]
    for option, patterns in (("--only", only), ("--skip", skip)):
        for pattern in patterns:
            matched = [group for group in graph.groups if _matches(graph, group.name, pattern)]
            if not matched:
                raise UserError(f"{option} '{pattern}' matches no channel group; {_instead(graph, pattern)}")
            if option == "--only" and all(group.frozen for group in matched):
                raise UserError(
                    f"{option} '{pattern}' matches nothing that can be cut: '{matched[0].name}' {matched[0].frozen}"
                )
    reasons: dict[str, str] = {}
    for name in free:
        if only and not any(_matches(graph, name, pattern) for pattern in only):
            reasons[name] = f"is not among --only {' '.join(only)}"
        for pattern in skip:
            if _matches(graph, name, pattern):
                reasons[name] = f"is left alone by --skip {pattern}"
        if not renormalised and (sentence := graph.group(name).renormalised):
            left = "by --no-renormalised" if renormalised is False else "as nothing is trained; --renormalised cuts it"
            reasons[name] = f"{sentence} and left alone {left}"
    if free and len(reasons) == len(free):
        asked = [f"{option} '{pattern}'" for option, each in (("--only", only), ("--skip", skip)) for pattern in each]
        asked += ["--no-renormalised"] if renormalised is False else []
        if not asked:
            raise UserError(
                f"all that could be cut is normalised over, as '{free[0]}' is, and left alone as nothing is trained; "
                "add --renormalised, or let the network be trained"
            )
        raise UserError(
            f"nothing is left that may be cut with {' '.join(asked)}; 'aap-hw plan' without them lists the groups"
        )
    return graph.frozen(reasons, with_branches=True)


def require_whole_heads(graph: ChannelGraph, what: str) -> None:
    """Refuse a network, called ``what``, that was traced for whole heads and has none that can be cut.

    Raises
    ------
    UserError
        If it is one; it names an attention that has heads, and why these stay.
    """
    if graph.heads is None or graph.heads.axes:
        return
    path, reason = next(iter(graph.heads.left.items()), ("", ""))
    why = f"the attention '{path}' {reason}" if reason else "it has no attention with several heads"
    raise UserError(f"{what} has no whole heads that can be cut: {why}; leave --attention-cuts heads out")


def require_free_group(graph: ChannelGraph, what: str) -> None:
    """Refuse a network, called ``what``, of which nothing can be cut.

    Raises
    ------
    UserError
        If no group is free; the most frequent reason is named.
    """
    if not all(group.frozen for group in graph.groups):
        return
    alike: dict[str, list[ChannelGroup]] = {}
    for group in graph.groups:
        alike.setdefault(str(group.frozen).partition(" (")[0], []).append(group)
    most = max(alike.values(), key=len, default=[])
    reason = f"'{most[0].name}' {most[0].frozen}" if most else "it has no convolution and no linear layer"
    also = f"; the same holds for {len(most) - 1} of the other {len(graph.groups) - 1}" if len(most) > 1 else ""
    raise UserError(f"{what} has no channel group that may be cut: {reason}{also}")


def _matches(graph: ChannelGraph, name: str, pattern: str) -> bool:
    if pattern.startswith(KIND):
        return fnmatchcase(graph.kinds[name], pattern.removeprefix(KIND))
    return name == pattern or fnmatchcase(name, pattern)


def _instead(graph: ChannelGraph, pattern: str) -> str:
    """What there is to choose from."""
    if pattern.startswith(KIND):
        return f"the kinds of this network are {', '.join(kind for kind in KINDS if kind in graph.kinds.values())}"
    names = list(graph.widths)
    near = difflib.get_close_matches(pattern.strip("*"), names, n=3, cutoff=0.4) or names[:3]
    return f"the nearest {'is' if len(near) == 1 else 'are'} {', '.join(near)}"
