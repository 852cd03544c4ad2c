"""How the documentation is built: ``sphinx-build -W -n docs docs/_build/html``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from connect_mailer import __version__

project = "connect_mailer"
project_copyright = "The connect_mailer developers"
release = version = __version__

extensions = ["docs.settings_reference"]
exclude_patterns = ["_build"]
templates_path = []
default_role = "literal"
highlight_language = "python"
nitpicky = True

html_theme = "furo"
html_title = f"connect_mailer {release}"
html_copy_source = False
html_show_sphinx = False
