from django.urls import path
from django_bouncy.views import endpoint

urlpatterns = [
    path("mail/bouncy/", endpoint),
]
