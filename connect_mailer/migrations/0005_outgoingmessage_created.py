from importlib import import_module

from django.db import migrations, models

# The name of a module that begins with a number can't be imported by a statement.
line = import_module('connect_mailer.migrations.0003_outgoingmessage_line')


class Migration(migrations.Migration):
    atomic = False  # as PostgreSQL wants it for an index that is made concurrently

    dependencies = [
        ('connect_mailer', '0004_figures'),
    ]

    operations = [
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(fields=['created_at'], name='connect_mailer_created'),
        ),
    ]
