"""Outgoing mail. Only ``EMAIL_BACKEND`` is not as Connect had it."""

from tests.connect.settings.django_settings import env

# The filter, whatever the environment says: that is handed on, as what the filter sends through.
EMAIL_BACKEND = "connect_mailer.backend.ConnectMailerBackend"
ORIGINAL_EMAIL_BACKEND = env(
    "EMAIL_BACKEND", default="django.core.mail.backends.console.EmailBackend"
)
DEFAULT_FROM_EMAIL = env("DEFAULT_FROM_EMAIL", default="no-reply@connect.example.org")
EMAIL_SECRET_KEY = env("EMAIL_SECRET_KEY", default="")

AWS_ACCESS_KEY_ID = env("AWS_ACCESS_KEY_ID", default="")
AWS_SECRET_ACCESS_KEY = env("AWS_SECRET_ACCESS_KEY", default="")
CUCUMBER_RATE_LIMIT = env.int("CUCUMBER_RATE_LIMIT", default=1)

BOUNCY_AUTO_SUBSCRIBE = env.bool("BOUNCY_AUTO_SUBSCRIBE", default=False)
BOUNCY_TOPIC_ARN = env("BOUNCY_TOPIC_ARN", default=None)
