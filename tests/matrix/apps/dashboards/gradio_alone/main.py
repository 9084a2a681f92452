import gradio as gr
from starlette.middleware import Middleware

from cm_auth_middleware import CMAuthMiddleware


def user(request: gr.Request):
    return request.request.state.cm_session.user["email"]


async def cameras(request: gr.Request):
    response = await request.request.state.cm.get("/rest/v2.4/cameras")
    return ", ".join(camera["name"] for camera in response.json())


with gr.Blocks() as blocks:
    blocks.load(user, outputs=gr.Markdown())
    gr.Button("Show cameras").click(cameras, outputs=gr.Markdown())

# Gradio requests this path of its own, without a session, to see that it has started.
login = Middleware(CMAuthMiddleware, exempt=["/gradio_api/startup-events"])
blocks.launch(app_kwargs={"middleware": [login]}, head='<script src="/auth/session.js"></script>')
