import os

from connect_mailer.conf import conf
from connect_mailer.models import OutgoingMessage, Unsubscribe

assert dict(Unsubscribe.objects.values_list("address", "source")) == {
    "hard@example.org": "bounce",
    "spam@example.org": "complaint",
}
assert sorted(OutgoingMessage.objects.values_list("subject", "status")) == [
    (f"No. {n}", "sent") for n in range(3)
]
assert (conf.queue, conf.rate, conf.ses.region) == ("mail", 20, "eu-west-1")
assert conf.ses.access_key_id == os.environ["SES_KEY_ID"]
