"""Settings of the example; the API key and the secret key come from the environment.

export CM_AUTH_CLIENT_ID=… CM_AUTH_CLIENT_SECRET=… CM_AUTH_SECRET_KEY=…
"""

import os
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent
DEBUG = bool(os.environ.get("DEBUG"))
SECRET_KEY = os.environ["CM_AUTH_SECRET_KEY"]
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "cameras.urls"
WSGI_APPLICATION = "cameras.wsgi.application"
INSTALLED_APPS = ["cameras"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

# What CMAuthWSGIMiddleware gets in wsgi.py. Sessions in a file outlive a restart, and several
# worker processes share them.
CM_AUTH = {"exempt": ["/health"], "store": f"sqlite:///{BASE_DIR / 'sessions.db'}"}
