"""The admin client of a command, as the global options say."""

from __future__ import annotations

from shmlog.cli.settings import Settings
from shmlog.client.admin import Admin
from shmlog.client.engine import API_TIMEOUT_NS
from shmlog.clock import NS_PER_S


def open_admin(settings: Settings, default_s: float = API_TIMEOUT_NS / NS_PER_S) -> Admin:
    """An admin of the cluster that is meant; each of its calls may take as long as the command."""
    return Admin(settings.where, timeout=settings.timeout_s or default_s)
