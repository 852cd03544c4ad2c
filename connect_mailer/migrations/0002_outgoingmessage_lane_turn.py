from django.db import migrations, models


class Migration(migrations.Migration):
    """Two columns that are null: no database rewrites the table for them.

    Rows that are open stay as they are; the first drain lets them into the line.
    """

    dependencies = [
        ('connect_mailer', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='outgoingmessage',
            name='lane',
            field=models.PositiveSmallIntegerField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name='outgoingmessage',
            name='turn',
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
