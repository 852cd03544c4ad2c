"""Connect's settings, in modules as it has them."""

from tests.connect.settings.django_settings import *  # noqa: F403, I001
from tests.connect.settings.authentication_settings import *  # noqa: F403
from tests.connect.settings.celery_settings import *  # noqa: F403
from tests.connect.settings.mail_settings import *  # noqa: F403
