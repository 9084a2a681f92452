import reflex as rx

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMSessionHeader

engine = AuthEngine()


def handle_of(state):
    return state.router.headers.raw_headers["x-cm-session"]


class Cameras(rx.State):
    user: str = ""
    names: list[str] = []

    @rx.event
    async def load(self):
        session = await engine.session_for(handle_of(self))
        self.user = session.user["email"]

    @rx.event
    async def show(self):
        cm = await engine.client_for(handle_of(self))
        response = await cm.get("/rest/v2.4/cameras")
        self.names = [camera["name"] for camera in response.json()]


def index() -> rx.Component:
    return rx.vstack(
        rx.text(Cameras.user),
        rx.button("Show cameras", on_click=Cameras.show),
        rx.foreach(Cameras.names, rx.text),
    )


def behind_login(asgi_app):
    return CMAuthMiddleware(CMSessionHeader(asgi_app), engine=engine)


app = rx.App(
    api_transformer=behind_login,
    head_components=[rx.el.script(src="/auth/session.js")],
)
app.add_page(index, route="/", on_load=Cameras.load)
