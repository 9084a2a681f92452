"""Flask-Login on top: its ``current_user`` is the user of the session, as the quick start shows."""

from __future__ import annotations

from typing import Any

from flask import Flask, render_template_string
from flask_login import LoginManager, UserMixin, current_user, login_required

from cm_auth_middleware.flask import CMAuth, cm_session

app = Flask(__name__)
CMAuth(app)
login_manager = LoginManager(app)


class User(UserMixin):
    """The user of a session, for Flask-Login."""

    def __init__(self, session: Any) -> None:
        self.id = session.user_id
        self.email = session.user["email"]


@login_manager.request_loader
def load_user(request: Any) -> User | None:
    return User(cm_session) if cm_session else None


@app.get("/")
@login_required
def home() -> str:
    return render_template_string("{{ current_user.id }} {{ current_user.email }}")


@app.get("/health")
def health() -> str:
    return current_user.email if current_user.is_authenticated else "nobody"
