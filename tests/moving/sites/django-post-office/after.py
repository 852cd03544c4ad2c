from django.db import connection
from django.utils import timezone

from connect_mailer.models import OutgoingMessage, Unsubscribe
from connect_mailer.testing import deliver_all

assert dict(Unsubscribe.objects.values_list("address", "source")) == {
    "hard@example.org": "bounce",
    "spam@example.org": "complaint",
    "out@example.org": "user",
}
rows = {row.subject: row for row in OutgoingMessage.objects.all()}
assert {subject: row.status for subject, row in rows.items()} == {
    "By Django": "queued",
    "Hi Jo": "queued",
    "Later": "queued",
    "Again": "suppressed",
}
assert (rows["By Django"].priority, rows["Hi Jo"].priority) == (5, 2)
assert rows["Later"].send_after > timezone.now()
assert b"a.txt" in bytes(rows["Later"].content.mime)
assert set(rows["Later"].recipients.values_list("address", "kind")) == {
    ("eve@example.org", "to"),
    ("max@example.org", "cc"),
}
assert deliver_all() == 2
# What could not be taken is there still, for its owner to look at.
with connection.cursor() as cursor:
    cursor.execute("SELECT COUNT(*) FROM post_office_email WHERE status IN (2, 3)")
    assert cursor.fetchone() == (2,)
