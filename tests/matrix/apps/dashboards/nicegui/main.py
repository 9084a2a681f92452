from fastapi import FastAPI, Request
from nicegui import ui

from cm_auth_middleware import CMAuthMiddleware

ui.add_head_html('<script src="/auth/session.js"></script>', shared=True)


@ui.page("/")
def page(request: Request):
    cm, session = request.state.cm, request.state.cm_session

    async def show():
        response = await cm.get("/rest/v2.4/cameras")
        cameras.set_text(", ".join(camera["name"] for camera in response.json()))

    ui.label(session.user["email"])
    ui.button("Show cameras", on_click=show)
    cameras = ui.label()


app = FastAPI()
ui.run_with(app)
app.add_middleware(CMAuthMiddleware)
