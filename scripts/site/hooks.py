"""What the documentation site has besides docs/: the README, examples, a page for each command, and the API.

MkDocs calls ``on_config``, ``on_files`` and ``on_page_markdown``. Links are rewritten from where files are in the
repository to where they are on the site, and the files that they lead to are taken along.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import aap_hw
from aap_hw.cli.main import COMMANDS, group

ROOT = Path(__file__).parent.parent.parent
# Pages at the top of the repository, besides the README.
AT_THE_TOP = ("CONTRIBUTING.md", "CHANGELOG.md")
# Pages that have nearly every word: a search finds what explains it before them.
LATE_IN_SEARCH = {"DECISIONS.md": 0.1, "CHANGELOG.md": 0.1}
SEARCH = "search.js"
# Relative targets of Markdown's links and pictures, and of HTML's.
LINK = re.compile(r"""(?P<before>\]\(|(?:src|srcset|href)=")(?P<target>(?![a-z]+:|\#|/)[^)\#"\s]+)""")
# A picture for each theme: GitHub takes the one of the reader's system, the site the one of its own switch.
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">'
    r'\s*<img (?P<alt>alt="[^"]+") src="(?P<light>[^"]+)">\s*</picture>'
)
# What the functions of the API return and hand to callbacks.
RESULTS = (
    "aap_hw.api.Profile",
    "aap_hw.lut.progress.Progress",
    "aap_hw.api.packing.Unpacked",
    "aap_hw.pack.folder.Packed",
    "aap_hw.prune.proposal.Proposal",
    "aap_hw.prune.curve.CurvePoint",
    "aap_hw.prune.planning.Plan",
    "aap_hw.prune.events.Event",
    "aap_hw.prune.job.Pruned",
    "aap_hw.prune.run.PrunedNetwork",
    "aap_hw.deploy.deploying.Deployment",
    "aap_hw.device.timing.Timing",
    "aap_hw.lut.table.LatencyTable",
    "aap_hw.graph.groups.groups.ChannelGroup",
    "aap_hw.errors.Fault",
)
# What the settings of training are made of.
PARTS_OF_SETTINGS = tuple(f"aap_hw.train.settings.{name}" for name in ("Optimiser", "Schedule", "Augmentation", "Loss"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages that are made here to the navigation, and the script of the search box."""
    examples = [_on_site(path) for path in _example_pages()]
    assert config.nav is not None
    config.nav += [
        {"Examples": examples},
        {"Commands": ["commands/index.md", *(f"commands/{name}.md" for name in COMMANDS)]},
        {"Reference": [f"reference/{name}.md" for name in ("functions", "classes", "settings", "results")]},
    ]
    config.extra_javascript.append(SEARCH)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are elsewhere or made here, and the files that pages link to."""
    files.append(File.generated(config, SEARCH, abs_src_path=str(Path(__file__).parent / SEARCH)))
    outside = ["README.md", *AT_THE_TOP, *_example_pages()]
    for page in outside:
        files.append(File.generated(config, _on_site(page), content=(ROOT / page).read_text("utf-8")))
    for name, text in {**_command_pages(), **_reference_pages()}.items():
        files.append(File.generated(config, name, content=text))
    for page in [*outside, *(f"docs/{file.src_uri}" for file in files.documentation_pages() if _is_in_docs(file))]:
        for target in _targets(page):
            if not target.startswith("docs/") and (ROOT / target).is_file() and _on_site(target) not in files.src_uris:
                files.append(File.generated(config, _on_site(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links and pictures of pages that are in the repository."""
    here = page.file.src_uri
    if here in LATE_IN_SEARCH:
        page.meta["search"] = {"boost": LATE_IN_SEARCH[here]}
    if here.startswith(("commands/", "reference/")):
        return markdown
    source = _in_repository(here)

    def moved(link: re.Match[str]) -> str:
        target = normpath(f"{dirname(source)}/{link['target']}").lstrip("/")
        return link["before"] + relpath(_on_site(target), dirname(here) or ".")

    images = r'<img \g<alt> src="\g<light>#only-light"><img \g<alt> src="\g<dark>#only-dark">'
    return PICTURE.sub(images, LINK.sub(moved, markdown))


def _targets(page: str) -> list[str]:
    """Paths in the repository that a page links to."""
    text = (ROOT / page).read_text("utf-8")
    return [normpath(f"{dirname(page)}/{link['target']}").lstrip("/") for link in LINK.finditer(text)]


def _on_site(path: str) -> str:
    """Where a file of the repository is on the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _in_repository(place: str) -> str:
    """The inverse of ``_on_site``."""
    if place == "index.md":
        return "README.md"
    return place if place.startswith("examples/") or place in AT_THE_TOP else f"docs/{place}"


def _is_in_docs(file: File) -> bool:
    return file.generated_by is None


def _example_pages() -> list[str]:
    pages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.md"))
    return sorted(pages, key=lambda page: page != "examples/README.md")


def _command_pages() -> dict[str, str]:
    """A page for each command, made from what its ``--help`` says."""
    context = click.Context(group, info_name="aap-hw")
    rows, pages = [], {}
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        rows.append(f"| [{name}]({name}.md) | {command.get_short_help_str(limit=1000)} |")
        pages[f"commands/{name}.md"] = _command_page(command, click.Context(command, context, name), 1)
    head = "# Commands\n\n`aap-hw COMMAND --help` prints what these pages say.\n\n| | |\n|---|---|\n"
    options = _options(group, context)
    pages["commands/index.md"] = "\n".join([head + "\n".join(rows), "", "## Options of all commands", "", options])
    return pages


def _command_page(command: click.Command, context: click.Context, level: int) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    about = _prose(inspect.cleandoc(command.help or ""))
    parts = [f"{'#' * level} {context.command_path}", about, f"```\n{usage}\n```"]
    if command.epilog:
        title, _, lines = command.epilog.replace("\b", "").strip().partition("\n")
        examples = "\n".join(line.strip() for line in lines.splitlines())
        parts.append(f"**{title.rstrip(':')}**\n\n```\n{examples}\n```")
    parts.append(_options(command, context))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            assert member is not None
            parts.append(_command_page(member, click.Context(member, context, name), level + 1))
    return "\n\n".join(parts)


def _options(command: click.Command, context: click.Context) -> str:
    records = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    # Within code, a bar separates no cells.
    rows = [f"| `{' '.join(names.split())}` | {_cell(_prose(text))} |" for names, text in records]
    return "\n".join(["| option | |", "|---|---|", *rows])


def _cell(text: str) -> str:
    """Text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _prose(text: str) -> str:
    """Text of a help as Markdown: stars and angle brackets are meant, options and quoted words are code."""
    text = re.sub(r"([*<>_\[\]])", r"\\\1", text)
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", text)


def _reference_pages() -> dict[str, str]:
    """The public names of the package, by what they are."""
    homes = aap_hw._HOME
    functions = [f"{home}.{name}" for name, home in homes.items() if name[0].islower()]
    classes = [f"{home}.{name}" for name, home in homes.items() if name[0].isupper()]
    intro = "Import them from `aap_hw`. [From Python](../api.md) shows them at work."
    return {
        "reference/functions.md": _reference("Functions", intro, functions),
        "reference/classes.md": _reference("Classes", intro, classes),
        "reference/settings.md": _reference(
            "Parts of TrainSettings", "Import them from `aap_hw.train.settings`.", PARTS_OF_SETTINGS
        ),
        "reference/results.md": _reference(
            "Results and events", "What the functions return, raise and hand to your callbacks.", RESULTS
        ),
    }


def _reference(title: str, intro: str, names: Any) -> str:
    return "\n\n".join([f"# {title}", intro, *(f"::: {name}" for name in names)]) + "\n"
