"""What a run leaves behind: one record, on disk as one JSON file."""

from teleport_bench.record.records import Records
from teleport_bench.record.schema import Record, Status
from teleport_bench.record.store import Store

__all__ = ["Record", "Records", "Status", "Store"]
