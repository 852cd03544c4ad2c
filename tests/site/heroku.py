"""The site's Celery app with a task of the site's own."""

from __future__ import annotations

import time
from pathlib import Path

from tests.site.celery import app


@app.task
def nap(folder: str, seconds: float) -> None:
    """Say when it begins and when it is done."""
    (Path(folder) / "begun").touch()
    time.sleep(seconds)
    (Path(folder) / "done").touch()
