"""The shortest app that works; its options come from the environment.

export CM_AUTH_CLIENT_ID=… CM_AUTH_CLIENT_SECRET=… CM_AUTH_SECRET_KEY=…
uvicorn examples.minimal:app
"""

from fastapi import FastAPI, Request

from cm_auth_middleware import CMAuthConfig, CMAuthMiddleware

app = FastAPI()
app.add_middleware(CMAuthMiddleware, config=CMAuthConfig.from_env())


@app.get("/")
async def cameras(request: Request):
    response = await request.state.cm.get("/rest/v2.4/cameras")
    return response.json()
