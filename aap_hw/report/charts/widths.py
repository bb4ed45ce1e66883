"""Width of every channel group before and after, and why some are as they were."""

from __future__ import annotations

from aap_hw.report.chart import DENSE, KEPT, MUTED, Chart, View, axis, group_axis, list_height
from aap_hw.report.story import Group, Story


def widths_chart(story: Story) -> Chart:
    """Width of every group before and after."""
    names = [group.name for group in story.groups]
    frozen = [group for group in story.groups if group.frozen]
    notes = [f"{_kind_text(g)}{g.kept} of {g.width} kept ({g.kept / g.width:.0%}){_note_text(g)}" for g in story.groups]
    common = {"type": "bar", "orientation": "h", "y": names, "customdata": notes}
    hover = "%{y}<br>%{customdata}<extra></extra>"
    kept, total = sum(g.kept for g in story.groups), sum(g.width for g in story.groups)
    view = View(
        label="",
        summary=f"{len(names)} channel groups, {len(frozen)} of them frozen; {kept:,} of {total:,} channels kept.",
        traces=[
            {**common, "name": "unpruned", "x": [g.width for g in story.groups], "hovertemplate": hover, "width": 0.8,
             "marker": {"color": DENSE, "opacity": 0.45}},
            *(
                {**common, "name": name, "x": [g.kept if bool(g.frozen) == is_frozen else None for g in story.groups],
                 "hovertemplate": hover, "width": 0.5, "marker": {"color": color}}
                for name, is_frozen, color in (("kept", False, KEPT), ("frozen", True, MUTED))
            ),
        ],
        layout={
            "barmode": "overlay",
            "xaxis": axis("channels", rangemode="tozero"),
            "yaxis": group_axis(names),
        },
        headings=("group", "kind", "unpruned", "kept", "share", "note"),
        rows=[(g.name, g.kind, g.width, g.kept, f"{g.kept / g.width:.0%}", _note(g)) for g in story.groups],
    )  # fmt: skip
    note = "Channels of each group before and after, with their kind. Grey groups are frozen, for the reason given."
    return Chart("widths", "Widths before and after", note, [view], height=list_height(len(names)))


def _kind_text(group: Group) -> str:
    return f"{group.kind}: " if group.kind else ""


def _note(group: Group) -> str:
    """As `plan` has it beside a group."""
    if group.frozen:
        return f"frozen: {group.frozen}" + (f"; in {group.precision}" if group.precision else "")
    if not group.kept:
        return "branch removed"
    in_what = [f"in {group.precision}"] if group.precision else []
    mixed = [f"renormalised: {group.renormalised}"] if group.renormalised and group.kept < group.width else []
    return "; ".join([*in_what, *mixed])


def _note_text(group: Group) -> str:
    return f"<br>{_wrapped(note)}" if (note := _note(group)) else ""


def _wrapped(text: str, width: int = 60) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)
