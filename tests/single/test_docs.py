"""The documentation agrees with the code, and its links resolve."""

from __future__ import annotations

import importlib
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.arguments.configuration import load
from hvd_train.errors import ExitCode
from hvd_train.text import strict_json

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "benchmarks", "docs", "docs/decisions", "hostfiles")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
WRITTEN_BY_HAND = [page for page in PAGES if page.parent.name != "benchmarks"]
MADE_BY_THE_READER = ("docs/metrics.md", "docs/tutorial.md")
"""Pages whose YAML names modules that the reader writes."""
GENERATED = runpy.run_path(str(ROOT / "scripts" / "generate-docs"))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Return the text of `page` without generated parts, code blocks and tables."""
    text = page.read_text(encoding="utf-8").partition(GENERATED["MARK"])[0]
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "    ", "![", "<")))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of `page`, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    documented = {int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}


def test_generated_pages_are_current() -> None:
    stale = [name(path) for path, text in GENERATED["pages"]().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"{', '.join(stale)}: run scripts/generate-docs"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{name(page)}: {link} does not exist"
        assert not anchor or anchor in anchors(target), f"{name(page)}: {link}: no such heading"


@pytest.mark.parametrize("page", WRITTEN_BY_HAND, ids=name)
def test_prose_has_at_most_100_columns(page: Path) -> None:
    long = [line for line in prose(page).splitlines() if len(line) > 100]
    assert not long, f"{name(page)}: {long[0]}"


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/doctor.md", "docs/strategies.md", "CONTRIBUTING.md"])
def test_modules_named_in_a_page_exist(page: str) -> None:
    modules = re.findall(r"`(\w[\w/]*/\w+\.py)`", (ROOT / page).read_text(encoding="utf-8"))
    for module in modules:
        if not module.endswith(("/NAME.py", "/every_other.py")):  # files that the reader adds
            assert any((ROOT / top / module).exists() for top in ("", "cli", "hvd_train")), f"{page}: no {module}"


def blocks() -> list[Any]:
    made = []
    for page in WRITTEN_BY_HAND:
        if name(page) not in MADE_BY_THE_READER:
            found = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
            made += [pytest.param(block, id=f"{name(page)}-{number}") for number, block in enumerate(found)]
    return made


@pytest.mark.parametrize("block", blocks())
def test_yaml_of_a_page_is_valid(block: str, tmp_path: Path) -> None:
    """A block without a model or data is completed."""
    file = tmp_path / "model.yaml"
    file.write_text(strict_json.dumps({"model": "mlp", "data": "digits", **yaml.safe_load(block)}))
    load(file, [])


def test_names_of_horovods_api_in_the_documentation_are_public() -> None:
    public = set(importlib.import_module("hvd_train.torch").__all__)
    named = {word for page in PAGES for word in re.findall(r"\bhvd\.(\w+)", page.read_text(encoding="utf-8"))}
    assert named <= public, named - public
