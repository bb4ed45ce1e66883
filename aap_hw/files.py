"""Reading and writing small files so that a crash never leaves half a file and errors name the path.

Covers text and bytes that fit in memory, and temporary folders. Not covered: locking between processes (the last
writer wins) and what the contents mean.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aap_hw.errors import UserError

# What a file is called until it is whole.
_TEMPORARY = ".aap-hw-*.tmp"
# What the operating system may refuse to any program, and what to do about it.
_CIRCUMSTANCES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "name a place that can be written to",
    errno.EACCES: "name a place that you may use",
    errno.EPERM: "name a place that you may use",
    errno.EFBIG: "allow this process larger files (ulimit -f)",
    errno.EIO: "check that disk for errors",
    errno.EAGAIN: "allow this user more processes (ulimit -u), or end some of them",
    errno.EMFILE: "allow this process more open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs",
    errno.ENAMETOOLONG: "name a place with a shorter path",
}
_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}


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
    WriteError : the operating system refuses (missing or read-only folder, full disk, `path` is a folder).
    """
    # Text may quote a file name that is not valid UTF-8, which must not stop it from being written.
    content = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    target = Path(os.path.realpath(path))
    temporary = target.parent / _TEMPORARY.replace("*", secrets.token_hex(8))
    try:
        if _is_special(path):
            Path(path).write_bytes(content)
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
    UserError : the file is missing, cannot be read, or is not UTF-8 text.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the {what} {path}: byte {error.start} is not UTF-8 text; is this the right file?"
        ) from error


def read_optional(path: Path) -> bytes | None:
    """The bytes of an optional file; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def require_writable_folder(path: str | os.PathLike[str]) -> None:
    """Check, without making anything, that a folder is there and writable or can be made.

    Raises
    ------
    UserError : something on the way is not a folder or may not be written to.
    """
    if (obstacle := _obstacle(Path(os.path.abspath(path)))) is not None:
        raise UserError(f"cannot write to the folder {path}: {obstacle}; choose another")


def require_writable_file(path: str | os.PathLike[str]) -> None:
    """Check, without making anything, that a file can be written, its folder being made first if it is missing.

    Raises
    ------
    UserError : it is a folder, or its folder cannot be made or written to.
    """
    if _is_special(path):
        return
    target = Path(os.path.realpath(path))
    obstacle = "it is a folder" if target.is_dir() else _obstacle(target.parent)
    if obstacle is not None:
        raise UserError(f"cannot write {path}: {obstacle}; choose another place")


def _is_special(path: str | os.PathLike[str]) -> bool:
    """Whether something is there that is neither a file nor a folder."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _obstacle(folder: Path) -> str | None:
    """What hinders a folder from being made and written to."""
    nearest = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not os.path.isdir(nearest):
        return f"{nearest} is not a folder"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is read-only"


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, if they are not there. Raises WriteError if that is impossible."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {_reason(error)}; choose another") from error


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A temporary folder, as long as the block takes.

    Parameters
    ----------
    purpose
        A word for its name, so that whoever finds it knows what it is for.

    Raises
    ------
    UserError : it cannot be made, or its disk cannot hold what the block writes.
    """
    try:
        holder = tempfile.TemporaryDirectory(prefix=f"aap-hw-{purpose}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"there is no temporary folder to write to ({_reason(error)}); set TMPDIR to a folder that can be "
            "written to and has room"
        ) from error
    with holder as folder:
        if not folder.isprintable():  # compilers are given its path as text
            raise UserError(
                f"the name of the temporary folder {tempfile.gettempdir()!r} cannot be printed; set TMPDIR to another"
            )
        try:
            yield Path(folder)
        except OSError as error:
            # A failed write does not name its file. It is one in this folder, as all our files elsewhere are written by
            # functions that report failures themselves.
            inside = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder)
            if error.errno in _OF_DISKS and inside:
                raise no_use_of_temporary(_reason(error)) from error
            raise


def no_use_of_temporary(reason: str) -> WriteError:
    """The error for a temporary folder that cannot be used, with the reason."""
    return WriteError(
        f"cannot use the temporary folder {tempfile.gettempdir()}: {reason}; make room there, or set TMPDIR to a "
        "folder on another disk"
    )


def require_loading_from_temporary() -> None:
    """Check that programs and libraries may be loaded from temporary folders.

    Raises
    ------
    UserError : they may not, or there are no such folders.
    """
    with scratch_folder("check") as folder:
        if os.statvfs(folder).f_flag & os.ST_NOEXEC:
            raise UserError(
                f"nothing may be run from the temporary folder {folder.parent}, which is mounted 'noexec'; set TMPDIR "
                "to a folder that programs may be run from"
            )


def circumstance(error: OSError) -> UserError | None:
    """What the operating system refused, as an error for the user, if the user can put it right."""
    if error.errno not in _CIRCUMSTANCES:
        return None
    what = "a file" if error.filename is None else os.fsdecode(error.filename)
    return UserError(f"cannot use {what}: {_reason(error)}; {_CIRCUMSTANCES[error.errno]}")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's bytes as 64 hexadecimal digits.

    Raises
    ------
    UserError : the file is missing or cannot be read.
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
