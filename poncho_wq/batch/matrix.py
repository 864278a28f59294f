"""A message to a Matrix user, by a homeserver's client API (https://spec.matrix.org/v1.11/client-server-api/)."""

from __future__ import annotations

import json
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from poncho_wq.batch.settings import config_file, section
from poncho_wq.errors import EngineError, FetchError

TIMEOUT = 30  # seconds
_API = "/_matrix/client/v3"


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Who sends: a homeserver's URL and an access token there."""

    homeserver: str
    token: str


def account() -> Account:
    """The one of the user's configuration.  Raises ``EngineError`` when there is none, ``SpecError`` for a bad one."""
    found = section("matrix", {"homeserver": "the URL of your homeserver", "token": "an access token there"})
    if found is None:
        raise EngineError(
            "the batch asks for a message by Matrix, and no Matrix account is configured",
            advice=f'put [matrix] with homeserver = "https://…" and token = "…" in {config_file()}, '
            "or set matrix: ~ in the batch",
        )
    return Account(homeserver=found["homeserver"].rstrip("/"), token=found["token"])


def send(sender: Account, user: str, text: str) -> None:
    """Send ``text`` to ``user`` (``@name:server``), in the direct room there is with them, or a new one.

    Raises ``FetchError``, without the token.
    """
    me = _call(sender, "GET", "/account/whoami")["user_id"]
    data = f"/user/{quote(me)}/account_data/m.direct"
    rooms: dict[str, list[str]] = _call(sender, "GET", data, missing={})
    if not rooms.get(user):
        made = _call(
            sender, "POST", "/createRoom", {"is_direct": True, "invite": [user], "preset": "trusted_private_chat"}
        )
        rooms = {**rooms, user: [made["room_id"]]}
        _call(sender, "PUT", data, rooms)
    message = {"msgtype": "m.text", "body": text}
    _call(sender, "PUT", f"/rooms/{quote(rooms[user][0])}/send/m.room.message/{secrets.token_hex(8)}", message)


def _call(sender: Account, method: str, path: str, body: Any = None, *, missing: Any = None) -> Any:
    request = urllib.request.Request(
        sender.homeserver + _API + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {sender.token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404 and missing is not None:
            return missing
        raise FetchError(f"{sender.homeserver}: {method} {path}: {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise FetchError(f"{sender.homeserver}: {method} {path}: {getattr(error, 'reason', error)}") from None
