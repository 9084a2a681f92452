from streamlit.starlette import App

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMSessionHeader

engine = AuthEngine()
app = CMAuthMiddleware(CMSessionHeader(App("page.py")), engine=engine)
