"""Where the pages are."""

from django.urls import path

from . import views

urlpatterns = [
    path("", views.cameras),
    path("cameras/<int:camera_id>/snapshot", views.snapshot, name="snapshot"),
    path("health", views.health),
]
