import marimo

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMSessionHeader

engine = AuthEngine()
notebooks = marimo.create_asgi_app().with_app(path="", root="page.py").build()
app = CMAuthMiddleware(CMSessionHeader(notebooks), engine=engine)
