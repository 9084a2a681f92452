import streamlit as st
from main import engine

handle = st.context.headers["x-cm-session"]

st.html('<script src="/auth/session.js"></script>', unsafe_allow_javascript=True)
st.write(engine.sync_session_for(handle).user["email"])

if st.button("Show cameras"):
    cm = engine.sync_client_for(handle)
    for camera in cm.get("/rest/v2.4/cameras").json():
        st.write(camera["name"])
