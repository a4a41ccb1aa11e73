"""README.md and docs/ say what is so: links, commands, keys and messages are those of the package.

`make docs` checks the links within docs/ and the docstrings it shows.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

import lgfast
from docs import hooks
from lgfast import train
from lgfast.__main__ import COMMANDS
from lgfast.config import Config, get, load_recipe, recipe_names, valid_keys

ROOT = Path(__file__).resolve().parents[1]
GUIDE = sorted((ROOT / "docs").glob("*.md"))
# Files that are read where they lie, with links to others.
PAGES = [*sorted(ROOT.glob("*.md")), *GUIDE, ROOT / "csrc" / "README.md", ROOT / "benchmarks" / "README.md"]


def local_links(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in local_links(path):
        name, _, place = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        if place:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), target


def test_links_are_found():
    assert {"docs/install.md", "docs/images/guidance.svg"} <= set(local_links(ROOT / "README.md"))


def test_the_readme_is_two_screens_and_links_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130 and "make test" in text
    missing = [page.name for page in GUIDE if f"docs/{page.name}" not in text and page.name != "index.md"]
    assert not missing


def test_pages_of_the_guide_are_in_its_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in GUIDE if f": {page.name}\n" not in navigation] == []


def commands(path):
    """Arguments of every `lgfast NAME ...` and `... -m lgfast.NAME ...` in a page's listings."""
    listings = re.findall(r"^```\n(.*?)^```", path.read_text().replace("\\\n", " "), re.DOTALL | re.MULTILINE)
    found = re.findall(rf"\blgfast[ .]((?:{'|'.join(COMMANDS)})\b[^\"\n]*)", "\n".join(listings))
    return [shlex.split(line, comments=True) for line in found]


def guide_commands():
    return [(path, words) for path in [ROOT / "README.md", *GUIDE] for words in commands(path)]


def test_commands_of_training_in_the_guide_are_understood():
    lines = [(path, words[1:]) for path, words in guide_commands() if COMMANDS[words[0]][0] == "train"]
    assert len(lines) >= 10
    for path, arguments in lines:
        _, options = train.parse(arguments)
        assert options.resume or train.read_config(options), path


def test_every_command_has_a_line_in_the_guide():
    assert {words[0] for _, words in guide_commands()} == set(COMMANDS)


def test_every_key_is_in_the_configuration_reference():
    text = hooks.on_page_markdown((ROOT / "docs" / "configuration.md").read_text())
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", text, re.MULTILINE))
    assert rows.keys() == valid_keys().keys()
    for key, row in rows.items():
        _, default, meaning = re.split(r"(?<!\\) \| ", row)
        assert meaning.strip(), f"{key} has no comment beside its field"
        assert default == hooks.default_of(get(Config(), key))


def test_comments_of_a_key_stand_above_or_beside_it():
    text = hooks.configuration()
    assert "| `data.workers` | whole number | `0` | timm: processes that prepare images, 0: this one; dali:" in text
    assert "| `optim.name` | text | `adamw` | adamw: this package's flat one; muon: matrices of blocks" in text
    assert "| `augment.std` | list of number | `0.229 0.224 0.225` | normalisation per channel" in text


def test_every_recipe_is_listed():
    """By its name, or `NAME-base`, `-guided`, or as `NAME-*`; a small teacher through the recipe that trains it."""
    text = (ROOT / "docs" / "reproduce.md").read_text()
    named = set(re.findall(r"`([a-z][a-z0-9-]+)", text))
    listed = named | {f"{name.removesuffix('-base')}-guided" for name in named if name.endswith("-base")}
    listed |= {f"{name}{variant}" for name in named if name.endswith("-") for variant in ("base", "guided")}
    listed |= {load_recipe(name).teacher.recipe for name in listed if name in recipe_names()}
    assert set(recipe_names()) <= listed


def texts_of_the_package():
    """Every literal text, without what f-strings fill in."""
    for path in (ROOT / "lgfast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_troubleshooting_page_are_those_of_the_package():
    messages = re.findall(r"^\*\*`(.+)`\*\*$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    texts = set(texts_of_the_package())
    assert len(messages) >= 30
    assert [message for message in messages if not any(message in text for text in texts)] == []


def test_the_version_stands_in_one_place_and_the_citation_follows_it():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == lgfast.__version__ and cited["references"][0]["url"].endswith("2207.10026")


def test_workflows_call_targets_that_there_are():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            called |= {step["run"].split()[1] for step in job["steps"] if step.get("run", "").startswith("make ")}
    assert {"lint", "docs", "test", "wheel"} <= called <= targets


def test_every_example_is_listed():
    folder = ROOT / "examples"
    assert set(local_links(folder / "README.md")) == {path.name for path in folder.iterdir()} - {"README.md"}
