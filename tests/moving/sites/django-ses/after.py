import os

from django.core.mail import send_mail
from django.db import connection

from connect_mailer.conf import conf
from connect_mailer.models import Unsubscribe

assert set(Unsubscribe.objects.values_list("address", "source")) == {
    ("bounced@example.org", "bounce"),
    ("gone@example.org", "bounce"),
}
assert send_mail("After all", "Text", None, ["gone@example.org"]) == 0
assert conf.ses.region == "eu-west-1"
assert conf.ses.configuration_set == "site"
assert conf.ses.access_key_id == os.environ["SES_KEY_ID"]
# The old tables are as they were.
with connection.cursor() as cursor:
    cursor.execute("SELECT COUNT(*) FROM django_ses_sesstat")
    assert cursor.fetchone() == (1,)
