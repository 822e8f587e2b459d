"""Pages of documentation, read as a test needs them: commands, tables, code, links, generated blocks."""

import re
import shlex
from pathlib import Path

import typer

from moe_prompt.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def parse(line):
    """The context of a command after parsing its options as the command line would; an error if it cannot."""
    command, words = typer.main.get_command(main.app), shlex.split(line)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no such command: moe-prompt {line}"
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words)


def is_named(line):
    """Whether a line is the bare name of a command or of a group of commands, or an option of all of them."""
    command = typer.main.get_command(main.app)
    if any(line in option.opts for option in command.params):
        return True
    for word in line.split():
        command = getattr(command, "commands", {}).get(word)
    return command is not None


def commands(page):
    """Everything that a page shows behind `moe-prompt`, in a sentence or as an indented line, without comments."""
    lines = re.findall(r"^    (?:.*\b)?moe-prompt ([^#\n]+)", page, flags=re.M)
    return sorted({line.strip() for line in [*lines, *re.findall(r"`(?:[^`\n]* )?moe-prompt ([^`\n]+)`", page)]})


def code(page):
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)


def section(page, title):
    """The text under a heading of the second level."""
    assert f"\n## {title}" in page, f"no section {title}"
    return page.split(f"\n## {title}")[1].split("\n## ")[0]


def tables(text):
    """The body of each table, a list of rows of cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.M):
        rows = [re.split(r"(?<!\\)\|", row.strip()[1:-1]) for row in block.splitlines()]
        found.append([[cell.strip().replace("\\|", "|") for cell in row] for row in rows[2:]])
    return found


def value(text, name):
    """The last cell of the only table row that begins with these words."""
    (row,) = [row for body in tables(text) for row in body if row[0] == name]
    return row[-1]


def blocks(page):
    """Name -> what stands between its markers."""
    return dict(re.findall(r"<!-- begin (\S+) -->\n(.*?)\n<!-- end \1 -->", page, flags=re.S))
