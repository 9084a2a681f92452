from shiny import App, reactive, render, ui

from cm_auth_middleware import CMAuthMiddleware

page = ui.page_fluid(
    ui.head_content(ui.tags.script(src="/auth/session.js")),
    ui.output_text("user"),
    ui.input_action_button("show", "Show cameras"),
    ui.output_text("cameras"),
)


def server(input, output, session):
    state = session.http_conn.state

    @render.text
    def user():
        return state.cm_session.user["email"]

    @render.text
    @reactive.event(input.show)
    async def cameras():
        response = await state.cm.get("/rest/v2.4/cameras")
        return ", ".join(camera["name"] for camera in response.json())


app = CMAuthMiddleware(App(page, server))
