import marimo

app = marimo.App(html_head_file="head.html")


@app.cell
def _():
    import marimo as mo
    from main import engine

    return engine, mo


@app.cell
def _(engine, mo):
    session = engine.sync_session_for(mo.app_meta().request.headers["x-cm-session"])
    mo.md(session.user["email"])
    return


@app.cell
def _(mo):
    show = mo.ui.run_button(label="Show cameras")
    show
    return (show,)


@app.cell
def _(engine, mo, show):
    mo.stop(not show.value)
    cm = engine.sync_client_for(mo.app_meta().request.headers["x-cm-session"])
    mo.md(", ".join(camera["name"] for camera in cm.get("/rest/v2.4/cameras").json()))
    return


if __name__ == "__main__":
    app.run()
