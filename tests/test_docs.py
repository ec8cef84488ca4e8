"""The documentation says what the code does."""

import re
from pathlib import Path

from lionweb import settings
from tests.stack import ROOT

ROW = re.compile(r"^\| `(\w+)` \| (.*?) \|", re.MULTILINE)
SETTING = re.compile(r'env_(?:str|int|float|bool|list)\("(\w+)", ("?)([^")]*)\2\)')


def read(path: str) -> str:
    return (ROOT / path).read_text()


def test_every_setting_is_in_the_table_and_the_table_has_no_other() -> None:
    in_code = set(re.findall(r'env_(?:str|int|float|bool|list)\("(\w+)"', read("lionweb/settings.py")))
    in_code |= {name for path in (ROOT / "trainer").glob("*.py") for name in re.findall(r'_VARIABLE = "(LIONWEB_\w+)"', path.read_text())}

    assert {name for name, _ in ROW.findall(read("docs/settings.md"))} == in_code


def test_the_defaults_in_the_table_are_those_of_the_code() -> None:
    documented = dict(ROW.findall(read("docs/settings.md")))
    defaults = {name: value for name, _, value in SETTING.findall(read("lionweb/settings.py")) if value and "{" not in value}

    assert len(defaults) > 10
    for name, value in defaults.items():
        assert value.lower() in documented[name].lower(), name


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_the_data_folder_of_the_tests_is_not_the_users() -> None:
    assert Path(settings.LIONWEB_DATA) != ROOT / "var"
