"""The charts of runs, one a module. Pure: stories in, charts out."""

from __future__ import annotations

from collections.abc import Sequence

from aap_hw.compile.keys.key import KernelKey
from aap_hw.report.chart import Chart
from aap_hw.report.charts.attention import attention_chart
from aap_hw.report.charts.predictions import predictions_chart
from aap_hw.report.charts.shares import shares_chart
from aap_hw.report.charts.stairs import Use, stairs_chart
from aap_hw.report.charts.timeline import time_chart
from aap_hw.report.charts.trade import trade_chart
from aap_hw.report.charts.widths import widths_chart
from aap_hw.report.story import Story


def charts_of(story: Story) -> list[Chart]:
    """Every chart of one run."""
    uses = [
        Use(
            f"{layer}: {dense.latency_us:.4g} µs → removed"
            if pruned is None
            else f"{layer}: {dense.latency_us:.4g} → {pruned.latency_us:.4g} µs",
            KernelKey.parse(dense.key),
            (dense.width_in, dense.width_out),
            None if pruned is None else (pruned.width_in, pruned.width_out),
        )
        for layer, dense, pruned in story.kernels
    ]
    found = [
        trade_chart([story]),
        widths_chart(story),
        stairs_chart(story.table, uses),
        predictions_chart([story]),
        attention_chart(story),
        time_chart([story]),
    ]
    return [chart for chart in found if chart is not None]


def comparison_of(stories: Sequence[Story]) -> list[Chart]:
    """The charts that several runs share."""
    found = [trade_chart(stories), shares_chart(stories), predictions_chart(stories), time_chart(stories)]
    return [chart for chart in found if chart is not None]
