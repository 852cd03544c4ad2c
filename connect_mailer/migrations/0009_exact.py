from typing import Any

from django.db import migrations

import connect_mailer.models


class CompareExactly(migrations.AlterField):
    """A field gets its collation on MySQL and MariaDB; other databases are not asked anything.

    Django's operation sees no change in an ``AddressField``, and copies the table on SQLite for
    the others.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        connection = schema_editor.connection
        model = to_state.apps.get_model(app_label, self.model_name)
        if connection.vendor != 'mysql' or not self.allow_migrate_model(connection.alias, model):
            return
        field = model._meta.get_field(self.name)
        column = field.db_parameters(connection)
        quote = schema_editor.quote_name
        schema_editor.execute(
            f"ALTER TABLE {quote(model._meta.db_table)} MODIFY {quote(field.column)} "
            f"{column['type']} COLLATE {quote(column['collation'])} NOT NULL"
        )

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        # What is two by now may not become one.
        pass


class Migration(migrations.Migration):

    dependencies = [
        ('connect_mailer', '0008_desk'),
    ]

    operations = [
        CompareExactly(
            model_name='unsubscribe',
            name='address',
            field=connect_mailer.models.AddressField(max_length=320, verbose_name='address'),
        ),
        CompareExactly(
            model_name='unsubscribe',
            name='mailing_list',
            field=connect_mailer.models.ExactField(blank=True, default='', help_text='Empty: all mail of the site.', max_length=100, verbose_name='mailing list'),
        ),
        CompareExactly(
            model_name='outgoingrecipient',
            name='address',
            field=connect_mailer.models.AddressField(max_length=320, verbose_name='address'),
        ),
        CompareExactly(
            model_name='outgoingmessage',
            name='ses_message_id',
            field=connect_mailer.models.ExactField(blank=True, default='', max_length=100, verbose_name='SES message id'),
        ),
        CompareExactly(
            model_name='notificationreceipt',
            name='message_id',
            field=connect_mailer.models.ExactField(max_length=100, unique=True, verbose_name='SNS message id'),
        ),
    ]
