"""A trial cut shows whether the model's own code follows when its channels get fewer.

An exported program shows the value of a number but not where the code took it from, so where channels are reshaped,
taken apart or calculated with (`Labelling.doubtful`), only running the code with fewer channels tells. All groups are
cut a little, and what the cut model does is compared with what was predicted (`surprises`). What does not follow
freezes the channels that reach it, and the rest is tried again. If none that reaches it can be cut, its numbers count
other channels: the groups that are enough to surprise are looked for (`culprits`), and freeze alone. Nets without
doubtful nodes, without numbers of their own code and without checks of how many channels there are need no trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.activity import doing
from aap_hw.graph.cut.scaling import Rescaling
from aap_hw.graph.groups.groups import Grouping, find_groups
from aap_hw.graph.groups.widths import width_of_ids
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import explain, own_frames
from aap_hw.graph.trial.checks import checked_counts
from aap_hw.graph.trial.configs import value_of
from aap_hw.graph.trial.counted import (
    keep_padding,
    tie_equal_lengths,
    tie_equal_parts,
    tie_pieces_to_columns,
    tie_to_what_is_read,
)
from aap_hw.graph.trial.culprits import freeze_culprit
from aap_hw.graph.trial.literals import (
    Attribute,
    attributes_behind,
    counts_of_bare_norms,
    is_guessed,
    scale_attributes,
)
from aap_hw.graph.trial.roots import take_up
from aap_hw.graph.trial.surprises import NEW, Exporter, Settled, Surprise, Trials, values
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray
from aap_hw.graph.walk.noted import Literal
from aap_hw.graph.walk.rules.pieces import TAKEN_APART

# Each trial is an export; a model whose code holds more numbers than these find out is frozen wherever it may hold one.
TRIALS = 40
_NEW = "meets a new tensor whose length does not follow when channels are cut"
_RESHAPED = "is reshaped to lengths that do not follow when channels are cut"
_NUMBER = "meets a number of the model's code that is another one for fewer channels"
_MADE = "meets values that the model's code makes anew for fewer channels"
_ELSEWHERE = "is in a model that computes something else once it is cut"


def settle(
    labelling: Labelling, program: ExportedProgram, model: nn.Module, ran: nn.Module, export: Exporter
) -> Settled:
    """Groups of a labelled program, those frozen that a trial cut of the model shows to be wrong.

    Attributes are looked up in `ran`, a copy that has been run, as some are set by the first call. If after many trials
    something still does not come out as predicted, all that reaches a doubtful node is frozen; if the rest then does
    not, everything is.
    """
    trials = Trials(labelling, program, model, export)
    known: tuple[Settled, Surprise | None] | None = None
    while trials.made < TRIALS:
        with doing(f"tracing the network: trial cut {trials.made + 1} of at most {TRIALS}"):
            settled, surprise = known or _tried(labelling, trials, ran)
            known = None
            if surprise is None:
                return settled
            if blamed := _blamed(labelling, settled.grouping, surprise):
                known = _tried_when_tied(labelling, settled.grouping, trials, surprise, blamed, ran)
                if known is None:
                    for node in blamed:
                        _freeze_at(labelling, node, is_number=surprise.is_number and surprise.nodes[0] in blamed)
            else:
                freeze_culprit(labelling, settled, trials, surprise)
    for node in labelling.doubtful:
        _freeze_at(labelling, node)
    settled = _with_attributes(labelling, ran)
    surprise = trials.first_surprise(settled)
    if surprise is not None:
        for ids in labelling.axes.values():
            labelling.ties.freeze(ids, explain(_ELSEWHERE, surprise.nodes[0]))
        settled = _with_attributes(labelling, ran)
    return settled


def _tried(labelling: Labelling, trials: Trials, ran: nn.Module) -> tuple[Settled, Surprise | None]:
    """Groups, and what surprises when they are cut; not the roots of widths that weights can make up for."""
    while True:
        settled = _with_attributes(labelling, ran)
        surprise = trials.first_surprise(settled)
        if surprise is None or surprise.root is None or not take_up(labelling, surprise.root):
            return settled, surprise


def _tried_when_tied(
    labelling: Labelling,
    grouping: Grouping,
    trials: Trials,
    surprise: Surprise,
    blamed: Sequence[Node],
    ran: nn.Module,
) -> tuple[Settled, Surprise | None] | None:
    """What a trial says once more channels are cut together, if nodes come out as predicted then; None if not.

    Those of views with others that are as long, or with the ones that the layers before them read, the rows of weights
    that are taken apart with their columns, and the halves or thirds that slices take. If no node can be blamed for the
    next surprise, it must come later in the program than these nodes and than the last surprise, which else is the same
    one: what is tied to frozen channels is blamed for nothing.
    """
    before = labelling.mark()
    ways: tuple[Callable[[], bool], ...] = (
        lambda: tie_equal_lengths(labelling, grouping, blamed, nearest=True),
        lambda: tie_equal_lengths(labelling, grouping, blamed, nearest=False),
        lambda: tie_to_what_is_read(labelling, grouping, blamed) or tie_pieces_to_columns(labelling, blamed),
        lambda: tie_equal_parts(labelling, blamed),
        lambda: _take_for_chance(labelling, grouping, blamed, ran),
        lambda: keep_padding(labelling, blamed),
    )
    for is_tied in ways:
        if is_tied():
            settled, found = _tried(labelling, trials, ran)
            others = [] if found is None else _blamed(labelling, settled.grouping, found)
            if found is None or (others and not set(others) & set(blamed)):
                return settled, found
            if not others and min(found.nodes) > max(*surprise.nodes, *blamed):
                return settled, found
        labelling.back_to(before)
    return None


def _take_for_chance(labelling: Labelling, grouping: Grouping, blamed: Sequence[Node], ran: nn.Module) -> bool:
    """Look for no attribute behind numbers of pieces in the lines of nodes any more; whether there was one."""
    lines = {line for node in blamed if (line := next(own_frames(node), None))}
    pieces = [each for each in labelling.literals if each.dim is None and next(own_frames(each.node), None) in lines]
    found = {each.node: None for each in pieces if attributes_behind(each, ran, grouping)}
    is_new = bool(found.keys() - labelling.by_chance.keys())
    labelling.by_chance |= found
    return is_new


def _with_attributes(labelling: Labelling, ran: nn.Module) -> Settled:
    """Group, and look for the attributes that numbers come from, until none counts channels of several fates.

    A number that no attribute explains may be one that the code asks a tensor for: the trial tells.
    """
    while True:
        grouping = find_groups(labelling)
        explained = [
            (literal, () if literal.node in labelling.by_chance else attributes_behind(literal, ran, grouping))
            for literal in labelling.literals
        ]
        if not _tied_by_one_number(labelling, explained, ran):
            checked = {(a.module, a.name): a for a in checked_counts(labelling, ran, grouping)}
            found = checked | {(a.module, a.name): a for a in counts_of_bare_norms(labelling, ran, grouping)}
            found |= {(a.module, a.name): a for _, each in explained for a in each if any(c.terms for c in a.counts)}
            divided = [(each, width_of_ids(each.ids, grouping)) for each in labelling.divided]
            rescalings = tuple(Rescaling(each.rows, width) for each, width in divided if width.terms)
            scales = [scale for each, width in divided if width.terms for scale in scale_attributes(each, width, ran)]
            guesses = any(is_guessed(literal, attributes, ran, grouping) for literal, attributes in explained)
            return Settled(grouping, (*found.values(), *scales), rescalings, guesses, bool(checked))


def _tied_by_one_number(
    labelling: Labelling, explained: Sequence[tuple[Literal, tuple[Attribute, ...]]], ran: nn.Module
) -> bool:
    """Whether one attribute counts several sets of channels, which have to be cut together, then."""
    first: dict[tuple[str, str], tuple[Attribute, IntArray]] = {}
    is_new = False
    for literal, attributes in explained:
        for attribute in attributes:
            value = value_of(ran.get_submodule(attribute.module), attribute.name)
            counted = next((ids for number, ids in literal.counts if number == value), None)
            if counted is None:
                continue
            other, ids = first.setdefault((attribute.module, attribute.name), (attribute, counted))
            if other.counts != attribute.counts:
                labelling.ties.tie(ids, counted, explain(TAKEN_APART, literal.node))
                is_new = True
    return is_new


def _freeze_at(labelling: Labelling, node: Node, is_number: bool = False) -> None:
    is_literal = any(literal.node is node and literal.dim is None for literal in labelling.literals)
    is_made = any(labelling.parameter_name(source) in labelling.kept for source in node.all_input_nodes)
    is_number = is_number or Call(node).pointwise or node in labelling.numbers
    sentence = TAKEN_APART if is_literal else _MADE if is_made else _NUMBER if is_number else _RESHAPED
    reason = explain(_NEW if Call(node).name in NEW and not is_number else sentence, node)
    for source in _around(labelling, node):
        for part in labelling.all_labels(source):
            for labels in part:
                labelling.ties.freeze(labels.ids, reason)


def _around(labelling: Labelling, node: Node) -> list[Node]:
    """A node and what it reads; of a new tensor, what it meets, unless its own labels say that."""
    reads = [] if Call(node).name in NEW else node.all_input_nodes
    if not reads and not any(labels.dims for part in labelling.all_labels(node) for labels in part):
        reads = [source for user in node.users for source in (user, *user.all_input_nodes)]
    return [node, *reads]


def _blamed(labelling: Labelling, grouping: Grouping, surprise: Surprise) -> list[Node]:
    """The nodes that a trial finds fault with: a number or the nearest doubtful ones, and those in the same lines.

    None if their channels are frozen already, as a number then counts other channels.
    """
    may_be = [*labelling.doubtful, *labelling.numbers]
    doubtful, before = set(labelling.doubtful), list(surprise.nodes)
    doubtful.update(before if len(before) == 1 and before[0] in labelling.numbers else ())
    seen = set(before)
    while before and not doubtful.intersection(before):  # backwards through the program
        before = [node for after in before for node in after.all_input_nodes if node not in seen]
        seen.update(before)
    # An error is known by its line alone. What comes first in it is tried first, and the others after it.
    free = [node for node in before if node in doubtful and _is_free(labelling, grouping, node)]
    found = [node for node in may_be if node in free][:1]
    places = {_place(node) for node in found if next(own_frames(node), None)}
    blamed = [node for node in may_be if node in found or _place(node) in places]
    return blamed if any(_is_free(labelling, grouping, node) for node in blamed) else []


def _place(node: Node) -> tuple[object, ...]:
    """What a call has in common with the same call in another block: its line, what it calls, and how many axes."""
    return next(own_frames(node), None), node.target, tuple(len(value.shape) for value in values(node))


def _is_free(labelling: Labelling, grouping: Grouping, node: Node) -> bool:
    """Whether a channel that can be cut reaches a node."""
    parts = [part for source in _around(labelling, node) for part in labelling.all_labels(source)]
    return any(width_of_ids(labels.ids.ravel(), grouping).terms for part in parts for labels in part)
