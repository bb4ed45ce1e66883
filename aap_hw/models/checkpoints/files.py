"""The kinds of files that checkpoints come in, each read into plain values without running anything in it.

Covers the archives of ``torch.save``, what it wrote before version 1.6, plain pickles, safetensors, and an index of
several such files. Programs, other libraries' files and folders are refused by name. Numbers are read from the disk
only when they are needed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors.torch

from aap_hw.errors import UserError
from aap_hw.models.checkpoints import pickled
from aap_hw.models.checkpoints.storages import Damaged, Storage

# The ending of a file that says which tensors are in which other files.
INDEX = ".index.json"
# The first value in a file that `torch.save` wrote before version 1.6.
_MAGIC = 0x1950A86A20F9469CFC6C
_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file; fetch that with 'git lfs pull'",
    b"\x89HDF": "an HDF5 file, as Keras writes; convert it to safetensors",
    b"\x1f\x8b": "packed with gzip; unpack it first",
}


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turn any failure to read a file into a sentence about the file."""
    try:
        yield
    except UserError:
        raise
    except Damaged as problem:
        raise UserError(f"the weights {path} are damaged: {problem}; copy or download the file again") from problem
    except OSError as problem:
        what = problem.strerror or "there is no such file"
        raise UserError(f"cannot read the weights {path}: {what}") from problem
    except MemoryError as problem:
        raise UserError(f"there is not enough memory to read the weights {path}") from problem
    except Exception as problem:  # every parser has its own
        raise UserError(
            f"cannot read the weights {path}: the file is damaged or cut short; copy or download it again"
        ) from problem


def parts(path: Path) -> list[Path]:
    """The files that a checkpoint consists of, itself first. Raises UserError if it is an index that names no files."""
    if not path.name.endswith(INDEX):
        return [path]
    with whole(path):
        names = set(json.loads(path.read_bytes())["weight_map"].values())
        if strange := next((name for name in names if Path(name).name != name or name.endswith(INDEX)), None):
            raise UserError(f"the index {path} names '{strange}', which is no file beside it; restore the index")
    return [path, *(path.parent / name for name in sorted(names))]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """What a checkpoint holds, as `pickled.read` gives it; its numbers can be read until this ends.

    Raises
    ------
    UserError : it is no checkpoint, is of a kind that is not read, or is damaged.
    """
    with ExitStack() as stack:
        _, *of_index = parts(path)
        content = _content_of(of_index[0] if of_index else path, stack)
        for part in of_index[1:]:
            content = {**_named(content), **_named(_content_of(part, stack))}
        yield content


def _named(content: Any) -> Mapping[str, Any]:
    """A part of a state dict, which may be any kind of dictionary."""
    return content.items if isinstance(content, pickled.Made) else dict(content)


def _content_of(path: Path, stack: ExitStack) -> Any:
    if path.suffix == ".distcp" or path.name == ".metadata":
        raise UserError(distributed(path.parent))
    with whole(path):
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        stream = stack.enter_context(path.open("rb"))
        begins = stream.read(32)
        stream.seek(0)
        if begins.startswith((b"PK", b"\x80")) or not begins:
            return content_of_stream(stream, str(path))
        kind = next((what for magic, what in _KINDS.items() if begins.startswith(magic)), None)
        raise UserError(
            f"the weights {path} are {kind}"
            if kind
            else f"the weights {path} were not written by torch.save; give such a file, or a safetensors file, whose "
            "name ends with .safetensors"
        )


def distributed(folder: Path) -> str:
    """Why a checkpoint that several processes wrote into a folder is not read."""
    return (
        f"{folder} is a checkpoint of several processes; make one file of it: "
        f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
    )


def content_of_stream(stream: IO[bytes], name: str) -> Any:
    """What a file of ``torch.save`` or a plain pickle holds."""
    begins = stream.read(2)
    stream.seek(0)
    return _archived(stream, name) if begins == b"PK" else _streamed(stream)


def _archived(stream: IO[bytes], name: str) -> Any:
    archive = zipfile.ZipFile(stream)
    names = archive.namelist()
    folder = next((each.removesuffix("data.pkl") for each in names if each.endswith("/data.pkl")), None)
    if folder is None or f"{folder}constants.pkl" in names:
        raise UserError(_no_checkpoint(names, name))
    if f"{folder}byteorder" in names and _member(archive, f"{folder}byteorder") != b"little":
        raise UserError(f"the weights {name} were saved on a machine of another byte order; save them as safetensors")
    storages: dict[Any, Storage] = {}

    def persistent(identity: Any) -> Any:
        match identity:
            case ("storage", pickled.Named(name=kind), str(key), _, count, *_):
                if key not in storages:
                    storages[key] = Storage(kind, count, lambda: _member(archive, f"{folder}data/{key}"))
                return storages[key]
        return None

    return pickled.read(io.BytesIO(_member(archive, f"{folder}data.pkl")), persistent)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.CRC == 0:
        # PyTorch has an option to write no checksums.
        info.CRC = None  # type: ignore[assignment]
    return archive.read(info)


def _no_checkpoint(names: list[str], path: str) -> str:
    if any(each.endswith("/constants.pkl") for each in names):
        return (
            f"{path} is a TorchScript program and no checkpoint; take its weights out of it with "
            f"torch.save(torch.jit.load('{path}').state_dict(), 'weights.pt')"
        )
    if any("/models/" in each or each.endswith("archive_format") for each in names):
        return f"{path} is an exported program and no checkpoint; give it as --model, with the weights that it has"
    if names and all(each.endswith(".npy") for each in names):
        return f"{path} is an archive of NumPy's; save its arrays as safetensors, under the network's own names"
    return f"{path} is a zip archive and no checkpoint; if one is packed inside, unpack it first"


def _streamed(stream: IO[bytes]) -> Any:
    storages: dict[Any, Storage] = {}
    places: dict[Any, tuple[int, int]] = {}

    def numbers_of(key: Any) -> Callable[[], bytes]:
        def load() -> bytes:
            start, size = places[key]
            stream.seek(start)
            return stream.read(size)

        return load

    def persistent(identity: Any) -> Any:
        match identity:
            case ("storage", pickled.Named(name=kind), key, _, count, *view):
                if key not in storages:
                    storages[key] = Storage(kind, count, numbers_of(key))
                match view:
                    case [(_, first, view_count)]:
                        return storages[key].part(kind, first, view_count)
                return storages[key]
            case ("module", by, *_):
                return by  # its source code follows
        return None

    content = pickled.read(stream, persistent)
    if content != _MAGIC:
        return content
    _version, machine = pickled.read(stream), pickled.read(stream)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise Damaged("it was saved on a machine of another byte order")
    content = pickled.read(stream, persistent)
    for key in pickled.read(stream):
        count, start = int.from_bytes(stream.read(8), "little"), stream.tell()
        size = count * storages[key].dtype.itemsize
        places[key] = start, size
        stream.seek(start + size)
    return content
