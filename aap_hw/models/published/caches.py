"""Files of weights in the caches of PyTorch and of the Hugging Face Hub, fetched by these themselves if need be.

A file that is there is taken as it is, without asking any server. Without a network one sentence says where the file
can be put.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch

from aap_hw.activity import is_silenced
from aap_hw.errors import UserError
from aap_hw.files import sha256_of
from aap_hw.foreign import reason

LOG = logging.getLogger(__name__)
# What a repository's checkpoint may be called, the first that is there being taken.
CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")


def fetched_url(url: str, what: str) -> Path:
    """The file of an address in PyTorch's cache.

    Raises
    ------
    UserError : it is not there and cannot be fetched; the sentence says where to put it.
    """
    name = Path(urlparse(url).path).name
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    found = torch.hub.HASH_REGEX.search(name)
    begins = found[1] if found else ""
    if file.exists():
        if begins and not (digest := sha256_of(file)).startswith(begins):
            LOG.warning(
                "%s is not the file that was published (sha256 %s... instead of %s...); it is used as it is",
                file, digest[: len(begins)], begins,
            )  # fmt: skip
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), begins or None, progress=not is_silenced())
    except (OSError, RuntimeError, http.client.HTTPException) as problem:
        raise UserError(
            f"{what} cannot be fetched ({_why(problem)}): get {url} by other means and put it at {file}, or give a "
            "checkpoint of your own with --weights FILE"
        ) from problem
    return file


def _why(problem: Exception) -> str:
    """What went wrong on the way to a server: of urllib's wrapping only the system's word."""
    inner = getattr(problem, "reason", None)
    return inner.strerror if isinstance(inner, OSError) and inner.strerror else reason(problem)


def fetched_hub(repository: str, names: Sequence[str], what: str) -> Path:
    """The first of some files of a repository, ``ORG/NAME`` or ``ORG/NAME@REVISION``, that there is.

    An interrupted download is taken up again.

    Raises
    ------
    UserError : none is in the cache and none can be fetched; the sentence says how to put it there.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
    except ImportError as problem:
        raise UserError(
            f"{what} need the package huggingface_hub; install it with: pip install 'aap-hw[timm]'"
        ) from problem
    repo, _, revision = repository.partition("@")
    at = revision or None
    try:
        for name in names:
            cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=at)
            if isinstance(cached, str):
                return Path(cached)
        for name in names:
            try:
                return _downloaded(repo, name, at)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
    except HFValidationError as problem:
        raise UserError(f"'{repository}' is no repository of the Hugging Face Hub; write ORG/NAME") from problem
    except (OSError, RuntimeError, ValueError) as problem:
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
        raise UserError(
            f"{what} cannot be fetched ({reason(problem)}): where there is a network, run 'hf download {repo} "
            f"{names[0]}' and copy what it makes to {cache}, or give a checkpoint of your own with --weights FILE"
        ) from problem
    raise UserError(f"{what} are not there: {repo} has no {' or '.join(names)}; give a repository that has")


def _downloaded(repo: str, name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silence = is_silenced() and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
    finally:
        if silence:
            enable_progress_bars()
