"""A report says what the run's files say, labels what nobody measured, and opens in a browser that has no network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aap_hw.errors import UserError
from aap_hw.lut.provenance import Estimate
from aap_hw.lut.table import LatencyTable
from aap_hw.policy import Budget
from aap_hw.prune.baseline import plan_once
from aap_hw.prune.job import EMBEDDED, Job, Limit, start
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings, Task
from aap_hw.prune.unreachable import Unreachable
from aap_hw.report.chart import Page
from aap_hw.report.charts import charts_of
from aap_hw.report.charts.predictions import predictions_chart
from aap_hw.report.page import html_of
from aap_hw.report.story import Story, read_story
from aap_hw.report.writing import page_of_run, page_of_runs, write_report
from aap_hw.train import data
from aap_hw.train.settings import TrainSettings
from tests.needs import needs_browser
from tests.report.browser import open_page
from tests.synthetic import ESTIMATE, ORIGIN, few_images, resnet20, share_resnet20, table

SETTINGS = PruneSettings(
    rounds=2, calibration_images=8, training=TrainSettings(epochs=1, batch_size=32, learning_rate=0.01)
)
CHARTS = ["trade", "widths", "stairs", "predictions", "attention", "time"]
# Nothing of these runs was measured, so that there is no prediction to compare.
COMPARED = ["trade", "shares", "time"]

# Draws every picture of every chart in both themes, points at a part of each, and writes what there is into the page.
LOOKS = """
const pointedAt = (chart) => document.getElementById(chart.id).data.flatMap((trace, curveNumber) => {
  const pointNumber = (trace.x ?? trace.y).findIndex((value) => value !== null);
  if (trace.hoverinfo === "skip" || pointNumber < 0) return [];
  Plotly.Fx.hover(chart.id, [{ curveNumber, pointNumber }]);
  return [document.querySelector(`#${chart.id} .hoverlayer`).textContent];
});
addEventListener("load", async () => {
  const found = {};
  for (const theme of ["light", "dark"]) {
    setTheme(theme);
    await drawAll();
    for (const chart of charts) {
      const views = chart.views.map((_, i) => i).filter((i) => i < 3 || i === chart.views.length - 1);
      for (const i of views) {
        const choice = document.getElementById(chart.id + "-view");
        if (choice) { choice.value = i; choice.dispatchEvent(new Event("change")); await draw(chart); }
        const shapes = document.querySelectorAll(`#${chart.id} .cartesianlayer .trace path`).length;
        const rows = document.querySelectorAll(`#${chart.id}-table tbody tr`).length;
        const said = document.getElementById(chart.id + "-summary").textContent;
        const fits = document.documentElement.scrollWidth <= innerWidth;
        found[[theme, chart.id, i]] = { shapes, rows, said, fits, hovers: pointedAt(chart) };
      }
    }
  }
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run that was trained, one that was not, and one of an emulated device."""
    folder = tmp_path_factory.mktemp("runs")
    few, latencies = few_images(), table()
    few = replace(few, train_images=few.train_images[:64], train_labels=few.train_labels[:64])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_embedded", lambda: few)
        share_resnet20(patch)
        start(Job(ORIGIN, EMBEDDED, {"latency": Limit(0.6, True)}, settings=SETTINGS), latencies, folder / "trained")
        start(Job(ORIGIN, None, {"latency": Limit(0.7, True)}, settings=SETTINGS), latencies, folder / "cut only")
        emulated = Job(ORIGIN, None, {"latency": Limit(0.8, True)}, settings=SETTINGS, allow_emulated=True)
        start(emulated, table(provenance="emulated"), folder / "emulated")
    return [folder / "trained", folder / "cut only", folder / "emulated"]


def looked_at(dom: str) -> dict[str, Any]:
    text = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert text is not None, dom[-2000:]
    found: dict[str, Any] = json.loads(text[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return found


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("several", "width"), [(False, 1200), (False, 500), (True, 1200)])
def test_every_chart_is_there_in_both_themes_and_nothing_is_complained_about(
    runs: list[Path], tmp_path: Path, several: bool, width: int
) -> None:
    page = write_report(runs if several else runs[:1], tmp_path / "page.html")
    opened = open_page(page, LOOKS, width=width)
    assert opened.console == []
    found = looked_at(opened.dom)
    assert {name.split(",")[1] for name in found} == set(COMPARED if several else CHARTS)
    for name, picture in found.items():
        assert picture["shapes"] > 0, name
        assert picture["rows"] > 0, name
        assert len(picture["said"]) > 10, name
        assert picture["fits"], f"{name} makes the page scroll sideways"
        assert any(picture["hovers"]), name
        assert not re.search(r"\d{7}|\.0*[1-9]\d{4}|NaN|undefined", str(picture["hovers"])), name


@needs_browser
@pytest.mark.slow
def test_theme_is_the_one_that_the_reader_prefers(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs[1:2], tmp_path / "page.html")
    for dark, theme in ((False, "light"), (True, "dark")):
        assert f'data-theme="{theme}"' in open_page(page, dark=dark).dom


def test_every_picture_and_row_has_a_name_for_a_screen_reader(runs: list[Path], tmp_path: Path) -> None:
    text = write_report(runs[:1], tmp_path / "page.html").read_text("utf-8")
    named = re.findall(r'role="img" aria-labelledby="(\S+)" aria-describedby="(\S+)"', text)
    assert len(named) == len(CHARTS)
    for name in (name for pair in named for name in pair):
        assert f'id="{name}"' in text
    assert re.findall(r'<th scope="row">(.*?)</th>', text)[0] == "latency, ms, predicted"


def test_page_loads_nothing_from_elsewhere(runs: list[Path], tmp_path: Path) -> None:
    text = write_report(runs[:1], tmp_path / "page.html").read_text("utf-8")
    own = text.split("<script>", 1)[0] + text.rsplit("<script>", 1)[1]
    assert "default-src 'none'" in own
    assert re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", own) == []
    assert "http:" not in own
    assert "https:" not in own


def test_charts_show_the_figures_of_the_run(runs: list[Path]) -> None:
    folder = runs[0]
    summary = json.loads((folder / "summary.json").read_text())
    log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    charts = {chart.id: chart for chart in charts_of(read_story(folder))}

    ((unpruned, *rounds),) = [charts["trade"].views[0].rows]
    assert unpruned == ("unpruned", summary["dense_ms"], "measured", summary["accuracy_dense"])
    told = [event for event in log if event["event"] == "round"]
    assert [(row[1], row[2], row[3]) for row in rounds] == [
        (e["predicted_ms"], "predicted", e["accuracy"]) for e in told
    ]

    kept = {name: len(channels) for name, channels in RunFolder(folder).load().kept.items()}
    kinds = resnet20()[1].kinds
    assert {row[1] for row in charts["widths"].views[0].rows} == {"stream", "inner", "output"}
    for name, kind, width, left, *_ in charts["widths"].views[0].rows:
        assert kind == kinds[name]
        assert width == resnet20()[2].dense[name]
        assert left == kept.get(name, width)

    # A cut keeps the channels with the highest scores.
    for view in charts["attention"].views[1:]:
        scores = {kind: [row[1] for row in view.rows if row[2] == kind] for kind in ("kept", "cut")}
        assert min(scores["kept"]) >= max(scores["cut"], default=0)

    epochs = [row for row in charts["time"].views[0].rows if row[0] == "epoch"]
    assert len(epochs) == len([event for event in log if event["event"] == "epoch"]) == 2


def test_stairs_hold_the_points_of_the_table_and_mark_the_widths_in_use(runs: list[Path]) -> None:
    story = read_story(runs[0])
    (stairs,) = [chart for chart in charts_of(story) if chart.id == "stairs"]
    latencies = table()
    for (layer, dense, pruned), view in zip(_slowest_first(story.kernels, latencies), stairs.views, strict=True):
        assert view.label.startswith(f"{layer}: ")
        (key,) = [key for key in latencies.points if str(key) == dense.key]
        assert {(row[0], row[1]): row[2] for row in view.rows} == {
            widths: point.latency_us for widths, point in latencies.points[key].items()
        }
        marks = {trace["name"]: (trace["x"][0], trace["y"][0]) for trace in view.traces if trace["mode"] == "markers"}
        assert marks["chosen"][1] == pruned.latency_us
        assert marks["chosen"][0] in (pruned.width_out, pruned.width_in)


def test_run_that_removed_branches_is_told_with_the_kernels_that_are_gone(quick_baseline: None, tmp_path: Path) -> None:
    task = Task(ORIGIN, table(), few_images())
    with pytest.raises(Unreachable) as refused:
        plan_once(task, [Budget.parse("5%")], replace(SETTINGS, depth=False))
    run = tmp_path / "removed"
    start(Job(ORIGIN, None, {"latency": Limit(0.9 * refused.value.smallest, False)}, settings=SETTINGS), table(), run)
    removed = {name.removesuffix(".conv1") for name, kept in RunFolder(run).load().kept.items() if not kept}
    assert removed
    story = read_story(run)
    gone = [layer for layer, _, pruned in story.kernels if pruned is None]
    assert gone == [name for name, *_ in story.kernels if name.rpartition(".conv")[0] in removed]
    for layer, dense, pruned in story.kernels:
        assert pruned is None or pruned.kernel == dense.kernel, layer
    charts = {chart.id: chart for chart in charts_of(story)}
    told = [view.label.split(":")[0] for view in charts["stairs"].views if view.label.endswith("removed")]
    assert sorted(told) == sorted(gone)
    assert "nan" not in html_of(page_of_run(story)).rsplit("<main>", 1)[1].split("<script>")[0]
    assert write_report([run]).exists()


def test_plans_that_were_measured_stand_beside_their_predictions(runs: list[Path]) -> None:
    story = read_story(runs[1])
    tried = {"event": "measured", "time": 0.0, "attempt": 1, "predicted_ms": 0.8, "measured_ms": 1.0}
    story = replace(story, events=(*story.events, tried))
    for stories in ([story], [story, read_story(runs[0])]):
        chart = predictions_chart(stories)
        assert chart is not None
        (row,) = [row for row in chart.views[0].rows if "attempt 1" in str(row[0])]
        assert row[1:] == (0.8, 1.0, "-20.0%")


def _slowest_first(kernels: list[Any], latencies: Any) -> list[Any]:
    shown = [each for each in kernels if len(next(p for k, p in latencies.points.items() if str(k) == each[1].key)) > 1]
    return sorted(shown, key=lambda each: -each[1].latency_us)


def looks_measured(page: Page) -> list[str]:
    """What of a page that a person can see calls something measured."""

    def texts(value: object) -> Iterator[str]:
        match value:
            case str():
                yield value
            case Mapping():
                for name, inner in value.items():
                    yield from texts(inner) if name not in ("id", "type") else ()
            case Sequence():
                for inner in value:
                    yield from texts(inner)

    seen = [page.title, page.subtitle, *page.columns, page.facts, page.notes, page.footer]
    seen += [[chart.title, chart.note, chart.as_json()] for chart in page.charts]
    return [text for text in texts(seen) if re.search(r"(?<!not )measured", text)]


def having_tried_plans(story: Story) -> Story:
    """An emulated run as if its emulator had been timed by whatever times things."""
    tried = {"event": "measured", "time": 0.0, "attempt": 1, "predicted_ms": 0.8, "measured_ms": 1.0}
    figures = {**story.rounds[0], "measured_ms": 1.0}
    entry = story.table.validation[0]
    known = LatencyTable(story.table.device, story.table.measurement, story.table.points)
    known.validation += [entry, replace(entry, plan="random0-0"), replace(entry, plan="random0-1")]
    summary = {**story.summary, "dense_is_measured": True}
    return replace(story, summary=summary, rounds=(figures,), events=(*story.events, tried), table=known)


def test_nothing_of_an_emulated_run_is_called_measured(runs: list[Path]) -> None:
    page = page_of_run(having_tried_plans(read_story(runs[2])))
    assert {chart.id for chart in page.charts} >= {"trade", "predictions", "stairs"}
    assert looks_measured(page) == []
    assert "emulated: no latency of the device" in str(page.facts)
    assert "Predicted against emulated" in [chart.title for chart in page.charts]


def test_what_deploying_an_emulated_run_measured_is_called_measured_and_nothing_else(runs: list[Path]) -> None:
    story = having_tried_plans(read_story(runs[2]))
    deployed = replace(story, summary={**story.summary, "dense_ms": 9.99, "pruned_ms": 7.77, "budget_ms": 7.992})
    page = page_of_run(deployed)
    assert ("latency, ms, measured", ["9.990", "7.770", "78%"]) in page.facts
    assert (
        "time, ms, emulated: no latency of the device",
        ["", f"{story.summary['predicted_ms']:.3f}", ""],
    ) in page.facts
    trade = next(chart for chart in page.charts if chart.id == "trade")
    assert {row[1]: row[2] for row in trade.views[0].rows} == {9.99: "measured", 7.77: "measured"}
    known = {
        page.subtitle: "The budget of 7.992 ms is met: 7.770 ms measured.",
        "latency, ms, measured": "",
        "measured": "",
        trade.views[0].summary: "unpruned 9.99 ms measured and 100.00 %, pruned 7.77 ms measured",
        trade.note: "Filled marks are measured latencies",
        page.notes[0]: "not measured on the device.* the pruned network was timed on the device afterwards: only that",
    }
    for text in looks_measured(page):
        assert re.search(known[text], text), text
    assert "Predicted against emulated" in [chart.title for chart in page.charts]
    predicted = f"{story.summary['predicted_ms']:.3f} ms predicted from emulated latencies"
    assert dict(page_of_runs([deployed, story]).facts)["pruned"] == ["7.770 ms measured", predicted]


def test_nothing_of_an_estimated_run_is_called_measured_or_a_latency_of_the_device(runs: list[Path]) -> None:
    emulated = read_story(runs[2])
    device, how = {**emulated.table.device, "provenance": "estimated"}, emulated.table.measurement
    known = LatencyTable(
        device, {**ESTIMATE, "granularity": how["granularity"], "at_most": how["at_most"]}, emulated.table.points
    )
    estimate = Estimate.of(known)
    assert estimate is not None
    summary = {**emulated.summary, "provenance": "estimated", "dense_is_measured": False}
    summary["estimate"] = estimate.as_json()
    story = replace(emulated, table=known, summary=summary)
    page = page_of_run(story)
    assert looks_measured(page) == []
    assert "time, ms, estimated: no latency of the device" in dict(page.facts)
    assert estimate.sentence() in page.notes[0]
    trade = next(chart for chart in page.charts if chart.id == "trade")
    assert {row[2] for row in trade.views[0].rows} == {"predicted from estimated latencies"}
    assert trade.note.startswith("All latencies are predicted from estimated latencies")
    assert re.fullmatch(
        r"\d\.\d{3} ms predicted from estimated .*", dict(page_of_runs([story, emulated]).facts)["unpruned"][0]
    )
    assert estimate.sentence() in html_of(page)


def test_latencies_that_nobody_measured_are_labelled(runs: list[Path]) -> None:
    page = page_of_run(read_story(runs[2]))
    assert any("emulated, not measured on the device" in note for note in page.notes)
    rows = page.charts[0].views[0].rows
    assert all("emulated" in str(row[2]) for row in rows), rows
    assert "emulated" in html_of(page).split("<main>")[1].split("<section")[1]
    assert looks_measured(page) == []
    compared = page_of_runs([read_story(run) for run in runs])
    assert any(note.startswith("emulated: the latencies of this run come from a table") for note in compared.notes)


def test_names_cannot_end_the_script_or_become_elements(tmp_path: Path, runs: list[Path]) -> None:
    story = read_story(runs[1])
    hostile = replace(story, summary={**story.summary, "model": "</script><img src=x>"})
    text = html_of(page_of_run(hostile))
    assert "<img src=x>" not in text
    assert isinstance(page_of_run(hostile), Page)


def test_default_files_are_in_the_run_and_beside_the_runs(runs: list[Path]) -> None:
    assert write_report(runs[1:2]) == runs[1] / "report.html"
    assert write_report(runs[1:]) == runs[1].parent / "comparison.html"


def test_what_cannot_be_reported_on_is_one_sentence(
    aap_hw: Callable[..., Any], runs: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs[1], copy, ignore=shutil.ignore_patterns("*.html"))
    with pytest.raises(UserError, match=r"there is no run folder .*nowhere; 'aap-hw prune' makes one"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="a run is given twice"):
        write_report([copy, copy])
    for file, content in (
        ("journal.jsonl", "{}\n"),
        ("run.json", "{}"),
        ("summary.json", "[]"),
        ("summary.json", (copy / "summary.json").read_text().replace('"dense_ms": ', '"dense_ms": "fast", "was": ')),
        ("summary.json", (copy / "summary.json").read_text().replace('"retrained"', '"was"')),
        ("events.jsonl", "x\n"),
    ):
        before = (copy / file).read_text()
        (copy / file).write_text(content)
        with pytest.raises(UserError, match=r"is damaged|is not valid at") as refused:
            write_report([copy])
        assert "\n" not in str(refused.value)
        (copy / file).write_text(before)
    (copy / "run.json").unlink()
    outcome = aap_hw("report", str(copy))
    assert outcome.code == 2
    assert "holds no finished run; 'aap-hw prune --resume" in outcome.err
    assert not (copy / "report.html").exists()


def test_command_says_where_the_report_is(aap_hw: Callable[..., Any], runs: list[Path], tmp_path: Path) -> None:
    outcome = aap_hw("report", str(runs[1]), "--out", str(tmp_path / "here.html"))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"report: {tmp_path}/here.html; open it in a browser\n"
    assert (tmp_path / "here.html").exists()
