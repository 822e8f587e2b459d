"""Every page: its links lead somewhere, its paths and modules exist, its commands parse."""

import ast
import re

import pytest

from moe_prompt.studies import loading as studies
from tests.builders.pages import PAGES, ROOT, commands, is_named, parse, section
from tests.test_folders import ORDER, VISION

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
FILES = ("my_study.py", "scaled.py")  # a reader's own


def anchors(path):
    """What the headings of a page can be linked by."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each_page
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each_page
def test_paths_and_modules_exist(path):
    text = path.read_text()
    for name in re.findall(r"`((?:moe_prompt|tests|experiments|docs|notebooks|figures)/[\w./-]*)", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(moe_prompt(?:\.\w+)+)`", text):
        assert any((ROOT / name.replace(".", "/")).with_suffix(end).exists() for end in (".py", "")), name
    assert not re.search(r"/(tmp|work|home|root)/", text)


def test_modules_of_the_glossary_exist():
    found = re.findall(r"`([\w/]+\.py)`", (ROOT / "docs" / "glossary.md").read_text())
    assert len(found) > 50 and all((ROOT / "moe_prompt" / name).is_file() for name in found)


def test_no_word_is_defined_twice():
    page = (ROOT / "docs" / "glossary.md").read_text()
    words = [word for row in re.findall(r"^\| ([^|]+) \|", page, flags=re.M) for word in row.split(", ")]
    words = [word for word in words if word not in ("word", "---")]
    assert len(words) == len(set(words)) > 60


@each_page
def test_commands_parse(path):
    for line in commands(path.read_text()):
        if is_named(line) or "NAME" in line:
            continue
        name = parse(line).params.get("name")
        assert line.startswith("classify") or name in (None, *studies.NAMES, *FILES), line


@pytest.mark.parametrize("line", ["study walk vpt-vs-vapt", "study run", "study run vpt-vs-vapt --fast", "view"])
def test_parser_can_refuse(line):
    with pytest.raises(Exception, match=r"(?i)no such command|missing|no such option"):
        parse(line)


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    text = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    assert {"demo", "test"} <= set(re.findall(r"^    make (\w+)", text, flags=re.M)) <= targets


def test_folders_are_told_in_their_own_words_and_order():
    """The first line of each folder's docstring, in the order in which the folders may import each other."""
    for folder, page, order in (("moe_prompt", "README.md", ORDER), ("moe_prompt/vision", "docs/images.md", VISION)):
        text = section((ROOT / page).read_text(), "How it is built").replace("\\|", "|")
        told = re.findall(r"^(?:\| |- )`(\w+)`(?: \||:) (.+?)(?: \|)?$", text, flags=re.M)
        there = [name for name in order if (ROOT / folder / name / "__init__.py").exists()]
        docs = [ast.get_docstring(ast.parse((ROOT / folder / name / "__init__.py").read_text())) for name in there]
        assert told == [(name, words.split("\n")[0]) for name, words in zip(there, docs, strict=True)]
