"""The door to the Hugging Face hub: a name becomes a local folder that holds the checkpoint.

The hub's cache is laid out as documented ("Understand caching" in its guides): `models--ORG--NAME/refs/REVISION` holds
a commit and `snapshots/COMMIT/` its files. The cache is read here without the library, so that an offline start is
quick; the library is imported inside the one function that downloads. Only files that are needed are fetched.
"""

import difflib
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from covector.errors import CovectorError, HubUnreachable, MissingExtra, UnknownModel
from covector.io.safetensors_file import shown
from covector.io.tensors import shards_of, weight_files

_T = TypeVar("_T")

_PATIENCE_S = 8.0  # an unreachable hub is reported within 10 s, the start of the program included
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")  # the hub's rule; no '..', no '--'
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")

# Besides the weights: what says how the model is built and run, and what says how its text is cut.
_CONFIGURATION = frozenset(["config.json", "generation_config.json", "layout.toml", "agent.json", "check.safetensors"])
_TOKENIZER = frozenset(["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
_VOCABULARY = frozenset(
    ["vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"]
)
_TRUE = {"1", "ON", "YES", "TRUE"}  # as the hub's library reads its environment


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint of the hub in a local folder: the name it was asked by, and the commit that was found."""

    folder: Path
    name: str
    commit: str

    @property
    def ref(self) -> str:
        """The reference that finds exactly these files again."""
        return f"{self.name}@{self.commit}"


def resolve(ref: str, revision: str | None = None) -> HubCheckpoint:
    """The local folder of `name` or `name@revision` (a branch, tag or commit; default main), downloaded if need be.

    Offline (`HF_HUB_OFFLINE`), and for a commit that the cache holds, only the cache is asked. Otherwise the hub is,
    and the cache stands in for a hub that does not answer or refuses.
    Raises UnknownModel if the name is malformed, or the hub does not know it, gates it or has no weights for it;
    HubUnreachable if the hub does not answer and the cache does not help; MissingExtra without huggingface_hub.
    """
    name, revision = _split(ref, revision)
    cache = _cache_folder()
    cached = _cached(name, revision, cache)
    if cached is not None and _COMMIT.fullmatch(revision):
        return cached
    if _is_offline():
        if cached is not None:
            return cached
        raise HubUnreachable(
            f"cannot open {shown(name)}: expected it in the cache, since HF_HUB_OFFLINE is set, "
            f"{_cache_state(name, revision, cache)}; either it was never downloaded or the name is wrong: check the "
            "name, pass a local folder, set HF_HOME to the cache that holds it, or unset HF_HUB_OFFLINE"
        )
    try:
        return _downloaded(name, revision, cache)
    except (UnknownModel, HubUnreachable):
        if cached is not None:
            return cached
        raise


def needed_files(names: Iterable[str], *, where: str) -> list[str]:
    """Of a repository's file names, those to download: configuration, vocabulary and one set of weights.

    `.bin` only if there is no safetensors; nothing from subfolders. Raises UnknownModel if there are no weights.
    """
    top = sorted(name for name in names if "/" not in name)
    weights = weight_files(top, where=where)
    if weights is None:
        listed = ", ".join(shown(name)[1:-1] for name in top[:12]) or "nothing"
        raise UnknownModel(
            f"cannot open {where}: expected weights as safetensors or pytorch_model.bin, the repository has {listed}; "
            "look for a conversion of it (adapters, GGUF and TensorFlow files are not read)"
        )
    chosen = {weights} | (_CONFIGURATION | _TOKENIZER | _VOCABULARY).intersection(top)
    if weights.endswith(".index.json"):
        stem, ending = weights.removesuffix(".index.json").rsplit(".", 1)
        chosen |= {name for name in top if name.startswith(f"{stem}-") and name.endswith(f".{ending}")}
    return sorted(chosen)


def _split(ref: str, revision: str | None) -> tuple[str, str]:
    """Name and revision, once both are such that they can be part of a path and a URL."""
    name, at, tail = ref.partition("@")
    if at and revision not in (None, tail):
        raise UnknownModel(
            f"cannot open {shown(ref)}: expected one revision, found {shown(tail)} in the name and {shown(revision)} "
            "beside it; give one of them"
        )
    revision = tail if at else revision or "main"
    parts = name.split("/")
    if len(parts) > 2 or not all(_NAME_PART.fullmatch(part) for part in parts) or "--" in name or ".." in name:
        raise UnknownModel(
            f"cannot open {shown(name)}: expected a local folder or a hub name such as 'gpt2' or "
            "'EleutherAI/pythia-70m', there is no such folder and hub names look otherwise; check the spelling"
        )
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith("/"):
        raise UnknownModel(
            f"cannot open {shown(name)}: expected a branch, tag or commit after '@', found {shown(revision)}; "
            "leave it out for the main branch"
        )
    return name, revision


def _cache_folder() -> Path:
    """Where the hub's library keeps its cache, by the variables that it documents, read now and not at import."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(os.path.expandvars(value)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(xdg)).expanduser() / "huggingface" / "hub"


def _is_offline() -> bool:
    setting = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return setting.upper() in _TRUE


def _repository(name: str, cache: Path) -> Path:
    return cache / f"models--{name.replace('/', '--')}"


def _snapshot(name: str, revision: str, cache: Path) -> Path | None:
    """The cache's folder for this revision, complete or not."""
    repository = _repository(name, cache)
    commit = revision
    try:
        if not _COMMIT.fullmatch(revision):
            commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    if not re.fullmatch(r"[0-9A-Za-z]+", commit):  # it becomes part of a path
        return None
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def _cached(name: str, revision: str, cache: Path) -> HubCheckpoint | None:
    """The cached checkpoint, if its configuration and all of its weights are there."""
    folder = _snapshot(name, revision, cache)
    if folder is None:
        return None
    present = {item.name for item in folder.iterdir() if item.exists()}  # a link into a cleaned cache does not exist
    try:
        weights = weight_files(present, where=str(folder))
        if weights is None or not present & {"config.json", "layout.toml"}:
            return None
        if weights.endswith(".index.json") and not present.issuperset(shards_of(folder / weights).values()):
            return None
    except CovectorError:
        return None  # the hub may hold a better copy; if not, the state of the cache is in the error
    return HubCheckpoint(folder=folder, name=name, commit=folder.name)


def _cache_state(name: str, revision: str, cache: Path) -> str:
    """What the cache has instead of the checkpoint, for an error."""
    folder = _snapshot(name, revision, cache)
    if folder is not None:
        held = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        return f"the cache {cache} holds only part of it ({held})"
    if _repository(name, cache).is_dir():
        return f"the cache {cache} does not hold its revision {shown(revision)}"
    try:
        others = [item.name.removeprefix("models--").replace("--", "/") for item in cache.glob("models--*")]
    except OSError:
        others = []
    near = difflib.get_close_matches(name, others, n=2, cutoff=0.6)
    return f"the cache {cache} does not hold it" + (f" (it holds {' and '.join(near)})" if near else "")


def _downloaded(name: str, revision: str, cache: Path) -> HubCheckpoint:
    """The checkpoint after asking the hub; files that the cache has are not fetched again."""
    try:
        import huggingface_hub.errors  # slow to import, needed only when something is downloaded
    except ImportError as error:
        raise MissingExtra(
            f"cannot download {shown(name)}: expected the package huggingface_hub, and it is not installed; "
            "pip install huggingface_hub, or pass a local folder"
        ) from error
    endpoint = os.environ.get("HF_ENDPOINT") or None
    api = huggingface_hub.HfApi(endpoint=endpoint)

    def answer() -> tuple[str, list[str]]:
        found = api.model_info(name, revision=revision, timeout=_PATIENCE_S)
        return str(found.sha), [file.rfilename for file in found.siblings or []]

    began = False
    try:
        commit, files = _within(_PATIENCE_S, answer)
        wanted = needed_files(files, where=shown(name))
        began = True
        place: dict[str, Any] = {"repo_id": name, "cache_dir": cache, "endpoint": endpoint}
        # One small file by the revision's own name, so that the cache remembers which commit the name stands for.
        first = next((file for file in ("config.json", "layout.toml") if file in wanted), wanted[0])
        huggingface_hub.hf_hub_download(filename=first, revision=revision, etag_timeout=_PATIENCE_S, **place)
        folder = huggingface_hub.snapshot_download(revision=commit, allow_patterns=wanted, **place)
        return HubCheckpoint(folder=Path(folder), name=name, commit=commit)
    except CovectorError:
        raise
    except Exception as error:  # the libraries below raise many kinds: HTTP, sockets, time-outs, disks
        refused = _refused(name, revision, error, huggingface_hub.errors)
        raise (refused or _unreachable(name, revision, cache, error, began=began)) from error


def _refused(name: str, revision: str, error: Exception, errors: Any) -> UnknownModel | None:
    """The hub's own no, in our words; None if the error is another. `errors` is the library's module of them."""
    if isinstance(error, errors.GatedRepoError):
        return UnknownModel(
            f"cannot open {shown(name)}: expected files that may be read, the hub gates them; accept the terms on the "
            "model's page, then log in with 'hf auth login' or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UnknownModel(
            f"cannot open {shown(name)}: expected a revision {shown(revision)}, the hub has no such branch, tag or "
            "commit; check it on the model's page or leave it out"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownModel(
            f"cannot open {shown(name)}: expected a local folder or a repository of the hub, there is none of that "
            "name (or it is private); check the spelling, or log in with 'hf auth login' if it is yours"
        )
    return None


def _unreachable(name: str, revision: str, cache: Path, error: Exception, *, began: bool) -> HubUnreachable:
    if began:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return HubUnreachable(
            f"cannot open {shown(name)}: expected to download it into {cache}, the transfer broke off "
            f"({type(error).__name__}: {reason}); run it again, it goes on where it stopped"
        )
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        happened = f"did not answer within {_PATIENCE_S:g} s"
    else:
        status = getattr(getattr(error, "response", None), "status_code", None)
        happened = f"answered with status {status}" if status else f"could not be reached ({type(error).__name__})"
    return HubUnreachable(
        f"cannot open {shown(name)}: expected to reach the hub, it {happened}, and "
        f"{_cache_state(name, revision, cache)}; either you are offline or the name is wrong: check the name, pass a "
        "local folder, or set HF_HOME to a cache that holds it"
    )


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """The call's result, or TimeoutError: looking up a host name can outlast every time-out of the library.

    The thread is a daemon: a call that never returns does not keep the program alive.
    """
    results: list[_T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True, name="hub")
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
