from importlib import import_module

from django.conf import settings
from django.db import migrations, models

line = import_module('connect_mailer.migrations.0003_outgoingmessage_line')


class Migration(migrations.Migration):
    atomic = False  # as PostgreSQL wants it for an index that is made concurrently

    dependencies = [
        ('connect_mailer', '0007_fewer_indexes'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(condition=models.Q(('in_doubt', True)), fields=['id'], name='connect_mailer_in_doubt'),
        ),
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(condition=models.Q(('stream', 'transactional')), fields=['id'], name='connect_mailer_urgent'),
        ),
        line.AddIndexOnline(
            model_name='unsubscribe',
            index=models.Index(fields=['created_at'], name='connect_mailer_since'),
        ),
        line.AddIndexOnline(
            model_name='unsubscribe',
            index=models.Index(fields=['source', 'id'], name='connect_mailer_source'),
        ),
        line.AddIndexOnline(
            model_name='unsubscribe',
            index=models.Index(condition=models.Q(('expires_at__isnull', False)), fields=['expires_at'], name='connect_mailer_ends'),
        ),
    ]
