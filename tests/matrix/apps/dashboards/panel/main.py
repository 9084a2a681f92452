import panel as pn
from fastapi import FastAPI
from panel.io.fastapi import add_applications

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMSessionHeader

engine = AuthEngine()
pn.extension(js_files={"session": "/auth/session.js"})


def page():
    headers = {name.lower(): value for name, value in pn.state.headers.items()}
    handle = headers["x-cm-session"]
    cameras = pn.pane.Str()

    async def show(_):
        cm = await engine.client_for(handle)
        response = await cm.get("/rest/v2.4/cameras")
        cameras.object = ", ".join(camera["name"] for camera in response.json())

    user = pn.pane.Str(engine.sync_session_for(handle).user["email"])
    button = pn.widgets.Button(name="Show cameras", on_click=show)
    return pn.Column(user, button, cameras)


server = FastAPI()
add_applications({"/cameras": page}, app=server)
app = CMAuthMiddleware(CMSessionHeader(server), engine=engine)
