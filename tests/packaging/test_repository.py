"""What is around the package: workflows, issue forms, dependabot, SECURITY.md, the change log."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cm_auth_middleware import __version__

yaml = pytest.importorskip("yaml", reason="NOT TESTED: pip install -e '.[dev]'")

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))  # not config.yml
MANIFESTS = {
    "docker": "Dockerfile",
    "docker-compose": "compose.yaml",
    "github-actions": ".github/workflows",
    "maven": "pom.xml",
    "npm": "package.json",
    "pip": "pyproject.toml",
}


def read(path: Path) -> dict[Any, Any]:
    return dict(yaml.safe_load(path.read_text()))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


def test_a_change_is_decided_by_what_developers_run() -> None:
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    assert read(workflow)[True].keys() == {"push", "pull_request"}  # YAML reads `on` as True
    assert [step["run"] for step in steps(workflow) if ".ci/run" in step.get("run", "")]
    if not (ROOT / ".ci").exists():
        pytest.skip("NOT TESTED: a source distribution has no .ci")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_can_change_nothing_in_the_repository(workflow: Path) -> None:
    assert read(workflow)["permissions"] == {"contents": "read"}
    for job in read(workflow)["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"]
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_a_release_is_made_by_the_command_of_the_documentation() -> None:
    workflow = ROOT / ".github" / "workflows" / "release.yml"
    assert read(workflow)[True] == {"push": {"tags": ["v*"]}}
    commands = "\n".join(step.get("run", "") for step in steps(workflow))
    assert "nox -s release" in commands
    assert "GITHUB_REF_NAME#v" in commands  # the tag names the version


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_for_the_report_of_the_doctor(form: Path) -> None:
    fields = read(form)["body"]
    text = form.read_text()
    assert "cm-auth check --login --report report.json" in text
    assert "token" in text  # never to be pasted, or never in the report
    asked = [field["id"] for field in fields if field.get("validations", {}).get("required")]
    assert {"check", "report"} & set(asked)
    ids = [field["id"] for field in fields if field["type"] != "markdown"]
    assert len(ids) == len(set(ids))


def test_dependabot_looks_wherever_something_is_named() -> None:
    looked = set()
    for update in read(ROOT / ".github" / "dependabot.yml")["updates"]:
        for folder in update.get("directories") or [update["directory"]]:
            looked.add((update["package-ecosystem"], folder))
    for ecosystem, folder in looked:
        there = ROOT / folder.removeprefix("/")
        manifests = [MANIFESTS[ecosystem], *(["requirements.txt"] if ecosystem == "pip" else [])]
        in_kubernetes = ecosystem == "docker" and there.name == "kubernetes"
        assert in_kubernetes or any((there / name).exists() for name in manifests), folder
    for ecosystem, name in MANIFESTS.items():
        for folder in ("tests", "examples"):
            for path in (ROOT / folder).rglob(name):
                if "node_modules" not in path.parts:
                    parent = f"/{path.parent.relative_to(ROOT).as_posix()}"
                    assert (ecosystem, parent) in looked, path


def test_a_vulnerability_has_a_way_to_be_reported() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    reporting = text.partition("\n## Reporting\n")[2].partition("\n## ")[0]
    assert "Report a vulnerability" in reporting
    assert "not in an issue" in reporting
    assert all("SECURITY.md" in form.read_text() for form in FORMS if form.name == "bug.yml")


def test_the_change_log_begins_with_what_is_not_released() -> None:
    """The version above the others is that of the package; a released one has its date."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading), heading
    if headings[1:]:
        assert headings[1].startswith(f"[{__version__}]")
