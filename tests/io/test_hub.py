"""A hub name becomes a folder: from the cache, from the hub, or with an error that says what to do.

The hub is played by a server on the loopback interface; nothing leaves the machine.
"""

import contextlib
import hashlib
import http.server
import json
import socket
import threading

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.utils
import pytest

from covector.errors import CheckpointMismatch, HubUnreachable, UnknownModel
from covector.io import hub
from covector.io.hub import HubCheckpoint, needed_files, resolve

SHA = "0123456789abcdef0123456789abcdef01234567"
NEWER = "89abcdef0123456789abcdef0123456789abcdef"
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, a hub that is switched on, and no proxy or token of whoever runs the tests."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    huggingface_hub.utils.disable_progress_bars()
    yield tmp_path / "hub"
    huggingface_hub.close_session()


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def store(cache, name="org/name", files=FILES, *, commit=SHA, revision="main"):
    """Put a checkpoint into the cache as the hub's library lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    return snapshot


# From the cache


def test_offline_the_cache_answers_with_folder_and_commit(cache, offline):
    snapshot = store(cache)
    found = resolve("org/name")
    assert found == HubCheckpoint(folder=snapshot, name="org/name", commit=SHA)
    assert found.ref == f"org/name@{SHA}"
    assert resolve(found.ref) == found


def test_a_revision_is_a_branch_a_tag_or_a_commit(cache, offline):
    store(cache)
    newer = store(cache, commit=NEWER, revision="v2")
    assert resolve("org/name@v2").folder == newer
    assert resolve("org/name", revision="v2").folder == newer
    assert resolve("org/name").commit == SHA
    assert resolve(f"org/name@{NEWER}").folder == newer


def test_the_cache_is_found_by_the_variables_that_the_hub_documents(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    snapshot = store(tmp_path / "elsewhere", "gpt2")
    assert resolve("gpt2").folder == snapshot


def test_offline_an_unknown_name_says_both_possibilities(cache, offline):
    store(cache, "gpt2")
    text = r"'gpt-2': .* HF_HUB_OFFLINE is set, the cache .* does not hold it \(it holds gpt2\); either .* or the name"
    with pytest.raises(HubUnreachable, match=text):
        resolve("gpt-2")
    with pytest.raises(HubUnreachable, match="does not hold its revision 'v9'"):
        resolve("gpt2@v9")


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}"},
        {"model.safetensors": b"weights"},
        {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"w": "model-00001.safetensors"}}'},
    ],
    ids=["no_weights", "no_configuration", "no_shard"],
)
def test_a_half_downloaded_checkpoint_is_not_taken_for_one(cache, offline, files):
    store(cache, files=files)
    with pytest.raises(HubUnreachable, match=r"holds only part of it \(.*(config.json|model.safetensors).*\)"):
        resolve("org/name")


def test_a_commit_that_the_cache_holds_needs_no_hub(cache, monkeypatch):
    monkeypatch.setattr(hub, "_downloaded", None)  # calling it would be a TypeError
    snapshot = store(cache)
    assert resolve(f"org/name@{SHA}").folder == snapshot


def test_a_cache_that_points_outside_itself_is_not_followed(cache, offline):
    snapshot = store(cache)
    snapshot.rename(cache / "outside")
    (cache / "models--org--name" / "refs" / "main").write_text("../../outside")
    with pytest.raises(HubUnreachable):
        resolve("org/name")


# Names


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b/c", "/abs", "./here", "a b", "a--b", "a..b", "-a", "a/", "ä", "a\nb"]
)
def test_what_cannot_be_a_hub_name_is_refused_before_anyone_is_asked(name):
    with pytest.raises(UnknownModel, match="expected a local folder or a hub name such as 'gpt2'"):
        resolve(name)


@pytest.mark.parametrize("revision", ["", "../main", "a/../b", "/main", "a b", "a/"])
def test_what_cannot_be_a_revision_is_refused(revision):
    with pytest.raises(UnknownModel, match="expected a branch, tag or commit after '@'"):
        resolve(f"gpt2@{revision}")


def test_two_revisions_are_refused():
    with pytest.raises(UnknownModel, match="expected one revision, found 'a' in the name and 'b' beside it"):
        resolve("gpt2@a", revision="b")


# Which files


def test_only_what_is_needed_is_fetched():
    names = ["README.md", "flax_model.msgpack", "onnx/model.onnx", "merges.txt", "pytorch_model.bin", *FILES]
    assert needed_files(names, where="it") == ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]


def test_bin_is_fetched_only_where_there_is_nothing_else():
    assert needed_files(["config.json", "pytorch_model.bin"], where="it") == ["config.json", "pytorch_model.bin"]
    shards = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
    assert needed_files([*shards, "training_args.bin"], where="it") == shards


def test_shards_come_with_their_index_and_without_a_second_copy():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert needed_files([*shards, "consolidated.safetensors"], where="it") == shards


def test_a_repository_without_weights_is_described():
    with pytest.raises(UnknownModel, match=r"the repository has adapter_model.safetensors, q4.gguf; look for"):
        needed_files(["adapter_model.safetensors", "q4.gguf"], where="it")
    with pytest.raises(CheckpointMismatch, match=r"found a.safetensors, b.safetensors; keep"):
        needed_files(["a.safetensors", "b.safetensors"], where="it")


# From the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download touches: who a name is, which files it has, and the files."""

    files: dict[str, bytes] = FILES
    refusal: tuple[int, str] | None = None  # status and error code for whoever asks about the model
    refused_files: tuple[int, str] | None = None  # the same for whoever asks for a file
    asked: list[str]

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/org/name/tree/"):
            return self.answer(
                [{"type": "file", "path": n, "size": len(c), "oid": self.etag(c)} for n, c in self.files.items()]
            )
        if path.startswith("/api/"):
            if self.refusal:
                return self.answer({}, *self.refusal)
            return self.answer({"id": "org/name", "sha": SHA, "siblings": [{"rfilename": n} for n in self.files]})
        if self.refused_files:
            return self.answer({}, *self.refused_files)
        return self.answer(self.files[path.rsplit("/", 1)[1]])

    do_HEAD = do_GET

    def etag(self, content):
        return hashlib.sha1(content).hexdigest()

    def answer(self, body, status=200, code=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(body), "ETag": self.etag(body), "X-Repo-Commit": SHA}.items():
            self.send_header(key, str(value))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch):
    """A hub on the loopback interface; returns its handler, whose class attributes the test may set."""
    handler = type("ThisHub", (Hub,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield handler
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


def test_a_download_lands_in_the_cache_and_answers_offline_afterwards(served, cache, monkeypatch):
    served.files = FILES | {"README.md": b"hello"}
    found = resolve("org/name")
    assert found.commit == SHA
    assert {item.name: item.read_bytes() for item in found.folder.iterdir()} == FILES
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/name") == found


def test_what_the_cache_holds_is_not_fetched_again(served):
    resolve("org/name")
    served.asked.clear()
    resolve("org/name")
    assert not any(line.startswith("GET") and "/resolve/" in line for line in served.asked)


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        ((404, "RepoNotFound"), "there is none of that name .or it is private.; check the spelling"),
        ((401, "RepoNotFound"), "there is none of that name .or it is private.; check the spelling"),
        ((404, "RevisionNotFound"), "expected a revision 'main', the hub has no such branch, tag or commit"),
        ((403, "GatedRepo"), "the hub gates them; accept the terms on the model's page, then log in"),
    ],
)
def test_the_hubs_refusals_are_told_apart(served, refusal, text):
    served.refusal = refusal
    with pytest.raises(UnknownModel, match=f"cannot open 'org/name': .*{text}"):
        resolve("org/name")


def test_files_behind_a_gate_say_how_to_pass_it(served):
    served.refused_files = (403, "GatedRepo")
    with pytest.raises(UnknownModel, match="the hub gates them; accept the terms"):
        resolve("org/name")


def test_a_transfer_that_breaks_off_can_be_taken_up_again(served):
    served.refused_files = (403, "")  # a 5xx would do, but the library tries those again for 20 s
    with pytest.raises(
        HubUnreachable, match=r"expected to download it into .* broke off .* it goes on where it stopped"
    ):
        resolve("org/name")
    served.refused_files = None
    assert resolve("org/name").commit == SHA


def test_a_hub_in_trouble_counts_as_unreachable_unless_the_cache_helps(served, cache):
    served.refusal = (500, "")
    with pytest.raises(HubUnreachable, match=r"it answered with status 500, and the cache .* does not hold it; either"):
        resolve("org/name")
    snapshot = store(cache)
    assert resolve("org/name").folder == snapshot


# No hub


@contextlib.contextmanager
def loopback_socket():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_an_unreachable_hub_says_both_possibilities_at_once(cache, monkeypatch):
    with loopback_socket() as closed:  # bound and not listening: every connection is refused
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        text = (
            r"expected to reach the hub, it could not be reached \(ConnectError\), and the cache .* does not hold it; "
        )
        with pytest.raises(HubUnreachable, match=text + "either you are offline or the name is wrong: check the name"):
            resolve("gpt2")
        snapshot = store(cache, "gpt2")
        assert resolve("gpt2").folder == snapshot


def test_a_hub_that_never_answers_is_given_up_on(monkeypatch):
    monkeypatch.setattr(hub, "_PATIENCE_S", 0.3)
    with loopback_socket() as silent:
        silent.listen()  # accepts, and says nothing
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(HubUnreachable, match=r"it did not answer within 0\.3 s, and the cache"):
            resolve("gpt2")


def test_a_call_that_ignores_every_timeout_is_left_behind():
    forever, answered = threading.Event(), []
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        hub._within(0.05, lambda: answered.append(forever.wait(60)))
    assert not answered
    forever.set()


def test_patience_leaves_time_for_the_start_of_the_program():
    assert hub._PATIENCE_S < 10
