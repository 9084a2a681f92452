"""The users of frameworks and servers: Flask-Login, Django's RemoteUserMiddleware, access logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.browser import ANNA, BOB, Visitor

from .server_processes import APPS, WSGI, Simulated, environment, needs, needs_server, serve

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

GUNICORN = WSGI["gunicorn-gthread"]


def test_flask_login_knows_the_user(simulator: Simulated, tmp_path: Path) -> None:
    needs("flask", "flask_login")
    needs_server("gunicorn-gthread")
    app = f"{APPS}flask_login_app:app"
    log = tmp_path / "log"
    with (
        serve("gunicorn-gthread", GUNICORN, log, environment(simulator), app=app) as site,
        Visitor(site.origin) as visitor,
    ):
        assert visitor.fetch("/health").text == "nobody"
        assert visitor.enter("/", ANNA).text == f"10003 {ANNA}"
        other = visitor.companion()
        assert other.enter("/", BOB).text == f"10007 {BOB}"
        assert visitor.fetch("/health").text == ANNA
        assert visitor.submit("/auth/logout").status_code == 303
        assert visitor.fetch("/health").text == "nobody"
        assert other.fetch("/health").text == BOB


def test_djangos_remote_user_middleware_has_a_user_for_each_of_ours(
    simulator: Simulated, tmp_path: Path
) -> None:
    needs("django")
    needs_server("gunicorn-gthread")
    variables = environment(simulator, MATRIX_DATABASE=str(tmp_path / "django.db"))
    app = f"{APPS}django_remote_user:app"
    with (
        serve("gunicorn-gthread", GUNICORN, tmp_path / "log", variables, app=app) as site,
        Visitor(site.origin) as visitor,
    ):
        forged = {"Remote-User": "10003"}
        assert visitor.fetch("/health", headers=forged).text == "nobody"
        *anna, key = visitor.enter("/", ANNA).json()
        assert anna == ["10003", ANNA, "Anna Jansen"]
        other = visitor.companion()
        *bob, other_key = other.enter("/", BOB).json()
        assert bob == ["10007", BOB, "Bob de Vries"]
        assert key != other_key
        assert other.fetch("/health", headers=forged).text == "10007"
        # Django keeps a session of its own, which ends with ours.
        assert visitor.submit("/auth/logout").status_code == 303
        assert visitor.fetch("/health").text == "nobody"
        assert visitor.enter("/", ANNA).json()[-1] == key
        # With a Django session that is left over from somebody else, it is our session that counts.
        left = next(c for c in visitor.cookie_header.split("; ") if c.startswith("sessionid="))
        mixed = {"Cookie": f"{left}; cm_auth={other.session_cookie}"}
        assert visitor.fetch("/", headers=mixed).json()[-1] == other_key


def test_an_access_log_can_name_the_user(simulator: Simulated, tmp_path: Path) -> None:
    needs("flask")
    needs_server("gunicorn-gthread")
    line = ["--access-logfile", "-", "--access-logformat", "%(m)s %(U)s by %({{remote_user}}e)s"]
    command = [*GUNICORN[:-1], *line, GUNICORN[-1]]
    app, log = f"{APPS}flask_app:app", tmp_path / "log"
    with (
        serve("gunicorn-gthread", command, log, environment(simulator), app=app) as site,
        Visitor(site.origin) as visitor,
    ):
        visitor.fetch("/health", headers={"Remote-User": "10007"})
        visitor.enter("/cameras")
    text = log.read_text()
    assert "GET /health by -\n" in text
    assert "GET /cameras by 10003\n" in text
    assert "10007" not in text
