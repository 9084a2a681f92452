"""The wheel, as a user gets it: in clean environments, with each extra alone, for type checkers."""

from __future__ import annotations

import email
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cm_auth_middleware import __version__

from . import sbom

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REPOSITORY = "https://git.example.com/cams"
MakeVenv = Callable[..., Path]

# What each extra promises, as a program that needs it; and what is then still not there.
PROMISES = {
    "fastapi": ("from cm_auth_middleware.fastapi import CMClient, CMSession, require", "flask"),
    "flask": ("from cm_auth_middleware.flask import CMAuth, cm, cm_session, require", "fastapi"),
    "redis": (
        "from cm_auth_middleware.stores import RedisStore; RedisStore('redis://localhost/0')",
        "flask",
    ),
    "postgres": (  # libpq is the machine's
        "from cm_auth_middleware.stores import PostgresStore; PostgresStore('postgresql://h/db')",
        "redis",
    ),
    "otel": ("from cm_auth_middleware import telemetry; assert telemetry.find()", "flask"),
    "cli": ("from cm_auth_middleware.cli import main; main(['secret'])", "uvicorn"),
    "testing": (
        "import pytest; from cm_auth_middleware.testing import SimulatorServer\n"
        "with SimulatorServer() as server: assert server.url",
        "fastapi",
    ),
    "demo": (
        "import importlib; demo = importlib.import_module('cm_auth_middleware.cli.demo')\n"
        "assert demo._dashboard().create_app",
        "redis",
    ),
}


def run(*command: str | Path, fails: bool = False, cwd: Path | None = None) -> str:
    """Run a command in an environment of its own; return what it printed."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CM_AUTH_", "PYTHON", "COVERAGE", "VIRTUAL_ENV"))
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) is fails, f"{command}\n{done.stdout}"
    return done.stdout


def build(source: Path, folder: Path) -> None:
    """Build as a release does: the time of the last commit stands in the archives."""
    known = ("SOURCE_DATE_EPOCH=1700000000", f"REPOSITORY_URL={REPOSITORY}")
    run("env", *known, sys.executable, "-m", "build", "--outdir", folder, source)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source distribution, the wheel made from the latter."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.fixture
def venv(wheel: Path, tmp_path: Path) -> MakeVenv:
    """Make a clean environment with the wheel, an extra, and other packages."""

    def make(extra: str = "", *others: str) -> Path:
        run(sys.executable, "-m", "venv", tmp_path / "venv")
        python = tmp_path / "venv" / "bin" / "python"
        what = f"cm_auth_middleware[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
        run(python, "-m", "pip", "install", "-q", what, *others)
        return python

    return make


def test_the_distributions_hold_what_they_should(built: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {"py.typed", "testing/plugin.py", "cli/check.py", "_demo/templates/base.html"}
    wanted |= {f"web/messages/{language}.toml" for language in ("en", "nl", "de", "fr", "es")}
    wanted |= {"web/page.html", "web/page.css"}
    assert {f"cm_auth_middleware/{name}" for name in wanted} <= set(names)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cm_auth_middleware"}
    assert not [name for name in names if "__pycache__" in name]
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        paths = {name.partition("/")[2] for name in source.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "docs/index.md", "mkdocs.yml"} <= paths
    assert "tests/helpers/world.py" in paths
    assert not [path for path in paths if path.startswith((".ci", "site/", "dist/"))]


def test_a_build_repeats_bit_by_bit(built: Path, tmp_path: Path) -> None:
    caches = shutil.ignore_patterns(
        ".git", ".*_cache", ".hypothesis", ".nox", "__pycache__", "dist"
    )
    copy = shutil.copytree(ROOT, tmp_path / "elsewhere", ignore=caches)
    for path in copy.rglob("*"):
        os.utime(path, (10_000_000, 10_000_000))
    build(copy, tmp_path / "dist")
    again = {file.name: file.read_bytes() for file in (tmp_path / "dist").iterdir()}
    assert again == {file.name: file.read_bytes() for file in built.iterdir()}


def test_the_index_can_show_the_readme(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_what_the_readme_links_to_and_shows_is_found_from_an_index(wheel: Path) -> None:
    markdown = pytest.importorskip(
        "readme_renderer.markdown", reason="NOT TESTED: pip install -e '.[dev]'"
    )
    with zipfile.ZipFile(wheel) as archive:
        file = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(file))
    assert metadata["Project-URL"] == f"Repository, {REPOSITORY}"
    shown = markdown.render(metadata.get_payload(decode=True).decode())
    assert shown is not None
    links = re.findall(r'<a [^>]*href="([^"#]+)', shown)
    pictures = re.findall(r'<img [^>]*src="([^"]+)', shown)
    assert len(links) > 10
    assert pictures == [f"{REPOSITORY}/raw/v{__version__}/docs/assets/pictures/demo-light.webp"]
    for kind, urls in (("raw", pictures), ("blob", links)):
        for url in urls:
            base, _, path = url.partition(f"/{kind}/v{__version__}/")
            assert base == REPOSITORY, url
            assert (ROOT / path).is_file(), url


def test_the_list_of_parts_names_the_release_and_what_it_needs(wheel: Path, tmp_path: Path) -> None:
    file = tmp_path / "sbom.cdx.json"
    sbom.write(wheel, file)
    text = file.read_text()
    parts = json.loads(text)
    assert parts["bomFormat"] == "CycloneDX"
    release = parts["metadata"]["component"]
    assert (release["name"], release["version"]) == ("cm_auth_middleware", __version__)
    assert release["hashes"][0]["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    names = {re.sub(r"[-_.]+", "-", part["name"]).lower() for part in parts["components"]}
    wanted = {"anyio", "authlib", "cryptography", "httpx2", "itsdangerous", "starlette"}
    assert wanted <= names
    assert not names & {"cm-auth-middleware", "pip", "pytest", "setuptools"}
    assert [part["name"] for part in parts["components"] if not part.get("licenses")] == []
    assert "file://" not in text  # no path of the machine that it was made on
    assert str(tmp_path) not in text


def test_the_documented_lines_work_after_an_installation_from_the_repository(
    tmp_path: Path,
) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("NOT TESTED: this is not a clone of the repository")
    assert "\npip install git+https://…\n" in (ROOT / "docs" / "install.md").read_text()
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "-q")
    run(*pip, f"git+{ROOT.as_uri()}", cwd=tmp_path)
    quick_start = (ROOT / "docs" / "quickstart" / "fastapi.md").read_text()
    found = re.search(r"^pip install (.*cm_auth_middleware\[.*)$", quick_start, re.M)
    assert found is not None
    run(*pip, *shlex.split(found[1]), cwd=tmp_path)
    run(python, "-c", "import cm_auth_middleware.fastapi, uvicorn", cwd=tmp_path)
    assert len(run(python.parent / "cm-auth", "secret")) > 32
    origin = "import importlib.metadata as m; d = m.distribution('cm_auth_middleware')"
    told = run(python, "-c", f"{origin}; print(d.read_text('direct_url.json'))", cwd=tmp_path)
    assert '"vcs_info"' in told  # pip has added to it what the extras need, and replaced nothing


def test_the_core_alone_serves_both_kinds_of_apps(venv: MakeVenv, tmp_path: Path) -> None:
    python = venv()
    run(python, "-W", "error", HERE / "smoke.py", cwd=tmp_path)
    for module in ("flask", "fastapi"):
        answer = run(python, "-c", f"import cm_auth_middleware.{module}", fails=True)
        assert f"No module named '{module}'" in answer
    told = run(python.parent / "cm-auth", "check", fails=True)
    assert told == "cm-auth needs its extra: pip install 'cm_auth_middleware[cli]'\n"
    store = "from cm_auth_middleware.stores import open_store; open_store('redis://localhost/0')"
    assert "cm_auth_middleware[redis]" in run(python, "-c", store, fails=True)


@pytest.mark.parametrize("extra", list(PROMISES))
def test_an_extra_alone_brings_what_it_promises(venv: MakeVenv, tmp_path: Path, extra: str) -> None:
    python = venv(extra)
    program, absent = PROMISES[extra]
    run(python, "-W", "error", "-c", program, cwd=tmp_path)
    run(python, "-c", f"import {absent}", fails=True)


def test_every_extra_for_users_is_tried() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", section, re.M))
    developers = {"bench", "dashboards", "deploy", "dev", "docs", "fuzz", "matrix", "test"}
    assert extras - developers == set(PROMISES)


def test_the_plugin_says_what_a_real_port_needs(venv: MakeVenv, tmp_path: Path) -> None:
    python = venv("", "pytest")
    (tmp_path / "test_it.py").write_text(
        "def test_port(cm_server): pass\ndef test_none(cm_simulator): pass\n"
    )
    told = run(python, "-m", "pytest", "-q", "test_it.py", fails=True, cwd=tmp_path)
    assert "cm_server needs uvicorn: pip install 'cm_auth_middleware[testing]'" in told
    assert "1 passed, 1 error" in told


def test_a_type_checker_sees_our_types(venv: MakeVenv, tmp_path: Path) -> None:
    """mypy and pyright (as basedpyright, which needs no npm), strict, on the installed wheel."""
    python = venv("fastapi,flask,testing", "mypy", "basedpyright")
    for name in ("sample_app.py", "mistakes.py"):
        (tmp_path / name).write_bytes((HERE / name).read_bytes())
    mypy = [python, "-m", "mypy", "--strict", "--no-incremental"]
    run(*mypy, "sample_app.py", cwd=tmp_path)
    found = run(*mypy, "mistakes.py", fails=True, cwd=tmp_path)
    assert len(re.findall(r"^mistakes\.py:\d+: error", found, re.M)) == 5, found

    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    pyright = [python.parent / "basedpyright", "--pythonpath", python]
    run(*pyright, "sample_app.py", cwd=tmp_path)
    found = run(*pyright, "mistakes.py", fails=True, cwd=tmp_path)
    assert len(set(re.findall(r"mistakes\.py:(\d+):\d+ - error", found))) == 5, found
