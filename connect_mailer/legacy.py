"""Old dotted paths: modules that a site still names and that no longer import.

An import hook serves them, so nothing is loaded before it is asked for and no folder of
another project's name is in the wheel. The attributes are links to this app's own objects,
followed when they are used.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final

from django.utils.module_loading import import_string

logger = logging.getLogger(__name__)

# How code for Python 2, or for a Django of its time, fails to import today.
_OUTDATED: Final = (AttributeError, ImportError, NameError, SyntaxError, TypeError)


class _StandIn(Loader):
    """What a module has, and how it gets it.

    ``links`` are dotted paths by attribute name; none: it is an empty package. ``published_first``:
    whether a published module comes first where there is one that imports. ``is_deprecated``:
    whether code that uses it is told what to use instead. ``then``: a function, called once the
    published module is there.
    """

    # The loader of the published module, where that comes first.
    published: Loader | None = None

    def __init__(
        self,
        links: Mapping[str, str],
        *,
        published_first: bool = True,
        is_deprecated: bool = True,
        then: str = "",
    ) -> None:
        self.links = links
        self.published_first = published_first
        self._is_deprecated = is_deprecated
        self._then = then

    def exec_module(self, module: ModuleType) -> None:
        if self.published is not None:
            try:
                self.published.exec_module(module)
            except _OUTDATED as error:
                logger.debug("%s does not import, using ours: %s", module.__name__, error)
            else:
                if self._then:
                    import_string(self._then)()
                return

        def follow(name: str) -> Any:
            if name in self.links:
                if self._is_deprecated and _get_caller() != _LOADER_OF_SETTINGS:
                    warnings.warn(
                        f"{module.__name__}.{name} is now {self.links[name]}.",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                return import_string(self.links[name])
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name)

        for name in self.links:
            vars(module).pop(name, None)  # what a published module had before it failed
        vars(module).update(__getattr__=follow, __all__=list(self.links))


_STAND_INS: Final = {
    # Never the published ones, which are none that this app would send.
    "django_bouncy.signals": _StandIn(
        links={
            name: f"connect_mailer.bouncy.signals.{name}"
            for name in ("notification", "subscription", "feedback")
        },
        published_first=False,
        is_deprecated=False,
    ),
    # As published, and then mended: most processes never ask for migrations.
    "django_bouncy.migrations": _StandIn(links={}, then="connect_mailer.bouncy.migrated.mend"),
    # Never the published ones: they can't verify what SNS signs today.
    "django_bouncy.urls": _StandIn(
        links={"urlpatterns": "connect_mailer.bouncy.urls.urlpatterns"}, published_first=False
    ),
    "django_bouncy.views": _StandIn(
        links={"endpoint": "connect_mailer.feedback.webhook.endpoint"}, published_first=False
    ),
    "django_bouncy.utils": _StandIn(
        links={
            name: f"connect_mailer.bouncy.utils.{name}"
            for name in ("verify_notification", "approve_subscription", "clean_time")
        },
        published_first=False,
    ),
    "seacucumber": _StandIn(links={}),
    # What EMAIL_BACKEND names, so it queues; as a transport, `conf` reads it as SESBackend.
    "seacucumber.backend": _StandIn(
        links={"SESBackend": "connect_mailer.backend.ConnectMailerBackend"}
    ),
    "seacucumber.util": _StandIn(
        links={"get_boto_ses_connection": "connect_mailer.account.aws.get_ses_client"}
    ),
}

# Who follows what the settings name. The old path of the backend is good in the settings for
# as long as the environment of a deployment has it.
_LOADER_OF_SETTINGS: Final = "django.utils.module_loading"


def register() -> None:
    """Serve the old paths from now on, before the modules on ``sys.path``."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        stand_in = _STAND_INS.get(fullname)
        if stand_in is None:
            return None
        spec = PathFinder.find_spec(fullname, path) if stand_in.published_first else None
        if spec is None:
            spec = ModuleSpec(fullname, None, is_package=not stand_in.links)
        stand_in.published, spec.loader = spec.loader, stand_in
        return spec


def _get_caller() -> str:
    """The module that asked a stand-in for an attribute."""
    return str(sys._getframe(2).f_globals.get("__name__"))
