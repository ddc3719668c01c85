"""What `make lint` checks of the manual's English and links: tools/english.py and tools/manual.py."""

from __future__ import annotations

import pytest

from tools import english, manual


@pytest.fixture(scope="module", autouse=True)
def registered():
    english.register()


def said(tmp_path, monkeypatch, text: str) -> list[str]:
    monkeypatch.setattr(english, "REPO", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return list(english.found(page))


def test_a_word_of_ours_and_one_of_proselint_are_named_with_their_line(tmp_path, monkeypatch):
    told = said(tmp_path, monkeypatch, "# A page\n\nThe front door answers.\n\nIt is a very good page.\n")
    assert len(told) == 2
    assert told[0].startswith("page.md:3:") and "'web server, or load balancer' instead of 'front door'" in told[0]
    assert told[1].startswith("page.md:5:") and "very" in told[1]


@pytest.mark.parametrize(
    "text",
    [
        "Type `the front door`.\n",
        "Type:\n\n```\nsalt-run state.orch orch.deploy  # front door\n```\n",
        "1. Type:\n\n   ```\n   front door\n   ```\n",
        "[A link](front door.md), <!-- front door -->\n",
        "## Services\n\nServices run.\n",
        'He said "three dots"...\n',
    ],
)
def test_code_addresses_and_typesetting_are_left_alone(tmp_path, monkeypatch, text):
    assert said(tmp_path, monkeypatch, text) == []


def test_the_prose_of_a_page_keeps_its_places():
    text = "a `b` c\n\n```\nd\n```\ne\n"
    assert len(english.prose(text)) == len(text)
    assert english.prose(text).count("\n") == text.count("\n")


class Page:
    """A page of the site."""

    def __init__(self, name: str) -> None:
        self.file = type("File", (), {"src_uri": name})


@pytest.mark.parametrize(
    ("page", "text", "made"),
    [
        ("readme.md", "[x](docs/pillar.md#rules), [y](SECURITY.md)", "[x](pillar.md#rules), [y](security.md)"),
        ("pillar.md", "[x](../README.md#a), [y](web.md)", "[x](readme.md#a), [y](web.md)"),
        ("pillar.md", "[x](../NOTHING.md)", "[x](../NOTHING.md)"),
    ],
)
def test_links_out_of_the_manual_lead_to_pages_of_the_site(page, text, made):
    assert manual.on_page_markdown(text, Page(page)) == f"{made}\n"


def test_what_stands_in_an_item_of_a_list_stands_four_spaces_in():
    text = "1. A:\n\n   ```\n   b\n   ```\n   c\n2. D\n   e\n\nF\n\n- g\n\n  h\n- i\n- j\n\n```\n- k\n  l\n```\n   m\n"
    assert manual.in_items(text) == (
        "1. A:\n\n    ```\n    b\n    ```\n    c\n\n2. D\n    e\n\nF\n\n- g\n\n    h\n\n- i\n- j\n\n"
        "```\n- k\n  l\n```\n   m\n"
    )
