import gradio as gr
from fastapi import FastAPI

from cm_auth_middleware import CMAuthMiddleware


def user(request: gr.Request):
    return request.request.state.cm_session.user["email"]


async def cameras(request: gr.Request):
    response = await request.request.state.cm.get("/rest/v2.4/cameras")
    return ", ".join(camera["name"] for camera in response.json())


with gr.Blocks() as blocks:
    blocks.load(user, outputs=gr.Markdown())
    gr.Button("Show cameras").click(cameras, outputs=gr.Markdown())

app = FastAPI()
app.add_middleware(CMAuthMiddleware)
gr.mount_gradio_app(app, blocks, path="/", head='<script src="/auth/session.js"></script>')
