from news import send_news

from connect_mailer.conf import conf
from connect_mailer.models import OutgoingMessage, Unsubscribe
from connect_mailer.testing import deliver_all

# What SES suppresses in its own name.
assert set(Unsubscribe.objects.values_list("address", "source")) == {
    ("bounced@example.org", "bounce"),
    ("spam@example.org", "complaint"),
}
assert send_news("bounced@example.org") == 0
assert send_news("new@example.org") == 1
assert send_news("later@example.org", later=True) == 1
assert deliver_all() == 1
assert OutgoingMessage.objects.get(recipients__address="later@example.org").status == "queued"
assert conf.auto_subscribe is False
