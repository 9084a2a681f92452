"""``cm-auth init``: a file that explains every option, and that shells and servers can read."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cm_auth_middleware.cli import main
from cm_auth_middleware.cli.options import meanings
from cm_auth_middleware.config import REQUIRED, CMAuthConfig, environment_options
from tests.helpers.world import SECRET_KEY


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for option in environment_options():
        monkeypatch.delenv(f"CM_AUTH_{option.upper()}", raising=False)


def init(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments])


def test_the_file_names_and_explains_every_option_and_has_a_key_of_its_own() -> None:
    result = init()
    assert result.exit_code == 0, result.output
    text = Path(".env").read_text()
    named = re.findall(r"^(?:# )?CM_AUTH_([A-Z_]+)=", text, re.MULTILINE)
    assert [name.lower() for name in named] == [
        *REQUIRED,
        *(name for name in environment_options() if name not in REQUIRED),
    ]
    words = " ".join(re.sub(r"^# ?", "", line) for line in text.splitlines())
    for name in environment_options():
        assert meanings()[name].replace("`", "")[:60] in words, name
    assert all(len(line) <= 100 for line in text.splitlines())
    key = re.search(r"^CM_AUTH_SECRET_KEY=(\S{64})$", text, re.MULTILINE)
    assert key is not None
    assert key[1] not in result.output
    assert init("--file", "another").exit_code == 0
    assert key[1] not in Path("another").read_text()


def test_only_its_owner_can_read_the_file() -> None:
    init()
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600


def test_a_file_that_exists_is_left_alone() -> None:
    Path(".env").write_text("MINE=1\n")
    result = init()
    assert result.exit_code == 1
    assert "exists already" in result.output
    assert Path(".env").read_text() == "MINE=1\n"
    result = init("--file", "no-such-folder/.env")
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.output


def test_every_line_is_good_when_it_is_set(monkeypatch) -> None:
    init()
    text = re.sub(r"^# (?=CM_AUTH_)", "", Path(".env").read_text(), flags=re.MULTILINE)
    text = text.replace("CM_AUTH_CLIENT_ID=", "CM_AUTH_CLIENT_ID=demo-key-id")
    text = text.replace("CM_AUTH_CLIENT_SECRET=", "CM_AUTH_CLIENT_SECRET=demo-key-secret")
    for name, value in re.findall(r"^(CM_AUTH_[A-Z_]+)=(.*)$", text, re.MULTILINE):
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = CMAuthConfig.from_env()
    assert config.exempt == ("/health", "/static/*")
    assert config.idle_timeout == 7 * 86_400


def test_defaults_are_those_of_the_package(monkeypatch) -> None:
    """A line that shows another default than the real one would change it when it is set."""
    init()
    given = {"client_id": "id", "client_secret": "secret", "secret_key": SECRET_KEY}
    default = CMAuthConfig(**given)
    lines = re.findall(r"^# CM_AUTH_([A-Z_]+)=(.*)$", Path(".env").read_text(), re.MULTILINE)
    same = {
        "provider", "base_url", "scope", "prefix", "idle_timeout", "absolute_timeout",
        "refresh_leeway", "timeout", "cache_size", "allowed_hosts", "cross_site_check",
        "revalidate", "auto_login",
    }  # fmt: skip
    for name, value in lines:
        option = name.lower()
        with monkeypatch.context() as patch:
            patch.setenv(f"CM_AUTH_{name}", value)
            config = CMAuthConfig.from_env(**given)
        is_same = getattr(config, option) == getattr(default, option)
        assert is_same == (option in same), option


def test_a_shell_reads_the_file() -> None:
    init()
    done = subprocess.run(
        ["sh", "-c", 'set -aeu; . ./.env; set +a; env; echo "[$CM_AUTH_CLIENT_ID]"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not done.stderr
    assert re.search(r"^CM_AUTH_SECRET_KEY=\S{64}$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("[]\n")


def test_json_names_the_file_and_not_the_key() -> None:
    assert json.loads(init("--json").output) == {"file": ".env"}
