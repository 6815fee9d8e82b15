"""What a disk may hold after a power cut, built from a record of all that was written to it and synced. Pure.

A write is certain to be on the disk once the file was synced after it, a removal once its folder was. Until then it may
be there, or not, or in part.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

WRITE, TRUNCATE, SYNC, UNLINK, NOTE = 1, 2, 3, 4, 100
HEAD = struct.Struct("<IIQQ")
Model = Literal["synced", "some", "torn"]
MODELS: tuple[Model, ...] = ("synced", "some", "torn")
"""Nothing that was not synced; a part of it, in any order; all of it, but half of the last write."""


class Record(NamedTuple):
    """One thing that happened. A note is what a process knew at that moment: its path is the text."""

    kind: int
    path: str
    offset: int
    data: bytes


def parse(content: bytes) -> list[Record]:
    """The records in a log."""
    return list(_records(content))


def _records(content: bytes) -> Iterator[Record]:
    at = 0
    while at < len(content):
        kind, path_length, offset, length = HEAD.unpack_from(content, at)
        at += HEAD.size
        path = content[at : at + path_length].decode()
        at += path_length
        yield Record(kind, path, offset, content[at : at + length])
        at += length


def packed(record: Record) -> bytes:
    """The record as it stands in a log."""
    path = record.path.encode()
    return HEAD.pack(record.kind, len(path), record.offset, len(record.data)) + path + record.data


@dataclass(slots=True)
class _File:
    certain: bytearray = field(default_factory=bytearray)
    pending: list[Record] = field(default_factory=list)


class Disk:
    """The disk as records go by."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._last: Record | None = None

    def apply(self, record: Record) -> None:
        """One more record."""
        if record.kind == NOTE:
            return
        if record.kind == SYNC and record.path not in self._files:
            self._sync_folder(record.path)
            return
        file = self._files.setdefault(record.path, _File())
        if record.kind == SYNC:
            for one in file.pending:
                _do(file.certain, one)
            file.pending.clear()
        else:
            file.pending.append(record)
            self._last = record

    def _sync_folder(self, folder: str) -> None:
        for path, file in self._files.items():
            if path.rpartition("/")[0] == folder:
                removals = [number for number, one in enumerate(file.pending) if one.kind == UNLINK]
                if removals:
                    file.certain.clear()
                    del file.pending[: removals[-1] + 1]

    def after_cut(self, model: Model, chance: random.Random) -> dict[str, bytes]:
        """The content of each file, were the power cut now."""
        return {path: bytes(self._content(file, model, chance)) for path, file in self._files.items()}

    def _content(self, file: _File, model: Model, chance: random.Random) -> bytearray:
        content = bytearray(file.certain)
        match model:
            case "synced":
                kept = []
            case "some":
                kept = [record for record in file.pending if chance.random() < 0.5]
            case "torn":
                kept = [_torn(record, chance) if record is self._last else record for record in file.pending]
        for record in kept:
            _do(content, record)
        return content


def _torn(record: Record, chance: random.Random) -> Record:
    return record._replace(data=record.data[: chance.randrange(len(record.data) + 1)])


def _do(content: bytearray, record: Record) -> None:
    match record.kind:
        case 1:
            if len(content) < record.offset:
                content.extend(bytes(record.offset - len(content)))
            content[record.offset : record.offset + len(record.data)] = record.data
        case 2:
            if len(content) > record.offset:
                del content[record.offset :]
            else:
                content.extend(bytes(record.offset - len(content)))
        case _:
            content.clear()
