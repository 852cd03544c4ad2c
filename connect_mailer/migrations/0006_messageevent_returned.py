from importlib import import_module

from django.db import migrations, models

line = import_module('connect_mailer.migrations.0003_outgoingmessage_line')


class Migration(migrations.Migration):
    atomic = False  # as PostgreSQL wants it for an index that is made concurrently

    dependencies = [
        ('connect_mailer', '0005_outgoingmessage_created'),
    ]

    operations = [
        line.AddIndexOnline(
            model_name='messageevent',
            index=models.Index(condition=models.Q(('kind__in', ['bounced', 'complained'])), fields=['kind', 'at'], name='connect_mailer_returned'),
        ),
    ]
