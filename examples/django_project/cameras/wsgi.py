"""The WSGI application: Django behind a CameraManager login."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from cm_auth_middleware import CMAuthWSGIMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cameras.settings")
application = CMAuthWSGIMiddleware(get_wsgi_application(), **settings.CM_AUTH)
