"""A checkpoint whose files a check found damaged is marked wherever it is shown."""

import pytest
from django.template.loader import render_to_string

from experiments.models import Checkpoint, Errand, ErrandKind
from experiments.states import JobState
from tests import make
from tests.web.pages import body, text_of

BROKEN = "model.safetensors: its sha256 is another than when it was written."


@pytest.fixture
def checkpoint(person) -> Checkpoint:
    run = make.make_finished_run(person("member"))
    return run.iterations.get(number=1).checkpoint


def checked(checkpoint: Checkpoint, person, *problems: str, kind=ErrandKind.VERIFY) -> Errand:
    result = {"problems": list(problems)}
    return Errand.objects.create(kind=kind, checkpoint=checkpoint, requested_by=person("member"), state=JobState.FINISHED, result=result)


def pages_of(client, checkpoint: Checkpoint) -> list[str]:
    run = checkpoint.iteration.run_id
    row = f'id="checkpoint-{checkpoint.pk}"'
    pages = [body(client.get(url)) for url in ("/checkpoints/", f"/runs/{run}/")]
    return [page[page.index(row) :].split("</tr>")[0] for page in pages]


def test_a_damaged_checkpoint_is_marked_in_the_list_and_on_the_page_of_its_run(client_of, person, checkpoint):
    checked(checkpoint, person, BROKEN)
    for row in pages_of(client_of("viewer"), checkpoint):
        assert "state-damaged" in row
        assert "on disk" not in row
    assert body(client_of("viewer").get("/checkpoints/")).count("state-damaged") == 1


@pytest.mark.parametrize("after", [ErrandKind.VERIFY, ErrandKind.RESTORE])
def test_what_was_mended_since_is_no_longer_marked(client_of, person, checkpoint, after):
    checked(checkpoint, person, BROKEN)
    checked(checkpoint, person, kind=after)
    for row in pages_of(client_of("viewer"), checkpoint):
        assert "state-damaged" not in row


def test_the_check_itself_is_not_called_finished(client_of, person, checkpoint):
    checked(checkpoint, person, BROKEN)
    page = body(client_of("viewer").get(f"/checkpoints/{checkpoint.pk}/live"))
    assert "state-damaged" in page
    assert "state-finished" not in page


def test_the_notice_names_the_files_and_what_to_do(person, checkpoint):
    assert not render_to_string("_checkpoint_health.html", {"checkpoint": checkpoint}).strip()
    checked(checkpoint, person, BROKEN, "<b>.json is missing.")
    notice = text_of(render_to_string("_checkpoint_health.html", {"checkpoint": checkpoint}))
    assert BROKEN in notice
    assert "launch a new run" in notice
    checkpoint.stored_at = "file:///mnt/share"
    assert "bring it back" in text_of(render_to_string("_checkpoint_health.html", {"checkpoint": checkpoint}))


def test_the_files_that_were_deleted_are_not_called_damaged(client_of, person, checkpoint):
    from django.utils import timezone

    checked(checkpoint, person, BROKEN)
    Checkpoint.objects.filter(pk=checkpoint.pk).update(deleted_at=timezone.now())
    for row in pages_of(client_of("viewer"), checkpoint):
        assert "state-damaged" not in row
