"""Reading and writing small files so that a crash never leaves half a file and errors name the path.

Covers text and bytes that fit in memory. Not covered: locking between processes (the last writer wins) and
what the contents mean.
"""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from aap_hw.errors import UserError

# What a file is called until it is whole.
_TEMPORARY = ".aap-hw-*.tmp"


class WriteError(UserError):
    """The operating system refused to write a file; what it held before is still there."""


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write a file so that, at any moment, `path` holds either all of the old contents or all of the new.

    Parameters
    ----------
    path
        Where to write; its folder must exist. A symbolic link is followed. What is no regular file, such as a pipe
        or ``/dev/null``, is written to and not replaced.
    data
        Bytes, or text, which is encoded as UTF-8 with its line ends kept as they are.

    Raises
    ------
    WriteError
        If the operating system refuses (missing or read-only folder, full disk, `path` is a folder).
    """
    content = data.encode() if isinstance(data, str) else data
    target = Path(os.path.realpath(path))
    temporary = target.parent / _TEMPORARY.replace("*", secrets.token_hex(8))
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(content)
            return
        # 0o666 lets the umask decide; tempfile's 0600 would hide a shared table from colleagues.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            if target.is_file():
                os.fchmod(stream.fileno(), target.stat().st_mode & 0o777)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {_reason(error)}; check that its folder exists, is writable and has room"
        ) from error
    finally:
        # After the rename there is nothing left under this name.
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    _sync_folder(target.parent)


def remove_temporaries(folder: Path) -> None:
    """Delete what processes that were killed left half-written; no other process may be writing there now."""
    for path in folder.glob(_TEMPORARY):
        path.unlink(missing_ok=True)


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a UTF-8 text file.

    Parameters
    ----------
    path
        The file.
    what
        What the file is to the user, for the error sentence: ``"device profile"``, ``"latency table"``.

    Raises
    ------
    UserError
        If the file is missing, cannot be read, or is not UTF-8 text.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the {what} {path}: byte {error.start} is not UTF-8 text; is this the right file?"
        ) from error


def require_writable_folder(path: str | os.PathLike[str]) -> None:
    """Check, without making anything, that a folder is there and writable or can be made.

    Raises
    ------
    UserError
        If something on the way is not a folder or may not be written to.
    """
    folder = Path(os.path.abspath(path))
    nearest = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not os.path.isdir(nearest):
        raise UserError(f"cannot write to the folder {path}: {nearest} is not a folder; choose another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to the folder {path}: {nearest} is read-only; choose another")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's bytes as 64 hexadecimal digits.

    Raises
    ------
    UserError
        If the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, on the file systems that can sync a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
