"""A message by e-mail, through the SMTP server of the user's configuration (RFC 5321, RFC 3207)."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from poncho_wq.batch.settings import config_file, section
from poncho_wq.errors import EngineError, FetchError, SpecError

TIMEOUT = 30  # seconds
SECURITY = ("none", "starttls", "tls")


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """An SMTP server, how to speak to it, and whose message goes to whom."""

    host: str
    port: int
    security: str
    sender: str
    to: str
    user: str | None
    password: str | None


def account() -> Account:
    """The one of the user's configuration.  Raises ``EngineError`` when there is none, ``SpecError`` for a bad one."""
    found = section("email", {"host": "your SMTP server", "to": "your address"})
    if found is None:
        raise EngineError(
            "a message by e-mail is asked for, and no SMTP server is configured",
            advice=f'put [email] with host = "…" and to = "…" (and from, port, user, password, security = "starttls") '
            f"in {config_file()}, or leave out the notification",
        )
    security = found.get("security", "none")
    if security not in SECURITY:
        raise SpecError(f"expected one of {', '.join(SECURITY)}, got {security!r}", path="email.security")
    port = found.get("port", {"none": "25", "starttls": "587", "tls": "465"}[security])
    if not port.isdigit() or int(port) > 65535:
        raise SpecError(f"expected a port, got {port!r}", path="email.port")
    return Account(
        host=found["host"], port=int(port), security=security, sender=found.get("from", found["to"]), to=found["to"],
        user=found.get("user"), password=found.get("password"),
    )  # fmt: skip


def send(by: Account, to: str, subject: str, text: str) -> None:
    """Send ``text`` to ``to`` (empty: the account's own).  Raises ``FetchError``, without the password."""
    message = EmailMessage()
    # A name of a job is on one line, but what follows is a header: better sure.
    message["Subject"] = " ".join(subject.split())
    message["From"], message["To"] = by.sender, to or by.to
    message["Date"], message["Message-ID"] = formatdate(localtime=True), make_msgid(domain="poncho-wq.invalid")
    message.set_content(text + "\n")
    try:
        if by.security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                by.host, by.port, timeout=TIMEOUT, context=ssl.create_default_context()
            )
        else:
            server = smtplib.SMTP(by.host, by.port, timeout=TIMEOUT)
        with server:
            if by.security == "starttls":
                server.starttls(context=ssl.create_default_context())
            if by.user:
                server.login(by.user, by.password or "")
            server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise FetchError(f"{by.host}:{by.port}: {type(error).__name__}: {error}") from None
