"""The pages that are not the loop's: health, the way in and out, and the admin. Everything else is in experiments/urls.py."""

from django.contrib import admin
from django.urls import include, path

from experiments.views import sign_in
from lionweb.health import health

urlpatterns = [
    path("health", health, name="health"),
    path("sign-in/", sign_in.show_how, name="sign_in"),
    path("sign-in/link/", sign_in.follow_link, name="sign_in_link"),
    path("sign-out/", sign_in.leave, name="sign_out"),
    # Nobody has a password here: the admin's own login page is put out of reach.
    path("admin/login/", sign_in.enter_admin, name="admin_login"),
    path("admin/", admin.site.urls),
    path("", include("experiments.urls")),
]
