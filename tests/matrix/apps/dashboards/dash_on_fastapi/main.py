from dash import Dash, Input, Output, ctx, html
from fastapi import FastAPI

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMSessionHeader

engine = AuthEngine()
server = FastAPI()
dash = Dash(__name__, server=server, external_scripts=["/auth/session.js"])
dash.layout = html.Main(
    [html.P(id="user"), html.Button("Show cameras", id="show"), html.Ul(id="cameras")]
)


@dash.callback(Output("user", "children"), Input("user", "id"))
async def user(_):
    session = await engine.session_for(ctx.headers["x-cm-session"])
    return session.user["email"]


@dash.callback(Output("cameras", "children"), Input("show", "n_clicks"), prevent_initial_call=True)
async def cameras(_):
    cm = await engine.client_for(ctx.headers["x-cm-session"])
    response = await cm.get("/rest/v2.4/cameras")
    return [html.Li(camera["name"]) for camera in response.json()]


app = CMAuthMiddleware(CMSessionHeader(server), engine=engine)
