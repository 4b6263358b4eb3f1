"""Which topics a member wants: names, and patterns with `*` and `?`.

A pattern costs time linear in the name for each of its stars; internal topics (`__...`) match no pattern.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from shmlog.errors import Code, InvalidRequest

_WILD = frozenset("*?")
_ALLOWED = re.compile(r"[A-Za-z0-9._*?-]{1,249}")


def is_pattern(name: str) -> bool:
    """Is it a pattern, and not a name?"""
    return bool(_WILD & set(name))


def check(name: str) -> None:
    """Raises InvalidRequest (128) unless it is a name or pattern that topics can have."""
    if not _ALLOWED.fullmatch(name):
        raise InvalidRequest(
            f"subscription {name[:60]!r}: 1 to 249 of A-Z a-z 0-9 . _ - * ?",
            code=Code.INVALID_REGULAR_EXPRESSION,
        )


def matching(subscriptions: Sequence[str], topics: Iterable[str]) -> list[str]:
    """The topics that exist and are wanted, sorted."""
    patterns = [_compiled(s) for s in subscriptions if is_pattern(s)]
    names = {s for s in subscriptions if not is_pattern(s)}
    return sorted(
        topic
        for topic in topics
        if topic in names
        or (not topic.startswith("__") and any(p.fullmatch(topic) for p in patterns))
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    # Only the two: a bracket is itself. fnmatch makes each star possessive, so nothing is tried twice.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
