"""The pages say what is: their examples run and print what is shown, their commands parse, their links lead somewhere."""

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

import streamview
from streamview.cli.parser import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
# pages of the site that show a file from outside its folder
INCLUDED = ["docs/contributing.md", "docs/changes.md"]
PACKAGES = {
    "streamview": "streamview",
    "streamview_models": "models/streamview_models",
    "streamview_napari": "plugins/streamview_napari",
    "streamview_jupyter": "plugins/streamview_jupyter",
}


def blocks(text):
    """Return (language, content, line) of every fenced block."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(match[1], match[2], text[: match.start()].count("\n") + 2) for match in found]


def prose(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands():
    parser = build_parser()
    (choices,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return choices


# importing napari gives deprecation warnings of its own
QUIET = {"docs/napari.md": pytest.mark.filterwarnings("ignore")}
SLOW = dict.fromkeys(("docs/faithfulness.md", "docs/finetuning.md", "docs/whole-slides.md", "docs/report.md"), pytest.mark.slow)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name, marks=(QUIET | SLOW).get(name, ())) for page, name in zip(PAGES, NAMES, strict=True)]
)
def test_the_examples_run_and_print_what_is_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAPARI_CONFIG", str(tmp_path / "settings.yaml"))
    found = blocks(page.read_text())
    scope = {"__name__": "example"}
    for number, (language, code, line) in enumerate(found):
        if language != "python":
            continue
        # blank lines in front let a traceback point into the page
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), scope)
        printed = capsys.readouterr().out
        following = found[number + 1] if number + 1 < len(found) else ("", "", 0)
        if following[0] == "text":
            assert printed == following[1], f"{page.name}, line {line}"


@pytest.mark.parametrize("name", ["README.md", *(name for name in NAMES if name.startswith("docs/") and name not in INCLUDED)])
def test_every_page_has_an_example(name):
    assert any(language == "python" for language, _, _ in blocks((ROOT / name).read_text()))


def test_the_example_of_the_readme_has_five_lines():
    first = next(code for language, code, _ in blocks((ROOT / "README.md").read_text()) if language == "python")
    assert len([line for line in first.splitlines() if line.strip()]) == 5


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_shown_parses(page):
    for language, text, _ in blocks(page.read_text()):
        if language != "bash":
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["streamview"] and "--help" not in words:
                build_parser().parse_args(words[1:])
            if words[:1] == ["make"]:
                targets = (ROOT / "Makefile").read_text()
                assert all(re.search(rf"^{target}:", targets, re.MULTILINE) for target in words[1:] if "=" not in target), line


def test_every_command_of_the_program_has_a_line_and_an_example():
    text = (ROOT / "docs/cli.md").read_text()
    rows = set(re.findall(r"^\| `streamview (\w+)", text, re.MULTILINE))
    examples = {line.split()[1] for language, code, _ in blocks(text) if language == "bash" for line in code.splitlines() if line.strip()}
    assert rows == set(commands())
    assert set(commands()) <= examples


def test_every_option_of_the_program_is_explained():
    text = (ROOT / "docs/cli.md").read_text()
    options = {option for parser in commands().values() for action in parser._actions for option in action.option_strings}
    assert {option for option in options - {"-h", "--help"} if f"`{option}" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_links_lead_somewhere(page):
    text = prose(page.read_text())
    for target in re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_page_names_a_path_of_some_machine(page):
    assert re.findall(r"(?<![\w.])/(?:home|work|tmp|root|Users)/", page.read_text()) == []


def test_every_public_name_is_explained():
    text = "\n".join(page.read_text() for page in PAGES)
    assert {name for name in set(streamview.__all__) - {"__version__"} if not re.search(rf"\b{name}\b", text)} == set()


def test_every_public_name_is_in_the_reference():
    documented = set(re.findall(r"^\.\. auto\w+:: streamview\.(\w+)(?:\(\))?$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    assert documented == set(streamview.__all__) - {"__version__"}


def test_every_page_is_in_the_contents():
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    contents = [line for language, text, _ in toctrees() for line in text.splitlines() if line and not line.startswith(":")]
    assert sorted(contents) == sorted(pages)


def toctrees():
    text = (ROOT / "docs/index.md").read_text().replace("```{toctree}", "```toctree")
    return [block for block in blocks(text) if block[0] == "toctree"]


def test_rooms_import_only_from_floors_below():
    floors = {}
    text, plugin = (ROOT / "docs/architecture.md").read_text().split("## The napari plugin")
    for number, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE):
        floors |= dict.fromkeys(re.findall(r"`([\w.]+)`", rooms), int(number))
    upward, met = [], set()
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "train.py":  # a script of its own, run by hand
                continue
            module = ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__")
            inside = module.startswith("streamview.streaming.")
            for name in (room, room_of_engine) if inside else (room,):
                here, there = name(module), {name(other) for other in imported(path)} & set(floors)
                met.add(here)
                upward += [(here, other) for other in there if other != here and floors[other] >= floors[here]]
    assert met == set(floors)
    assert upward == []
    floors = {}
    for number, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", plugin, re.MULTILINE):
        floors |= dict.fromkeys(re.findall(r"`(\w+)(?:/|\.py)`", rooms), int(number))
    met = set()
    for path in (ROOT / PACKAGES["streamview_napari"]).rglob("*.py"):
        here = path.relative_to(ROOT / PACKAGES["streamview_napari"]).with_suffix("").parts[0]
        met.add(here)
        there = {other.split(".")[1] for other in imported(path) if other.startswith("streamview_napari.")} & set(floors)
        upward += [(here, other) for other in there if other != here and floors[other] >= floors[here]]
    assert met - {"__init__"} == set(floors)
    assert upward == []


def room(module):
    """The room of a module; the engine is one room from outside, and several from inside."""
    parts = module.split(".")
    return parts[0] if parts[0] != "streamview" or len(parts) == 1 else parts[1]


def room_of_engine(module):
    parts = module.split(".")
    return ".".join(parts[1:3]) if parts[1:2] == ["streaming"] else ""


def imported(path):
    """Modules of the project that a file imports from anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module for module in modules if module.split(".")[0] in PACKAGES}
