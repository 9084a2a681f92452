from dash import Dash, Input, Output, html

from cm_auth_middleware.flask import CMAuth, cm, cm_session

app = Dash(__name__, external_scripts=["/auth/session.js"])
app.layout = html.Main(
    [html.P(id="user"), html.Button("Show cameras", id="show"), html.Ul(id="cameras")]
)


@app.callback(Output("user", "children"), Input("user", "id"))
def user(_):
    return cm_session.user["email"]


@app.callback(Output("cameras", "children"), Input("show", "n_clicks"), prevent_initial_call=True)
def cameras(_):
    found = cm.get("/rest/v2.4/cameras").json()
    return [html.Li(camera["name"]) for camera in found]


server = app.server
CMAuth(server)
