from importlib import import_module
from typing import Any

import django.db.models.deletion
from django.db import migrations, models

import connect_mailer.models

line = import_module('connect_mailer.migrations.0003_outgoingmessage_line')


class DropFieldIndex(migrations.AlterField):
    """A field's own indexes are dropped, and nothing else is done.

    Django's operation copies the table for that on SQLite, checks a foreign key anew, and stops
    who reads and writes on PostgreSQL.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        options = {'concurrently': True} if schema_editor.connection.vendor == 'postgresql' else {}
        for name in schema_editor._constraint_names(
            model,
            [model._meta.get_field(self.name).column],
            index=True,
            unique=False,
            exclude={index.name for index in model._meta.indexes},
        ):
            schema_editor.execute(schema_editor._delete_index_sql(model, name, **options))

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        super().database_forwards(app_label, schema_editor, from_state, to_state)


class Migration(migrations.Migration):
    atomic = False  # as PostgreSQL wants it for an index that is made concurrently

    dependencies = [
        ('connect_mailer', '0006_messageevent_returned'),
    ]

    operations = [
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(condition=models.Q(('lane__isnull', False)), fields=['lane', 'turn'], name='connect_mailer_in_line'),
        ),
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(condition=models.Q(('status', 'queued'), ('status', 'sending'), ('status', 'failed'), ('status', 'suppressed'), ('status', 'expired'), _connector='OR'), fields=['status', 'lane', 'due_at'], name='connect_mailer_unsent'),
        ),
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(condition=models.Q(('finished_at__isnull', False)), fields=['finished_at'], name='connect_mailer_finished'),
        ),
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(condition=models.Q(('content__isnull', False)), fields=['content'], name='connect_mailer_body'),
        ),
        line.AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(condition=models.Q(('ses_message_id', ''), _negated=True), fields=['ses_message_id'], name='connect_mailer_ses_id'),
        ),
        line.AddIndexOnline(
            model_name='outgoingrecipient',
            index=models.Index(fields=['address'], name='connect_mailer_recipient'),
        ),
        line.RemoveIndexOnline(
            model_name='outgoingmessage',
            name='connect_mailer_line',
        ),
        line.RemoveIndexOnline(
            model_name='outgoingmessage',
            name='connect_mailer_waiting',
        ),
        DropFieldIndex(
            model_name='outgoingmessage',
            name='content',
            field=models.ForeignKey(blank=True, db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='messages', to='connect_mailer.outgoingcontent', verbose_name='content'),
        ),
        DropFieldIndex(
            model_name='outgoingmessage',
            name='finished_at',
            field=models.DateTimeField(blank=True, null=True, verbose_name='finished'),
        ),
        DropFieldIndex(
            model_name='outgoingmessage',
            name='ses_message_id',
            field=models.CharField(blank=True, default='', max_length=100, verbose_name='SES message id'),
        ),
        DropFieldIndex(
            model_name='outgoingrecipient',
            name='address',
            field=connect_mailer.models.AddressField(max_length=320, verbose_name='address'),
        ),
        # As it is, but for the second index of a text that Django makes on PostgreSQL, for LIKE.
        DropFieldIndex(
            model_name='notificationreceipt',
            name='message_id',
            field=models.CharField(max_length=100, unique=True, verbose_name='SNS message id'),
        ),
    ]
