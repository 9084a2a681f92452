"""The pages. The middleware's client and session are in ``request.META``."""

from django.http import HttpResponse, JsonResponse
from django.shortcuts import render


def cameras(request):
    listing = request.META["cm_auth.client"].get("/rest/v2.4/cameras").raise_for_status().json()
    user = request.META["cm_auth.session"].user
    return render(request, "cameras.html", {"user": user, "cameras": listing})


def snapshot(request, camera_id):
    """Pass a picture on to the browser, which never sees a token."""
    path = f"/rest/v2.4/cameras/{camera_id}/snapshot?resolution=320x180"
    picture = request.META["cm_auth.client"].get(path, headers={"Accept": "image/jpeg"})
    return HttpResponse(picture.content, picture.headers["Content-Type"], picture.status_code)


def health(request):
    return JsonResponse({"status": "ok"})
