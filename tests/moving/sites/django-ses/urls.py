from django.urls import path
from django_ses.views import SESEventWebhookView

urlpatterns = [
    path("ses/event-webhook/", SESEventWebhookView.as_view()),
]
