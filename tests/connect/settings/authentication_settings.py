"""Who is who, and which pages need no login."""

AUTH_USER_MODEL = "accounts.User"
# Account mail goes to those who opted out as well.
ACCOUNT_IGNORE_UNSUBSCRIBE = True
LOGIN_URL = "/user/login/"
LOGIN_EXEMPT_URLS = [r"^$", r"^user/*", r"^mail/*", r"^about/*"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "tests.connect.middleware.LoginRequiredMiddleware",
]
