"""Seed pools: imported whole or not at all, with every problem named by its line."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command

from experiments.models import SeedPool
from experiments.services import pools
from tests import make
from tests.web.pages import asks_the_same_of, body, text_of, total

GOOD = '{"instruction": "Name a river."}\n{"instruction": "Add.", "input": "1 2"}\n{"instruction": "Name a river."}\n'
BAD = '{"instruction": "Name a river."}\nnot json\n{"instruction": ""}\n'


def test_a_member_imports_a_file(client_of):
    file = SimpleUploadedFile("mine.jsonl", GOOD.encode())
    response = client_of("member").post("/pools/import", {"name": "mine", "licence": "CC0-1.0", "file": file}, follow=True)
    pool = SeedPool.objects.get()
    assert response.redirect_chain[-1][0] == f"/pools/{pool.pk}/"
    assert (pool.instructions.count(), pool.duplicates, pool.licence, pool.source) == (2, 1, "CC0-1.0", "mine.jsonl")
    assert pool.owner is not None
    assert "Name a river." in body(response)


def test_a_member_imports_pasted_text(client_of):
    client_of("member").post("/pools/import", {"name": "pasted", "text": GOOD})
    assert SeedPool.objects.get().instructions.count() == 2


def test_each_bad_line_is_named_what_was_typed_is_kept_and_nothing_is_imported(client_of):
    response = client_of("member").post("/pools/import", {"name": "mine", "licence": "mine too", "text": BAD})
    page = body(response)
    assert response.status_code == 422
    assert "2 problems" in text_of(page)
    assert '<td class="num">2</td>' in page
    assert '<td class="num">3</td>' in page
    assert "not json" in page
    assert 'value="mine too"' in page
    assert not SeedPool.objects.exists()


def test_a_file_that_is_not_utf8_is_named_by_its_line(client_of):
    file = SimpleUploadedFile("latin.jsonl", GOOD.encode() + '{"instruction": "Größe"}'.encode("latin-1"))
    page = body(client_of("member").post("/pools/import", {"name": "mine", "file": file}))
    assert '<td class="num">4</td>' in page
    assert "Not UTF-8" in page


def test_neither_file_nor_text_and_a_taken_name_are_refused_beside_their_fields(client_of, db):
    client = client_of("member")
    assert "Choose a file" in text_of(body(client.post("/pools/import", {"name": "mine"})))
    make.make_pool("mine")
    page = text_of(body(client.post("/pools/import", {"name": "mine", "text": GOOD})))
    assert "This name is taken." in page


def while_reading(monkeypatch, reader: str, *, name: str) -> None:
    """Let somebody else make a pool of the name after it was looked for, while the instructions are read."""
    real = getattr(pools, reader)

    def read(*args: object, **options: object) -> object:
        if not SeedPool.objects.filter(name=name).exists():
            make.make_pool(name)
        return real(*args, **options)

    monkeypatch.setattr(pools, reader, read)


def test_a_name_taken_in_the_meantime_is_refused_beside_its_field(client_of, monkeypatch):
    while_reading(monkeypatch, "parse_seed_pool", name="mine")
    response = client_of("member").post("/pools/import", {"name": "mine", "licence": "kept", "text": GOOD})
    page = body(response)
    assert response.status_code == 422
    assert "This name is taken." in text_of(page[page.index('class="field field-name') : page.index('class="field field-licence')])
    assert 'value="kept"' in page
    assert SeedPool.objects.get().source == "tests"


def test_two_launches_that_make_one_demo_pool_share_it(db, monkeypatch):
    while_reading(monkeypatch, "demo_seed_pool", name="demo, seed 5")
    assert pools.get_demo_pool(5) == SeedPool.objects.get()


@pytest.mark.parametrize("name", ["demo, seed 0", " Demo, Seed 12", "demo, seed"])
def test_the_names_of_the_demos_pools_are_refused_beside_their_field(client_of, name):
    response = client_of("member").post("/pools/import", {"name": name, "text": GOOD})
    assert response.status_code == 422
    assert "Names that begin with 'demo, seed' are the demo's own." in text_of(body(response))
    assert not SeedPool.objects.exists()


def test_the_command_refuses_them_too(tmp_path, db):
    file = tmp_path / "demo, seed 1.jsonl"
    file.write_text(GOOD)
    with pytest.raises(CommandError, match="the demo's own"):
        call_command("import_pool", str(file))


def test_hostile_lines_are_shown_letter_for_letter(client_of):
    bad = '{"<img src=x onerror=alert(1)>": "</textarea><script>alert(2)</script>"}'
    page = body(client_of("member").post("/pools/import", {"name": "mine", "text": bad}))
    assert "<img src=x" not in page
    assert "</textarea><script>" not in page


def test_nobody_less_than_a_member_imports(client_of, client):
    assert client_of("viewer").post("/pools/import", {"name": "x", "text": GOOD}).status_code == 403
    assert client.post("/pools/import", {"name": "x", "text": GOOD}).status_code == 302
    assert not SeedPool.objects.exists()


def test_the_list_counts_and_takes_no_more_queries_for_more_pools(client_of, db):
    make.make_pool("one", size=7)
    client = client_of("viewer")
    assert "7" in text_of(body(client.get("/pools/")))
    assert asks_the_same_of(client, "/pools/", after=lambda: [make.make_pool(f"pool {i}") for i in range(5)]) <= 5


def test_a_pool_is_paged_and_takes_no_more_queries_for_more_rows(client_of, db):
    small, large = make.make_pool("small", size=3), make.make_pool("large", size=120)
    client = client_of("viewer")
    assert total(body(client.get(f"/pools/{large.pk}/"))) == 120
    amounts = {asks_the_same_of(client, f"/pools/{pool.pk}/", after=lambda: None) for pool in (small, large)}
    assert len(amounts) == 1


def test_the_command_imports_and_says_how_many(tmp_path, db, capsys):
    file = tmp_path / "rivers.jsonl"
    file.write_text(GOOD)
    call_command("import_pool", str(file), "--licence", "CC0-1.0")
    assert SeedPool.objects.get(name="rivers").licence == "CC0-1.0"
    assert "Imported rivers: 2 instructions, 1 exact repeats dropped." in capsys.readouterr().out


def test_the_command_names_bad_lines_and_missing_files(tmp_path, db):
    file = tmp_path / "bad.jsonl"
    file.write_text(BAD)
    with pytest.raises(CommandError, match="line 2"):
        call_command("import_pool", str(file), "--name", "bad")
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("import_pool", str(tmp_path / "none.jsonl"), "--name", "none")
    assert not SeedPool.objects.exists()
