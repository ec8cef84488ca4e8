"""Exports: other software reads what comes out, the merge changes no answer, and nothing half done or private leaves."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import http_server
from tests.http_server import Answer
from tests.stack import free_port
from tests.trainer.tuning_cases import imitate, make_config
from trainer import checkpoints, export, export_child, storage
from trainer.checkpoints import MANIFEST, Manifest, read_checkpoint, verify_checkpoint
from trainer.config import RunConfig, stored_config
from trainer.errors import Cancelled, ConfigError, NoSpace, TrainerError
from trainer.model_card import Told, model_card
from trainer.served_student import ServedStudent
from trainer.speaker import never
from trainer.tar_stream import PIECE_BYTES, tar_of
from trainer.vllm_server import vllm_command

TOKEN = "hf_not_a_real_token"
CONVERTER = """
import argparse, pathlib, sys
from told import MAGIC
parser = argparse.ArgumentParser()
parser.add_argument("model"); parser.add_argument("--outfile"); parser.add_argument("--outtype")
asked = parser.parse_args()
import os
assert "HF_TOKEN" not in os.environ and "SECRET_KEY" not in os.environ
assert (pathlib.Path(asked.model) / "model.safetensors").is_file()
print("converting")
BEHAVIOUR
pathlib.Path(asked.outfile).write_bytes(MAGIC + asked.outtype.encode())
"""


def quiet(note: str) -> None:
    """A `tell` nobody listens to."""


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A checkpoint tuned whole."""
    return imitate(make_config(), tmp_path_factory.mktemp("full"))[0]


@pytest.fixture(scope="module")
def adapter(full, tmp_path_factory) -> Path:
    """An adapter on the full checkpoint."""
    return imitate(make_config(student={"method": "lora"}), tmp_path_factory.mktemp("lora"), start=full, iteration=1)[0]


def read_config(checkpoint: Path) -> RunConfig:
    return stored_config(read_checkpoint(checkpoint).config)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def lone_adapter(tmp_path_factory) -> Path:
    """An adapter on random weights, which are nowhere on disk."""
    return imitate(make_config(student={"method": "lora"}, first_steps=1), tmp_path_factory.mktemp("lone"))[0]


@pytest.fixture
def merge_here(monkeypatch):
    """Merges in this process: a child of its own takes seconds."""
    monkeypatch.setattr(export, "_in_child", lambda task, **options: export_child.merge(task, lambda event: None))


# Merged


def test_a_full_checkpoint_becomes_a_plain_folder_without_our_manifest(full, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = contents(full)
    export.export_merged(full, tmp_path / "out", card="# A card", should_stop=never, tell=quiet)
    out = contents(tmp_path / "out")
    assert MANIFEST not in out
    assert out.pop("README.md") == b"# A card"
    assert out == {name: data for name, data in before.items() if name not in (MANIFEST, "README.md")}
    assert contents(full) == before  # not through a link either
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.hidden_size == 32
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_weights_of_a_full_checkpoint_are_linked_and_not_copied(full, tmp_path_factory):
    out = full.parent / "out"
    export.export_merged(full, out, card="", should_stop=never, tell=quiet)
    assert (out / "model.safetensors").stat().st_ino == (full / "model.safetensors").stat().st_ino


def test_the_merged_weights_say_what_base_and_adapter_say_together(adapter, full, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export.export_merged(adapter, tmp_path / "out", card="", should_stop=never, tell=quiet)
    assert "adapter_config.json" not in contents(tmp_path / "out")
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        together = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(full), adapter).eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(ids).logits
        base = AutoModelForCausalLM.from_pretrained(full).eval()(ids).logits
    assert (merged - together).abs().max() < 1e-5
    assert (merged - base).abs().max() > 1e-3


def test_the_card_of_an_adapter_is_not_written_into_the_checkpoint(adapter, tmp_path):
    before = contents(adapter)
    assert "README.md" in before  # peft writes one of its own
    export.export_adapter(adapter, tmp_path / "out", card="# Ours", tell=quiet)
    assert contents(adapter) == before
    assert (tmp_path / "out" / "README.md").read_text() == "# Ours"
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before["adapter_model.safetensors"]
    assert MANIFEST not in contents(tmp_path / "out")


def test_a_full_checkpoint_has_no_adapter(full, tmp_path):
    with pytest.raises(ConfigError, match="tuned whole"):
        export.export_adapter(full, tmp_path / "out", card="", tell=quiet)
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_base_is_nowhere_is_not_exported_alone(lone_adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for ask in (
        lambda: export.export_adapter(lone_adapter, tmp_path / "out", card="", tell=quiet),
        lambda: push(lone_adapter, tmp_path / "out", adapter_alone=True),
    ):
        with pytest.raises(ConfigError, match=r"scratch-llama, was made from random weights .* Export the merged weights instead"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_such_an_adapter_is_served_merged_for_the_time_of_the_stage(lone_adapter, merge_here):
    from transformers import AutoModelForCausalLM

    tuner: Any = None
    student = ServedStudent(read_config(lone_adapter), tuner, iteration=0, start=lone_adapter)
    with student._servable() as (folder, manifest):
        assert manifest is None
        assert folder.parent == lone_adapter.parent
        assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 32
        assert not (folder / "adapter_config.json").exists()
        assert vllm_command(folder, manifest, 8000)[2] == str(folder)
    assert not folder.exists()


def test_a_damaged_checkpoint_is_not_exported(full, tmp_path):
    copy = tmp_path / "copy"
    storage.store(full, (tmp_path / "there").as_uri(), should_stop=never, tell=quiet)
    (tmp_path / "there").rename(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json is not what was written"):
        export.export_merged(copy, tmp_path / "out", card="", should_stop=never, tell=quiet)
    assert list(tmp_path.iterdir()) == [copy]


def test_a_merge_asks_for_what_the_merged_weights_take(lone_adapter, merge_here, tmp_path, monkeypatch):
    export.export_merged(lone_adapter, tmp_path / "out", card="", should_stop=never, tell=quiet)
    taken = (tmp_path / "out" / "model.safetensors").stat().st_size
    for free, fits in ((taken - 10_000, False), (taken + 10_000, True)):
        monkeypatch.setattr(checkpoints, "free_bytes", lambda folder, free=free: checkpoints.SPARE_BYTES + free)
        with contextlib.nullcontext() if fits else pytest.raises(NoSpace, match="The merged student needs"):
            export.export_merged(lone_adapter, tmp_path / f"out-{fits}", card="", should_stop=never, tell=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-True"]


def test_a_gguf_asks_for_its_own_size_beside_the_weights(full, llama_cpp, tmp_path, monkeypatch):
    weights = (full / "model.safetensors").stat().st_size
    free = checkpoints.SPARE_BYTES + weights
    monkeypatch.setattr(checkpoints, "free_bytes", lambda folder: free if folder == tmp_path else weights // 3)
    with pytest.raises(NoSpace, match="The GGUF needs"):
        gguf(full, tmp_path / "out", llama_cpp())


def test_half_the_precision_asks_for_half_the_room(full):
    numbers = export._gguf_bytes(full, "f32") / 4
    assert 0.9 * (full / "model.safetensors").stat().st_size < 4 * numbers < (full / "model.safetensors").stat().st_size
    assert export._gguf_bytes(full, "f16") == 2 * numbers


def test_files_that_cannot_be_linked_are_counted(full, tmp_path, monkeypatch):
    manifest = read_checkpoint(full)
    assert export._bytes_to_copy(full, manifest, tmp_path / "out") == 0
    elsewhere = Path("/proc/out")  # another file system
    assert export._bytes_to_copy(full, manifest, elsewhere) == sum((full / name).stat().st_size for name in manifest.files)


def test_a_stopped_merge_leaves_nothing(adapter, tmp_path):
    with pytest.raises(Cancelled, match="Nothing half written was left"):
        export.export_merged(adapter, tmp_path / "out", card="", should_stop=lambda: True, tell=quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_names_a_file_elsewhere_is_refused(full, tmp_path):
    manifest = replace(read_checkpoint(full), files={"../secret": "0"})
    with pytest.raises(ConfigError, match=r"\.\./secret"):
        export.link_files(full, manifest, tmp_path)


# GGUF


@pytest.fixture
def llama_cpp(tmp_path):
    """Makes a folder with a converter that behaves in a way."""

    def make(behaviour: str = "") -> str:
        folder = tmp_path / "llama.cpp"
        folder.mkdir()
        (folder / "told.py").write_text("MAGIC = b'GGUF'")
        (folder / export.CONVERTER).write_text(CONVERTER.replace("BEHAVIOUR", behaviour))
        return str(folder)

    return make


def gguf(checkpoint: Path, out: Path, llama_cpp: str, **options):
    asked = {"name": "lion", "stored_as": "f16", "should_stop": never, "tell": quiet, **options}
    return export.export_gguf(checkpoint, out, llama_cpp=llama_cpp, **asked)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_the_converter_gets_the_whole_weights_and_no_secret(kind, request, llama_cpp, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SECRET_KEY", "x")
    gguf(request.getfixturevalue(kind), tmp_path / "out", llama_cpp())
    assert contents(tmp_path / "out") == {"lion-f16.gguf": b"GGUFf16"}


def test_without_a_converter_it_says_how_to_get_one(full, tmp_path):
    for folder in ("", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"clone llama.cpp .* set LIONWEB_LLAMA_CPP"):
            gguf(full, tmp_path / "out", folder)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("raise NotImplementedError('Model Foo is not supported')", "does not take this model .NotImplementedError: Model Foo"),
        ("sys.exit(3)", "ended with status 3"),
        ("sys.exit(0)", "left no file"),
    ],
)
def test_a_converter_that_refuses_leaves_its_words_and_no_file(full, llama_cpp, tmp_path, behaviour, words):
    with pytest.raises(TrainerError, match=words):
        gguf(full, tmp_path / "out", llama_cpp(behaviour))
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


def test_a_converter_is_stopped_at_once(full, llama_cpp, tmp_path):
    folder, asked = llama_cpp("import time; time.sleep(60)"), threading.Event()
    threading.Timer(2, asked.set).start()
    with pytest.raises(Cancelled):
        gguf(full, tmp_path / "out", folder, should_stop=asked.is_set)
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


def test_only_known_types_reach_the_converter(full, llama_cpp, tmp_path):
    with pytest.raises(ConfigError, match="no GGUF type"):
        gguf(full, tmp_path / "out", llama_cpp(), stored_as="--help")


@pytest.mark.skipif(not os.environ.get("LIONWEB_LLAMA_CPP"), reason="needs llama.cpp: set LIONWEB_LLAMA_CPP to a clone of it")
def test_the_real_converter_says_that_it_does_not_know_a_tokenizer_of_bytes(full, tmp_path):
    with pytest.raises(ConfigError, match="does not take this model"):
        gguf(full, tmp_path / "out", os.environ["LIONWEB_LLAMA_CPP"])


# The Hub


class Hub(http_server.Server):
    """The few routes of the Hub that an upload needs, and what was uploaded."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[dict[str, object]] = []
        self.stored: dict[str, bytes] = {}
        self.committed: dict[str, bytes] = {}
        self.status = 200
        self.private = True
        self.answer = self._hub

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _hub(self, asked: http_server.Asked) -> Answer:
        if self.status != 200:
            return Answer(self.status, {"error": f"not with the token {TOKEN}"})
        if asked.path == "/api/repos/create":
            self.made.append(asked.data)
            return Answer(body={"url": f"{self.url}/lions/{asked.data['name']}", "name": f"lions/{asked.data['name']}"})
        if "/preupload/" in asked.path:
            files = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in asked.data["files"]]
            return Answer(body={"files": files})
        if asked.path.endswith("/info/lfs/objects/batch"):
            objects = [{**o, "actions": {"upload": {"href": f"{self.url}/put/{o['oid']}"}}} for o in asked.data["objects"]]
            return Answer(body={"transfer": "basic", "objects": objects})
        if asked.path.startswith("/put/"):
            self.stored[asked.path.removeprefix("/put/")] = asked.body
            return Answer()
        if "/commit/" in asked.path:
            for line in map(json.loads, asked.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.committed[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.committed[value["path"]] = self.stored[value["oid"]]
            return Answer(body={"commitUrl": f"{self.url}/lions/x/commit/abc", "commitOid": "abc", "success": True})
        return Answer(body={"id": "lions/lion-1", "sha": "abc", "private": self.private, "siblings": []})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(http_server._Handler, "do_PUT", http_server._Handler._answer, raising=False)
    with http_server.running(Hub()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield server


def push(checkpoint: Path, work: Path, **options):
    asked = {
        "repo": "lion-1",
        "private": True,
        "adapter_alone": False,
        "card": "# A card\n",
        "should_stop": never,
        "tell": quiet,
        **options,
    }
    return export.push(checkpoint, work, **asked)


def test_a_push_uploads_weights_and_card_as_one_private_commit(full, hub, tmp_path):
    told = push(full, tmp_path / "work")
    assert told == {"url": f"{hub.url}/lions/lion-1", "commit": "abc"}
    assert [made["visibility"] for made in hub.made] == ["private"]
    assert hub.committed["model.safetensors"] == (full / "model.safetensors").read_bytes()
    assert hub.committed["README.md"] == b"# A card\n"
    assert MANIFEST not in hub.committed
    assert {asked.headers.get("authorization") for asked in hub.asked if not asked.path.startswith("/put/")} == {f"Bearer {TOKEN}"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refused .HTTP 401.: the token in HF_TOKEN"), (403, "HF_TOKEN"), (400, "HTTP 400"), (501, "unwell")]
)
def test_what_the_hub_refuses_is_told_without_the_token(full, hub, tmp_path, status, words):
    hub.status = status
    with pytest.raises(TrainerError, match=words) as caught:
        push(full, tmp_path / "work")
    assert TOKEN not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_goes_in_private_to_a_repository_that_is_public(full, hub, tmp_path):
    hub.private = False
    with pytest.raises(ConfigError, match="lions/lion-1 is there already and public"):
        push(full, tmp_path / "work")
    assert hub.committed == {}
    push(full, tmp_path / "work", private=False)
    assert "model.safetensors" in hub.committed


def test_a_hub_that_is_not_there_is_a_sentence(full, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrainerError, match="could not be reached"):
        push(full, tmp_path / "work")


def test_an_adapter_on_a_folder_of_this_machine_is_not_pushed_alone(adapter, hub, tmp_path):
    with pytest.raises(ConfigError, match="nobody on the Hub has"):
        push(adapter, tmp_path / "work", adapter_alone=True)
    assert hub.asked == []


def test_without_a_token_nothing_is_sent(full, hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="set HF_TOKEN"):
        push(full, tmp_path / "work")
    assert hub.asked == []


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "a b", "-x", "a--b", "x.git", "a/" + "b" * 97, "https://hub/a", "a\nb"])
def test_a_name_the_hub_could_not_have_is_refused(repo):
    with pytest.raises(ConfigError, match="no name of a repository"):
        export.require_repo(repo)


# The card


def test_a_card_tells_where_the_student_comes_from_and_breaks_on_no_name(full):
    manifest = replace(read_checkpoint(full), base="acme/base-1b", revision="r`1|\n# Boo")
    told = Told(
        name="lion <b>1</b>\n# Boo",
        seed_pool="pool | `x`",
        licence="CC0-1.0",
        teacher="big-0301",
        scores=[("demo_skills", 0.5, 0.049, 360)],
    )
    card = model_card(manifest, told)
    assert card.startswith('---\nlibrary_name: transformers\npipeline_tag: text-generation\nbase_model: "acme/base-1b"\n')
    for words in ("`acme/base-1b`", "`r'1/ # Boo`", "`pool / 'x'`", "`CC0-1.0`", "`big-0301`", "50.0%", "± 4.9%", manifest.digest, "torch"):
        assert words in card
    assert "\n# Boo" not in card
    assert "<b>" not in card


def test_a_card_names_no_path_of_this_machine(adapter, full):
    card = model_card(read_checkpoint(adapter), Told(name="lion"))
    assert str(full) not in card
    assert "base_model" not in card
    assert f"a local folder named {full.name}" in card


# The team's storage


def test_a_copy_is_whole_and_comes_back(full, tmp_path):
    url = (tmp_path / "share" / "iteration-0").as_uri()
    storage.store(full, url, should_stop=never, tell=quiet)
    assert contents(tmp_path / "share" / "iteration-0") == contents(full)
    storage.bring_back(url, tmp_path / "back", files=read_checkpoint(full).files, size=1, should_stop=never, tell=quiet)
    assert verify_checkpoint(tmp_path / "back") == []
    assert contents(tmp_path / "back") == contents(full)


def test_the_same_in_a_storage_that_is_no_disk(full, tmp_path):
    url = "memory://bucket/iteration-0"
    storage.store(full, url, should_stop=never, tell=quiet)
    storage.bring_back(url, tmp_path / "back", files=read_checkpoint(full).files, size=1, should_stop=never, tell=quiet)
    assert contents(tmp_path / "back") == contents(full)


def test_a_copy_that_reads_back_other_than_it_was_sent_does_not_count(full, tmp_path, monkeypatch):
    real = storage._copy

    def flips_a_bit(source, sink, should_stop):
        return real(source, sink, should_stop) if sink else "0" * 64

    monkeypatch.setattr(storage, "_copy", flips_a_bit)
    with pytest.raises(TrainerError, match="its sha256 differs"):
        storage.store(full, tmp_path.as_uri(), should_stop=never, tell=quiet)
    assert not (tmp_path / MANIFEST).exists()


def test_a_damaged_or_other_copy_does_not_come_back(full, tmp_path):
    share, files = tmp_path / "share", read_checkpoint(full).files
    storage.store(full, share.as_uri(), should_stop=never, tell=quiet)
    with pytest.raises(ConfigError, match="of another checkpoint"):
        storage.bring_back(share.as_uri(), tmp_path / "back", files={"x": "0"}, size=1, should_stop=never, tell=quiet)
    (share / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json is not what was written"):
        storage.bring_back(share.as_uri(), tmp_path / "back", files=files, size=1, should_stop=never, tell=quiet)
    (share / "config.json").unlink()
    with pytest.raises(ConfigError, match="There is no copy"):
        storage.bring_back(share.as_uri(), tmp_path / "back", files=files, size=1, should_stop=never, tell=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["share"]


def test_a_stopped_copy_has_no_manifest(full, tmp_path):
    with pytest.raises(Cancelled):
        storage.store(full, tmp_path.as_uri(), should_stop=lambda: True, tell=quiet)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("url", ["", "bucket", "s3://key:secret@bucket/x", "s3://bucket/x?token=1", "s3://"])
def test_a_url_that_names_nothing_or_holds_a_key_is_refused(url):
    with pytest.raises(ConfigError, match="LIONWEB_STORAGE_URL"):
        storage.require_url(url)


def test_a_storage_nobody_can_reach_says_what_to_install(full):
    with pytest.raises(TrainerError, match=r"s3fs|storage failed"):
        storage.store(full, "s3://127.0.0.1-no-such/x" if not _has("s3fs") else "nosuch://x/y", should_stop=never, tell=quiet)


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


# Downloads


def test_a_tar_has_the_size_it_announces_and_holds_every_file(tmp_path):
    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "deep" / ("long" * 40)).write_bytes(b"x" * 1000)
    (folder / "big").write_bytes(os.urandom(3 * PIECE_BYTES + 17))
    (folder / "link").symlink_to("/etc/passwd")
    stream = tar_of(folder, name="lion")
    pieces = list(stream)
    assert sum(map(len, pieces)) == stream.size
    assert max(map(len, pieces)) <= PIECE_BYTES
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    assert {name: hashlib.sha256(data).digest() for name, data in found.items()} == {
        f"lion/{name}": hashlib.sha256(data).digest() for name, data in contents(folder).items() if name != "link"
    }


def test_a_file_that_shrinks_breaks_the_tar_off(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 4000)
    stream = tar_of(tmp_path, name="lion")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="became shorter"):
        list(stream)


def test_a_manifest_without_extras_makes_a_card():
    manifest = Manifest(config={}, method="lora", base="acme/b", revision="", iteration=0, step=1, first_loss=2, last_loss=1, seed=3)
    assert "library_name: peft" in model_card(manifest, Told(name=""))
    assert "library_name: transformers" in model_card(manifest, Told(name=""), merged=True)
