from connect_mailer.conf import conf
from connect_mailer.models import OutgoingMessage, OutgoingRecipient

assert sorted(OutgoingMessage.objects.values_list("subject", "status")) == [
    ("Letter", "sent"),
    *((f"No. {n}", "sent") for n in range(4)),
]
assert OutgoingRecipient.objects.count() == 6
assert (conf.queue, conf.rate) == ("mail", 50 / 60)
