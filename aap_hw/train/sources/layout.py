"""The two or three splits of a folder of pictures, their classes, and the files of each class, found by name alone.

Covers folders as people and machines leave them: other names for the splits, files that are not pictures, links, and
hidden files of desktops and notebooks. The only file that is opened is a list of annotations.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aap_hw.errors import UserError
from aap_hw.train.samples import Split
from aap_hw.train.sources.picture import SUFFIXES

TRAIN = ("train", "training")
VALIDATION, TEST = ("val", "valid", "validation", "dev", "eval", "evaluation"), ("test", "testing")
# Beside names that begin with a dot: what servers, Windows, macOS and Python leave in folders.
NO_FOLDERS = ("@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found")
NO_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
NO_DATA = frozenset((*NO_FOLDERS, *NO_FILES, "__macosx", "__pycache__"))
# Folders of these names side by side are for detection or segmentation, not classes.
PICTURES, FINDINGS = frozenset(("images", "imgs", "jpegimages")), frozenset(("labels", "annotations", "masks"))
# Names of a list that are written out.
MOST_NAMED = 5
ANNOTATIONS = "val_annotations.txt"
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split that should be pictures, in the order of the classes.

    Attributes
    ----------
    place : the split's folder.
    labels : for each file the number of its class.
    """

    place: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]


def find_splits(folder: Path) -> tuple[tuple[str, ...], dict[Split, SplitFiles]]:
    """The names of the classes, and the files to train and to test with, and for validation if there are three splits.

    Of two splits the second is the one to test with, whatever it is called. A third one without classes, as those of
    competitions are, is left out, and it is said.

    Raises
    ------
    UserError : a split or a class is missing, empty or not to be told from another, or the splits have different
        classes.
    """
    if folder.is_file():
        raise UserError(f"{shown(folder)} is a file and not a folder of images; unpack it if it is an archive")
    if not folder.is_dir():
        raise UserError(f"there is no folder of images {shown(folder)}; name the one that has them with --data")
    train, *others = _splits(folder)
    names = _classes(train)
    if len(others) > 1 and not _has_classes(others[1], names):
        LOG.warning("%s: left out, as its pictures have no classes", shown(others.pop()))
    found: dict[Split, SplitFiles] = {"train": _files(train, [train / name for name in names])}
    splits: tuple[Split, ...] = ("val", "test")
    for split, place in zip(splits[-len(others) :], others, strict=True):
        listed = place / ANNOTATIONS
        found[split] = _annotated(listed, names) if listed.exists() else _of_classes(place, names, train)
    return names, found


def _has_classes(split: Path, names: Sequence[str]) -> bool:
    here = _by_looks(split, _folders(split)).keys()
    return (split / ANNOTATIONS).exists() or not here.isdisjoint(_by_looks(split, names))


def _of_classes(split: Path, names: Sequence[str], train: Path) -> SplitFiles:
    return _files(split, _same_classes(split, names, train))


def shown(path: Path | str) -> str:
    """A file's name for a sentence: on one line, and printable even if it is of no known encoding."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(path))


def _splits(folder: Path) -> list[Path]:
    """The folder to train with, and one or two others: first the one for validation."""
    inner = _folders(folder)
    found = [[name for name in inner if _plain(name) in names] for names in (TRAIN, VALIDATION, TEST)]
    for alike in found:
        if len(alike) > 1:
            raise UserError(
                f"{shown(folder)} has both '{shown(alike[0])}' and '{shown(alike[1])}', and either could be meant; "
                "rename or move one of them"
            )
    places = [folder / names[0] for names in found if names]
    if found[0] and len(places) > 1:
        return places
    if _is_for_finding(inner):
        raise _for_finding(folder)
    near = [folder / name for name in inner]
    if _plain(folder.name) in (*TRAIN, *VALIDATION, *TEST):
        near.append(folder.absolute().parent)
    meant = next((place for place in near if _has_splits(place)), None)
    there = f"it has {_listed(inner) or 'no folders'}" if meant is None else f"give {shown(meant)}, which has them"
    raise UserError(
        f"{shown(folder)} needs the folders 'train' and 'val' (or 'test'), each with one sub-folder of images a class; "
        f"{there}"
    )


def _plain(name: str) -> str:
    """A split's name in lower case without an added ``set`` or the like: ``train`` for ``Train_Set``."""
    return re.sub(r"[-_ ]*(set|data|images|imgs)?$", "", name.lower().strip(), count=1)


def _has_splits(folder: Path) -> bool:
    try:
        inner = {_plain(name) for name in _folders(folder)}
    except UserError:
        return False  # it cannot be listed
    return not inner.isdisjoint(TRAIN) and not inner.isdisjoint((*VALIDATION, *TEST))


def _is_for_finding(names: Sequence[str]) -> bool:
    lower = {name.lower() for name in names}
    return not lower.isdisjoint(PICTURES) and not lower.isdisjoint(FINDINGS)


def _for_finding(folder: Path) -> UserError:
    return UserError(
        f"{shown(folder)} has pictures beside what is to be found in them, for detection or segmentation, and no "
        "sub-folder a class; to cut such a network with --no-training, put pictures into train/all and val/all"
    )


def _classes(train: Path) -> tuple[str, ...]:
    """The names of the training split's class folders."""
    names = _folders(train)
    if not names:
        raise UserError(
            f"{shown(train)} has no sub-folders, and each class needs one; put images without classes into one "
            f"of any name, such as {shown(train / 'all')}"
        )
    if _is_for_finding(names):
        raise _for_finding(train)
    return tuple(names)


def _same_classes(test: Path, names: Sequence[str], train: Path) -> list[Path]:
    """The folders of the test split, one for each class of the training split."""
    inner = _folders(test)
    if not inner:
        raise UserError(f"{shown(test)} has no sub-folders, and needs the same ones as '{shown(train.name)}'")
    here, there = _by_looks(test, inner), _by_looks(train, names)
    lacking = [there[name] for name in there if name not in here]
    added = [here[name] for name in here if name not in there]
    if lacking or added:
        ones = " and ".join(
            f"{_listed(some)} only in '{shown(split.name)}'"
            for some, split in ((lacking, train), (added, test))
            if some
        )
        raise UserError(
            f"{shown(test)} has other classes than the folder '{shown(train.name)}': {ones}; give each class a "
            "sub-folder of one name in both"
        )
    return [test / here[name] for name in there]


def _by_looks(split: Path, names: Sequence[str]) -> dict[str, str]:
    """Names by how they look (NFC): an accented letter is one character on most machines and two on a Mac."""
    found = {unicodedata.normalize("NFC", name): name for name in names}
    if len(found) < len(names):
        twice = sorted(set(names) - set(found.values()))
        raise UserError(f"{shown(split)} has two sub-folders that are both called '{shown(twice[0])}'; rename one")
    return found


def _files(split: Path, classes: Sequence[Path]) -> SplitFiles:
    found: list[Path] = []
    labels: list[int] = []
    all_left_out: Counter[str] = Counter()
    deeper: list[Path] = []
    above = frozenset((split.resolve(), *split.resolve().parents))
    for label, folder in enumerate(classes):
        left_out: Counter[str] = Counter()
        before = len(found)
        for path in _walk(folder, set(), above):
            if path.suffix.lower() in SUFFIXES:
                found.append(path)
                labels.append(label)
            else:
                left_out[path.suffix.lower()] += 1
        if len(found) == before:
            instead = f", only {_counted(left_out)}" if left_out else ""
            raise UserError(
                f"{shown(folder)} holds no picture of a format that is read{instead}; put .jpg, .png or the like "
                "there, or remove the class from both splits"
            )
        deeper += [path for path in found[before:] if path.parent != folder][:1]
        all_left_out += left_out
    if all_left_out:
        LOG.warning("%s: left out, as they are not read: %s", shown(split), _counted(all_left_out))
    if loose := [e.name for e in _entries(split) if _is_file(e) and Path(e.name).suffix.lower() in SUFFIXES]:
        LOG.warning("%s: left out, as they are in no class's folder: %s", shown(split), _listed(loose))
    if deeper:
        first = deeper[0]
        LOG.warning(
            "%s: pictures in deeper folders, such as %s, belong to the class whose folder they are in",
            shown(split),
            shown(first.relative_to(split)),
        )
    return SplitFiles(split, tuple(found), tuple(labels))


def _annotated(annotations: Path, names: Sequence[str]) -> SplitFiles:
    """Files in ``images`` beside a list of lines that begin with a file's name and its class."""
    label_of = {name: label for label, name in enumerate(names)}
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{shown(annotations)} cannot be read as text; get the data set again") from None
    files, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, name, *_ = (*line.split("\t"), "")
        if name not in label_of:
            raise UserError(f"{shown(annotations)} names the unknown class '{shown(name)}' in line {number}")
        files.append(annotations.parent / "images" / file)
        labels.append(label_of[name])
    if lacking := [name for label, name in enumerate(names) if label not in set(labels)]:
        raise UserError(f"{shown(annotations)} names no picture of {_listed(lacking)}, which the training split has")
    return SplitFiles(annotations.parent, tuple(files), tuple(labels))


def _walk(folder: Path, seen: set[Path], above: frozenset[Path]) -> Iterator[Path]:
    """The files in a folder and, in the order of their names, those below it; without what is no data.

    Links are followed, but not to a folder that was ``seen`` or lies ``above`` this one: never in circles, and never
    into other classes.
    """
    real = folder.resolve()
    if real in seen or real in above:
        return
    seen.add(real)
    above |= {real, *real.parents}
    for entry in _entries(folder):
        path = folder / entry.name
        if _is_folder(entry):
            yield from _walk(path, seen, above)
        elif _is_file(entry):
            yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Only of a link must the file system be asked again, and it may lead in a circle.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Also a broken link, which its reader will report. Not a pipe."""
    return not Path(entry.path).exists() or Path(entry.path).is_file() if entry.is_symlink() else entry.is_file()


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in NO_DATA]
    except OSError as problem:
        raise UserError(f"cannot list the folder {shown(folder)}: {problem.strerror}") from None
    return sorted(found, key=lambda entry: entry.name)


def _counted(endings: Counter[str]) -> str:
    """Such as "12 .heic, 1 .txt"."""
    return _listed([f"{count} {ending or 'without an ending'}" for ending, count in endings.most_common()])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(shown, names[:MOST_NAMED])) + more
