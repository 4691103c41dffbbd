"""What surrounds the code agrees with it: workflows, issue forms, the citation and the hooks before a commit."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import streamview

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOI = "10.1109/TPAMI.2020.3019563"


def load(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def targets(text):
    return set(re.findall(r"\bmake ([a-z-]+)", text))


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_a_workflow_may_do_little_and_names_versions(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "cancel-in-progress" in workflow["concurrency"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60
        assert job.get("permissions", {}) == ({"id-token": "write"} if name == "publish" else {})
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+|pypa/gh-action-pypi-publish@release/v\d+", step["uses"])
    made = targets(" ".join(step.get("run", "") for step in steps(workflow)))
    assert made
    assert made <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_changes_are_checked_as_they_are_before_they_land():
    made = targets(" ".join(step.get("run", "") for step in steps(load(".github/workflows/ci.yml"))))
    assert targets((ROOT / ".ci/run").read_text()) <= made
    assert "docs" in made


def test_the_pythons_tested_are_those_that_the_project_names():
    tested = load(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: Python :: 3\.\d+$", text)]
    assert tested["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert [name.partition("-")[0] for name in tested["os"]] == ["ubuntu", "macos", "windows"]


def test_only_a_tag_publishes():
    release = load(".github/workflows/release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key "on" so
    assert release["jobs"]["publish"]["environment"]["name"] == "pypi"
    assert "secrets" not in (ROOT / ".github/workflows/release.yml").read_text()


@pytest.mark.parametrize("path", FORMS, ids=[path.stem for path in FORMS])
def test_an_issue_form_is_one(path):
    form = load(path)
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea"}
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(set(field) <= {"type", "id", "attributes", "validations"} and field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
    commands = set(re.findall(r"`streamview (\w+)", path.read_text()))
    assert "doctor" in commands
    assert all(f"`streamview {command}" in (ROOT / "docs/cli.md").read_text() for command in commands)


def test_the_citation_names_this_version_and_the_paper():
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"] == streamview.__version__
    assert (citation["title"], citation["license"], citation["abstract"]) == (PROJECT["name"], PROJECT["license"], PROJECT["description"])
    (paper,) = citation["references"]
    assert paper["doi"] == DOI
    assert DOI in PROJECT["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]] == ["Pinckaers", "van Ginneken", "Litjens"]


def test_the_hooks_are_those_of_make_lint():
    hooks = [hook for repository in load(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    entries = [hook["entry"].replace(".venv/bin/", "").replace(" --force-exclude", "") for hook in hooks if "entry" in hook]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert entries == [line.strip().removeprefix("$(BIN)/").removesuffix(" --check") for line in recipe.splitlines()]
    assert "check-added-large-files" in [hook["id"] for hook in hooks]
