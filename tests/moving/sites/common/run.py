"""Run a file of the site, with Django set up: ``python run.py FILE``."""

import os
import runpy
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()
runpy.run_path(sys.argv[1])
