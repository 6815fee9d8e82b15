"""The SQL of queued mail, in the manner of ``jobs.py``. Pure."""

from __future__ import annotations

import json

from ..schema import UNFINISHED
from .jobs import ColumnType, Dialect

MAIL: dict[str, ColumnType] = {
    "id": "text",
    "message_id": "text",
    "sender": "text",
    "options": "text",
    "once": "integer",
    "size": "integer",
    "layout": "text",
    "created_at": "integer",
    "give_up_at": "integer",
    "expires_at": "integer",
}
"""The columns of a mail that is stored, in the order in which a batch has them."""


def add_mails(dialect: Dialect) -> str:
    """Store a batch of mails; the ids of those that were not there already come back."""
    names = ", ".join(MAIL)
    return (
        f"INSERT INTO taskworker_mail ({names}) SELECT {names} FROM {dialect.batch(MAIL)} AS e WHERE true "
        "ON CONFLICT DO NOTHING RETURNING id"
    )


ADD_BODY = "INSERT INTO taskworker_mail_body (mail_id, body) VALUES (:id, :body) ON CONFLICT DO NOTHING"
"""Store the bytes of a mail."""


def add_recipients(dialect: Dialect) -> str:
    """Store the recipients of a batch of mails."""
    columns: dict[str, ColumnType] = {"mail_id": "text", "address": "text", "position": "integer"}
    names = ", ".join(columns)
    return (
        f"INSERT INTO taskworker_recipient ({names}, ending) SELECT {names}, 'waiting' FROM {dialect.batch(columns)} "
        "AS e WHERE true ON CONFLICT DO NOTHING"
    )


USE_BLOB = "UPDATE taskworker_blob SET uses = uses + :uses WHERE sha256 = :digest RETURNING sha256"
"""Count more mails that use a blob, if it is there."""

ADD_BLOB = (
    "INSERT INTO taskworker_blob (sha256, uses, bytes) VALUES (:digest, :uses, :bytes) "
    "ON CONFLICT (sha256) DO UPDATE SET uses = taskworker_blob.uses + excluded.uses"
)
"""Store a blob; one that another transaction has just stored is counted instead."""


# -- looking ---------------------------------------------------------------------------------------------------------

LOADED = ("id", "message_id", "sender", "options", "once", "phase", "tries", "layout", "give_up_at", "finished_at")


def mails(dialect: Dialect) -> str:
    """The mails with the ids in ``:ids``, their bytes last."""
    return (
        f"SELECT {', '.join(LOADED)}, body FROM taskworker_mail JOIN taskworker_mail_body ON mail_id = id "
        f"WHERE id IN {dialect.names('ids')}"
    )


MAIL_BYTES = "SELECT layout, body FROM taskworker_mail JOIN taskworker_mail_body ON mail_id = id WHERE id = :id"
"""The layout and the own bytes of one mail."""


def recipients(dialect: Dialect) -> str:
    """The recipients of the mails with the ids in ``:ids``, in order."""
    return (
        "SELECT mail_id, address, ending, code, text, next_try FROM taskworker_recipient "
        f"WHERE mail_id IN {dialect.names('ids')} ORDER BY mail_id, position"
    )


def blobs(dialect: Dialect) -> str:
    """The blobs with the hashes in ``:hashes``."""
    return f"SELECT sha256, bytes FROM taskworker_blob WHERE sha256 IN {dialect.names('hashes')}"


# -- delivering ------------------------------------------------------------------------------------------------------


ENTER_DOT = "UPDATE taskworker_mail SET phase = 'dot' WHERE id = :id AND phase IS NULL RETURNING id"
"""Note that a mail is about to be handed over that must never be handed over twice. One caller gets the row."""


def settle_recipients(dialect: Dialect) -> str:
    """Record what became of recipients. Nothing overrules an acceptance."""
    columns: dict[str, ColumnType] = {
        "mail_id": "text",
        "address": "text",
        "new_ending": "text",
        "new_code": "integer",
        "new_text": "text",
        "new_next_try": "integer",
    }
    return (
        "UPDATE taskworker_recipient SET ending = e.new_ending, code = e.new_code, text = e.new_text, "
        f"next_try = e.new_next_try FROM {dialect.batch(columns)} AS e WHERE taskworker_recipient.mail_id = e.mail_id "
        "AND taskworker_recipient.address = e.address AND taskworker_recipient.ending <> 'accepted'"
    )


def settle_mails(dialect: Dialect) -> str:
    """Count a try of each mail of a batch, and set the ends of those that are decided."""
    columns: dict[str, ColumnType] = {
        "id": "text",
        "new_phase": "text",
        "new_finished_at": "integer",
        "new_expires_at": "integer",
    }
    return (
        "UPDATE taskworker_mail SET tries = tries + 1, phase = e.new_phase, finished_at = e.new_finished_at, "
        f"expires_at = COALESCE(e.new_expires_at, expires_at) FROM {dialect.batch(columns)} AS e "
        "WHERE taskworker_mail.id = e.id"
    )


REOPEN_MAIL = (
    "UPDATE taskworker_mail SET phase = NULL, tries = 0, finished_at = NULL, give_up_at = :give_up_at, "
    "expires_at = :expires_at WHERE id = :id AND finished_at IS NOT NULL RETURNING id"
)
"""Let a person's decision send a mail again that was given up or held."""

REOPEN_RECIPIENTS = (
    "UPDATE taskworker_recipient SET ending = 'waiting', next_try = NULL WHERE mail_id = :id AND ending <> 'accepted'"
)
"""The recipients of a reopened mail that were not accepted wait again."""


# -- pruning ---------------------------------------------------------------------------------------------------------


def expired_mails(dialect: Dialect) -> str:
    """Delete a small batch of mails whose time is over, but none whose job is unfinished."""
    chosen = (
        "SELECT id FROM taskworker_mail AS m WHERE expires_at <= :now AND NOT EXISTS "
        f"(SELECT 1 FROM taskworker_job WHERE uid = m.id AND {UNFINISHED}) ORDER BY expires_at LIMIT :number"
    )
    return f"DELETE FROM taskworker_mail WHERE {dialect.among('id', chosen)} RETURNING id, layout"


def remove_recipients(dialect: Dialect) -> str:
    """Delete the recipients of deleted mails."""
    return f"DELETE FROM taskworker_recipient WHERE mail_id IN {dialect.names('ids')}"


def remove_bodies(dialect: Dialect) -> str:
    """Delete the bytes of deleted mails."""
    return f"DELETE FROM taskworker_mail_body WHERE mail_id IN {dialect.names('ids')}"


def release_blobs(dialect: Dialect) -> str:
    """Count fewer mails that use the blobs of a batch."""
    columns: dict[str, ColumnType] = {"sha256": "text", "released": "integer"}
    return (
        f"UPDATE taskworker_blob SET uses = uses - e.released FROM {dialect.batch(columns)} AS e "
        "WHERE taskworker_blob.sha256 = e.sha256"
    )


def remove_unused_blobs(dialect: Dialect) -> str:
    """Delete the blobs in ``:hashes`` that no mail uses any more."""
    return f"DELETE FROM taskworker_blob WHERE uses <= 0 AND sha256 IN {dialect.names('hashes')}"


def hashes_in(layout: str | None) -> list[str]:
    """The hashes of the shared bytes in a mail's layout, a JSON list of lengths and hashes."""
    return [part for part in json.loads(layout) if isinstance(part, str)] if layout else []
