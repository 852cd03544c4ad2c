from django.db import connection

from connect_mailer.models import OutgoingMessage, Unsubscribe
from connect_mailer.testing import deliver_all

assert set(Unsubscribe.objects.values_list("address", "source")) == {
    ("left@example.org", "manual"),
    ("other@example.org", "manual"),
}
rows = {row.subject: row for row in OutgoingMessage.objects.all()}
assert {subject: (row.status, row.priority) for subject, row in rows.items()} == {
    "By Django": ("queued", 5),
    "Letter": ("queued", 5),
    "High": ("queued", 2),
    "Deferred": ("queued", 8),
    "Left": ("suppressed", 5),
}
mime = bytes(rows["Letter"].content.mime)
assert b"text/html" in mime
assert b"a.txt" in mime
assert rows["Letter"].recipients.count() == 2
assert deliver_all() == 4
# Only what nobody can read is there still.
with connection.cursor() as cursor:
    cursor.execute("SELECT COUNT(*) FROM mailer_message")
    assert cursor.fetchone() == (1,)
