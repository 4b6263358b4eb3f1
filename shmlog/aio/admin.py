"""Administration, for asyncio."""

from __future__ import annotations

import functools
from typing import Any

from shmlog.aio.face import Face, asked, opens
from shmlog.client.admin import Admin as _Admin


class Admin(Face[_Admin]):
    """Questions and changes about the cluster: see shmlog.Admin. For the tasks of one loop.

    A call that is cancelled may have been carried out.
    """

    @opens(_Admin)
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(functools.partial(_Admin, *args, **options))

    hello = asked(_Admin.hello)
    metadata = asked(_Admin.metadata)
    list_topics = asked(_Admin.list_topics)
    create_topic = asked(_Admin.create_topic)
    alter_topic = asked(_Admin.alter_topic)
    add_partitions = asked(_Admin.add_partitions)
    delete_topic = asked(_Admin.delete_topic)
    describe_topic = asked(_Admin.describe_topic)
    delete_records = asked(_Admin.delete_records)
    list_offsets = asked(_Admin.list_offsets)
    describe_cluster = asked(_Admin.describe_cluster)
    elect = asked(_Admin.elect)
    rebalance = asked(_Admin.rebalance)
    epochs = asked(_Admin.epochs)
    metadata_log = asked(_Admin.metadata_log)
