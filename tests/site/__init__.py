"""A site in processes of its own: ``python -m tests.site COMMAND``, or as a Celery app."""
