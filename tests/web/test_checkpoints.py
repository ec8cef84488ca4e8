"""The pages of checkpoints: who may do what, that nothing goes before it was shown, and what can be downloaded."""

import io
import os
import re
import tarfile
from pathlib import Path

import pytest

from experiments.models import Checkpoint, Errand, ErrandKind
from experiments.services import checkpoint_files, errands
from experiments.states import JobState
from tests import make
from tests.web.pages import asks_the_same_of, body, links, text_of, total
from trainer.checkpoints import Manifest, read_checkpoint, write_checkpoint


@pytest.fixture
def data(settings, tmp_path):
    settings.LIONWEB_DATA = tmp_path.resolve()
    return settings.LIONWEB_DATA


@pytest.fixture
def run(person, data):
    run = make.make_finished_run(person("member"))
    parent = None
    for row in Checkpoint.objects.select_related("iteration__run").order_by("pk"):
        write_files(row)
        Checkpoint.objects.filter(pk=row.pk).update(parent=parent)
        parent = row
    return run


def write_files(row: Checkpoint, *, method: str = "full", base: str = "acme/base-1b") -> None:
    def save(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(os.urandom(3000))
        (folder / "config.json").write_text("{}")

    manifest = Manifest(
        config=row.iteration.run.config, method=method, base=base, revision="abc123", iteration=row.iteration.number, step=row.step,
        first_loss=row.first_loss, last_loss=row.last_loss, seed=4711,
    )  # fmt: skip
    folder = checkpoint_files.folder_of(row)
    write_checkpoint(folder, manifest, save, weight_bytes=1)
    size = checkpoint_files.size_of(folder)
    Checkpoint.objects.filter(pk=row.pk).update(manifest=vars(read_checkpoint(folder)), size_bytes=size)


def of(run, number) -> Checkpoint:
    return Checkpoint.objects.select_related("iteration__run").get(iteration__run=run, iteration__number=number)


def url(run, number, end="") -> str:
    return f"/checkpoints/{of(run, number).pk}/{end}"


def exported(run, number, person, kind=ErrandKind.MERGED, **files: bytes) -> Errand:
    """A finished export with these files."""
    errand = errands.ask(kind, of(run, number), by=person("member"))
    folder = checkpoint_files.export_folder(errand)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    result = {"path": f"exports/{of(run, number).pk}/{folder.name}", "size": checkpoint_files.size_of(folder)}
    Errand.objects.filter(pk=errand.pk).update(state=JobState.FINISHED, result=result)
    return errand


# One checkpoint


def test_the_page_tells_what_made_it_and_where_it_lies(client_of, run, data):
    page = body(client_of("viewer").get(url(run, 1)))
    words = text_of(page)
    for said in (
        "Checkpoint, iteration 1",
        "acme/base-1b @ abc123",
        "Seed 4711",
        "full, whole weights",
        "torch",
        str(data / of(run, 1).path),
    ):
        assert said in words
    for number in (0, 2):
        assert (url(run, number), f"{run.name}, iteration {number}") in links(page)
    for digest in of(run, 1).manifest["files"].values():
        assert digest in words
    assert "loop.iterations" in words
    assert "vllm serve" in words
    assert "from_pretrained" in words


def test_every_checkpoint_of_a_run_is_linked_from_its_page(client_of, run):
    found = links(body(client_of("viewer").get(f"/runs/{run.pk}/")))
    for number in range(3):
        assert (url(run, number), of(run, number).path) in found
    assert "/checkpoints/" in [address for address, _ in found]


def test_a_checkpoint_from_before_manifests_has_a_page_all_the_same(client_of, person):
    run = make.make_finished_run(person("member"))
    page = text_of(body(client_of("viewer").get(url(run, 0))))
    assert "Its files were not listed" in page
    assert "vllm serve" not in page


def test_an_adapter_whose_base_is_nowhere_points_at_its_merged_export(client_of, run, person, data):
    write_files(of(run, 0), method="lora", base="scratch-llama")
    page = body(client_of("member").get(url(run, 0)))
    assert "of no use alone" in text_of(page)
    for useless in ("vllm serve", "AutoPeft", "from_pretrained", "Export the adapter"):
        assert useless not in page
    errand = exported(run, 0, person, x=b"1")
    page = body(client_of("member").get(url(run, 0)))
    merged = checkpoint_files.export_folder(errand)
    assert f"vllm serve {merged} " in page
    assert f'AutoModelForCausalLM.from_pretrained("{merged}")' in text_of(page)
    assert "AutoPeft" not in page
    assert "--enable-lora" not in page
    client_of("member").post(url(run, 0, f"errands/{errand.pk}/delete"))
    assert "vllm serve" not in body(client_of("member").get(url(run, 0)))


def test_another_adapter_is_served_and_loaded_on_its_base(client_of, run):
    write_files(of(run, 0), method="lora")
    page = body(client_of("member").get(url(run, 0)))
    assert "of no use alone" not in page
    for useful in ("vllm serve acme/base-1b", "AutoPeftModelForCausalLM.from_pretrained", "Export the adapter"):
        assert useful in page


def test_a_missing_file_shows_before_anybody_verifies(client_of, run):
    (checkpoint_files.folder_of(of(run, 0)) / "config.json").unlink()
    assert "config.json missing" in text_of(body(client_of("viewer").get(url(run, 0))))


def test_a_viewer_sees_no_button(client_of, run, person):
    exported(run, 0, person)
    page = body(client_of("viewer").get(url(run, 0)))
    main = page[page.index("<main") :]
    assert "<form" not in main
    assert "Download" not in main
    assert "Merged weights" in main


POSTS = ("ask", "pin", "delete", "errands/{errand}/stop", "errands/{errand}/delete")


@pytest.mark.parametrize("end", POSTS)
def test_a_viewer_changes_nothing(client_of, run, person, end):
    errand = exported(run, 0, person, x=b"1")
    response = client_of("viewer").post(url(run, 0, end.format(errand=errand.pk)), {"kind": "verify", "pinned": "on"})
    assert response.status_code == 403
    assert not of(run, 0).pinned
    assert of(run, 0).deleted_at is None
    assert Errand.objects.count() == 1
    assert checkpoint_files.export_folder(errand).exists()


@pytest.mark.parametrize("end", [end for end in POSTS if end != "delete"])
def test_reading_changes_nothing(client_of, run, person, end):
    errand = exported(run, 0, person)
    response = client_of("member").get(url(run, 0, end.format(errand=errand.pk)))
    assert (response.status_code, response.headers["Location"]) == (302, url(run, 0))
    assert checkpoint_files.export_folder(errand).exists()


# Asking


def test_asking_queues_an_errand_and_the_page_asks_for_itself_until_it_is_over(client_of, run):
    client = client_of("member")
    page = body(client.post(url(run, 0, "ask"), {"kind": "verify"}, follow=True))
    assert "Asked for: check the files." in text_of(page)
    errand = Errand.objects.get()
    live = body(client.get(url(run, 0, "live")))
    assert 'data-live="1"' in page
    assert 'data-live="1"' in live
    assert "waits for a worker" in live
    held = errands.claim(errand.pk, worker="one")
    errands.end(held, JobState.FINISHED, result={"problems": ["<b>config.json</b> is missing."]})
    live = body(client.get(url(run, 0, "live")))
    assert "data-live" not in live
    assert "&lt;b&gt;config.json&lt;/b&gt; is missing." in live


def test_a_push_is_private_unless_it_is_said_otherwise(client_of, run):
    client = client_of("member")
    client.post(url(run, 0, "ask"), {"kind": "push", "repo": " lions/one "})
    assert Errand.objects.get().options == {"repo": "lions/one", "private": True, "weights": "merged"}
    client.post(url(run, 1, "ask"), {"kind": "push", "repo": "lions/one", "public": "on"})
    assert Errand.objects.get(checkpoint=of(run, 1)).options["private"] is False
    assert "Push to the Hub: lions/one, private" in text_of(body(client.get(url(run, 0))))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "push", "repo": "a/../b"}, "no name of a repository"),
        ({"kind": "gguf"}, "clone llama.cpp"),
        ({"kind": "answer"}, "cannot be asked"),
        ({"kind": "gguf", "stored_as": "--x"}, "cannot be asked"),
        ({}, "cannot be asked"),
    ],
)
def test_what_cannot_be_had_is_said_and_not_queued(client_of, run, asked, words):
    assert words in text_of(body(client_of("member").post(url(run, 0, "ask"), asked, follow=True)))
    assert not Errand.objects.exists()


def test_a_live_errand_can_be_stopped(client_of, run, person):
    errand = errands.ask(ErrandKind.MERGED, of(run, 0), by=person("member"))
    client_of("member").post(url(run, 0, f"errands/{errand.pk}/stop"))
    assert Errand.objects.get().state == JobState.STOPPED


def test_an_errand_is_found_under_its_own_checkpoint_alone(client_of, run, person):
    errand = exported(run, 0, person, x=b"1")
    for end in ("stop", "delete"):
        assert client_of("member").post(url(run, 1, f"errands/{errand.pk}/{end}")).status_code == 404
    assert client_of("member").get(url(run, 1, f"errands/{errand.pk}/download")).status_code == 404


# Downloads


def download(client, run, number, errand):
    return client.get(url(run, number, f"errands/{errand.pk}/download"))


def test_a_folder_comes_as_a_tar_of_the_announced_size(client_of, run, person):
    errand = exported(run, 0, person, config__json=b"{}", model__safetensors=os.urandom(2_500_000))
    response = download(client_of("member"), run, 0, errand)
    name = f"{run.name}-iteration-0-merged"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{name}.tar"'
    data = b"".join(response.streaming_content)
    assert len(data) == int(response.headers["Content-Length"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert sorted(tar.getnames()) == [f"{name}/config.json", f"{name}/model.safetensors"]


def test_a_hostile_name_of_a_run_stays_out_of_the_headers(client_of, run, person):
    run.name = '../"x"\\;é\u202e.exe'
    run.save()
    response = download(client_of("member"), run, 0, exported(run, 0, person, x=b"1"))
    assert re.fullmatch(r'attachment; filename="[a-z0-9-]+\.tar"', response.headers["Content-Disposition"])


def test_a_gguf_comes_as_the_file_it_is(client_of, run, person):
    response = download(client_of("member"), run, 0, exported(run, 0, person, ErrandKind.GGUF, lion__gguf=b"GGUF1"))
    assert b"".join(response.streaming_content) == b"GGUF1"
    assert "lion.gguf" in response.headers["Content-Disposition"]


def test_what_is_not_a_finished_export_is_no_download(client_of, run, person):
    client = client_of("member")
    waiting = errands.ask(ErrandKind.MERGED, of(run, 0), by=person("member"))
    assert download(client, run, 0, waiting).status_code == 404
    verified = errands.ask(ErrandKind.VERIFY, of(run, 0), by=person("member"))
    Errand.objects.filter(pk=verified.pk).update(state=JobState.FINISHED, result={"path": "../secret_key"})
    assert download(client, run, 0, verified).status_code == 404


def test_a_viewer_downloads_nothing(client_of, run, person):
    assert download(client_of("viewer"), run, 0, exported(run, 0, person, x=b"1")).status_code == 403


def test_a_deleted_export_is_gone_and_says_so(client_of, run, person):
    client, errand = client_of("member"), exported(run, 0, person, x=b"1")
    page = body(client.post(url(run, 0, f"errands/{errand.pk}/delete"), follow=True))
    assert "The export was deleted." in page
    assert not checkpoint_files.export_folder(errand).exists()
    assert download(client, run, 0, errand).status_code == 404


def test_an_export_that_a_run_begins_with_says_which_and_stays(client_of, run, person):
    errand = exported(run, 0, person, x=b"1")
    other = make.make_run(person("member"), name="Second round")
    other.config["student"]["model"] = str(checkpoint_files.export_folder(errand))
    other.save()
    page = text_of(body(client_of("member").post(url(run, 0, f"errands/{errand.pk}/delete"), follow=True)))
    assert "It stays: run Second round is not finished and begins with it." in page
    assert "Mend that" not in page
    assert checkpoint_files.export_folder(errand).is_dir()


def test_what_a_killed_export_left_can_be_deleted(client_of, run, person):
    errand = exported(run, 0, person, x=b"1")
    Errand.objects.filter(pk=errand.pk).update(state=JobState.CRASHED, reason="Worker one was not heard of any more. Ask again.")
    client = client_of("member")
    assert f"errands/{errand.pk}/delete" in body(client.get(url(run, 0)))
    client.post(url(run, 0, f"errands/{errand.pk}/delete"))
    assert not checkpoint_files.export_folder(errand).exists()
    assert f"errands/{errand.pk}/delete" not in body(client.get(url(run, 0)))


# Deleting


def test_deleting_names_what_stops_working_first(client_of, run, person):
    exported(run, 0, person, x=b"1")
    client = client_of("member")
    asked = text_of(body(client.get(url(run, 0, "delete"))))
    assert "What will not work any more" in asked
    assert "The download of its export: merged weights." in asked
    assert of(run, 0).deleted_at is None
    page = text_of(body(client.post(url(run, 0, "delete"), follow=True)))
    assert "Deleted 1 checkpoint" in page
    assert "files deleted" in page
    assert "config.json deleted" in page
    assert not checkpoint_files.folder_of(of(run, 0)).exists()


def test_a_pinned_checkpoint_is_not_deleted(client_of, run):
    client = client_of("member")
    client.post(url(run, 0, "pin"), {"pinned": "on"})
    assert "It stays: pinned." in text_of(body(client.get(url(run, 0, "delete"))))
    assert "It stays: pinned." in text_of(body(client.post(url(run, 0, "delete"), follow=True)))
    assert checkpoint_files.folder_of(of(run, 0)).exists()
    client.post(url(run, 0, "pin"), {"pinned": "off"})
    client.post(url(run, 0, "delete"))
    assert not checkpoint_files.folder_of(of(run, 0)).exists()


# The list and the policy


def test_the_list_shows_what_a_policy_would_free_and_deletes_nothing(client_of, run):
    client = client_of("member")
    assert total(body(client.get("/checkpoints/"))) == 3
    page = body(client.get("/checkpoints/?keep_last=1"))
    words = text_of(page)
    assert "2 checkpoints and 0 saves would go" in words
    assert "stays , one of the last of its run" in words
    assert page.count("goes</span>") == 2
    assert all(checkpoint_files.folder_of(of(run, number)).exists() for number in range(3))


def test_what_was_shown_is_what_goes(client_of, run):
    client = client_of("member")
    page = body(client.get("/checkpoints/?keep_last=1&keep_best=demo_skills&saves=on"))
    form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page[page.index('id="plan"') :]))
    answer = text_of(body(client.post("/checkpoints/free", form, follow=True)))
    assert "Deleted" in answer
    gone = {number for number in range(3) if not checkpoint_files.folder_of(of(run, number)).exists()}
    assert gone == {number for number in range(3) if str(of(run, number).pk) in form["ids"].split(",")}
    assert gone


def test_a_viewer_sees_the_plan_and_cannot_carry_it_out(client_of, run):
    client = client_of("viewer")
    page = body(client.get("/checkpoints/?keep_last=0"))
    assert "would go" in page
    assert "Delete these" not in page
    assert client.post("/checkpoints/free", {"keep_last": 0, "ids": of(run, 0).pk}).status_code == 403
    assert checkpoint_files.folder_of(of(run, 0)).exists()


@pytest.mark.parametrize("query", ["keep_last=", "keep_last=-1", "keep_last=x", "keep_last=1&keep_best=nothing"])
def test_a_policy_that_is_none_deletes_nothing(client_of, run, query):
    client = client_of("member")
    assert "Delete these" not in body(client.get(f"/checkpoints/?{query}"))
    data = dict(part.split("=") for part in query.split("&"))
    assert "Nothing was deleted" in text_of(body(client.post("/checkpoints/free", {**data, "ids": of(run, 0).pk}, follow=True)))
    assert checkpoint_files.folder_of(of(run, 0)).exists()


def test_more_checkpoints_and_errands_take_no_more_queries(client_of, run, person):
    client = client_of("viewer")

    def more():
        make.make_finished_run(person("member"), name="another")

    assert asks_the_same_of(client, "/checkpoints/?keep_last=1", after=more) <= 15
    exported(run, 0, person)
    assert asks_the_same_of(client, url(run, 0), after=lambda: [exported(run, 0, person) for _ in range(5)]) <= 14
