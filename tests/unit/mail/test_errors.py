"""Errors of mail are those of smtplib and aiosmtplib too, and survive pickling."""

from __future__ import annotations

import inspect
import pickle
import smtplib

import aiosmtplib
import pytest

from flask_taskworker.mail import errors

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]


def made(cls: type[errors.MailError]) -> errors.MailError:
    parameters = [p for p in list(inspect.signature(cls).parameters.values()) if p.default is p.empty]
    values = {"code": 550, "text": "no \udcff", "sender": "a@x.org", "refused": {"b@x.org": (550, "no")}}
    return cls(**{p.name: values.get(p.name, "words") for p in parameters if p.kind is not p.VAR_POSITIONAL})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_error_comes_back_from_a_pickle_as_it_was(cls: type[errors.MailError]) -> None:
    error = made(cls)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), again.args) == (str(error), error.args)
    assert isinstance(again, smtplib.SMTPException)


def test_error_is_caught_by_the_name_that_the_same_event_has_elsewhere() -> None:
    for ours, theirs in {
        errors.RecipientsRefused: (smtplib.SMTPRecipientsRefused, aiosmtplib.SMTPRecipientsRefused),
        errors.SenderRefused: (smtplib.SMTPSenderRefused, aiosmtplib.SMTPSenderRefused),
        errors.ServerDisconnected: (smtplib.SMTPServerDisconnected, aiosmtplib.SMTPServerDisconnected),
        errors.ServerTimeout: (TimeoutError,),
        errors.ConnectionRefused: (ConnectionRefusedError,),
    }.items():
        assert all(issubclass(ours, cls) for cls in theirs)
