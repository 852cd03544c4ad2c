from typing import Any

from django.db import migrations, models


class AddIndexOnline(migrations.AddIndex):
    """An index that is made without stopping who writes.

    MySQL does so by itself; Django's own operation for PostgreSQL needs that database.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        if schema_editor.connection.vendor != 'postgresql':
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            schema_editor.add_index(model, self.index, concurrently=True)


class RemoveIndexOnline(migrations.RemoveIndex):
    """An index that is dropped without stopping who reads and writes: as ``AddIndexOnline``."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        if schema_editor.connection.vendor != 'postgresql':
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = from_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            index = from_state.models[app_label, self.model_name_lower].get_index_by_name(self.name)
            schema_editor.remove_index(model, index, concurrently=True)


class Migration(migrations.Migration):
    atomic = False  # as PostgreSQL wants it for an index that is made concurrently

    dependencies = [
        ('connect_mailer', '0002_outgoingmessage_lane_turn'),
    ]

    operations = [
        AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(fields=['lane', 'turn'], name='connect_mailer_line'),
        ),
        AddIndexOnline(
            model_name='outgoingmessage',
            index=models.Index(fields=['status', 'lane', 'due_at'], name='connect_mailer_waiting'),
        ),
        RemoveIndexOnline(
            model_name='outgoingmessage',
            name='connect_mailer_open',
        ),
    ]
