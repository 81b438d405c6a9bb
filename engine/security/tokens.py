"""Who calls, and what the caller may do: JSON Web Tokens signed with EdDSA."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt

from engine.errors import Denied, Unauthenticated
from engine.security.keys import FileKeys

ISSUER = "magicflow"
AUDIENCE = "magicflow"
ALGORITHM = "EdDSA"
EVERY_APP = "*"
SCOPES = ("trigger", "work", "operate", "admin")
LEEWAY = 60  # seconds that clocks may differ
_CACHED = 10_000
_MAX_TOKEN = 8_192  # characters


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller. `app` is `*` for one that may speak for every app."""

    app: str
    subject: str
    scopes: frozenset[str]
    token_id: str = ""
    expires_at: float = float("inf")  # seconds since 1970

    def may(self, scope: str, app: str) -> bool:
        if self.app not in (EVERY_APP, app):
            return False
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: str, app: str) -> None:
        """Errors: `Denied` with what the token lacks."""
        if self.app not in (EVERY_APP, app):
            raise Denied(
                f"this token is for app {self.app}; the call is about app {app}",
                reason="TOKEN_SCOPE",
                mend=f"use a token of app {app}: `magicflow app token '{app}'`",
            )
        if not self.may(scope, app):
            raise Denied(
                f"this token does not have the scope {scope} that the call needs",
                reason="TOKEN_SCOPE",
                mend=f"make a token with it: `magicflow app token '{app}' --scopes {scope}`",
            )


LOCAL = Identity(EVERY_APP, "local", frozenset(SCOPES))
SERVICE = "service"


class Tokens:
    """Makes and checks tokens. Checked ones are remembered until they expire, because one check
    of a signature costs as much as a hundred tasks."""

    def __init__(self, keys: FileKeys, revoked: Callable[[str], bool]) -> None:
        self._keys = keys
        self._revoked = revoked
        self._known: OrderedDict[str, Identity] = OrderedDict()

    def make(
        self, app: str, subject: str, scopes: tuple[str, ...], lifetime: float
    ) -> tuple[str, Identity]:
        """A token's text and whom it stands for. `lifetime` in seconds."""
        now = time.time()
        identity = Identity(app, subject, frozenset(scopes), secrets.token_hex(12), now + lifetime)
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "app": app,
            "scopes": sorted(scopes),
            "iat": int(now),
            "exp": int(now + lifetime),
            "jti": identity.token_id,
        }
        key_id, key = self._keys.signing()
        headers = {"kid": key_id, "typ": "magicflow+jwt"}
        return jwt.encode(claims, key, algorithm=ALGORITHM, headers=headers), identity

    def check(self, text: str) -> Identity:
        """Errors: `Unauthenticated` with what is wrong with the token."""
        known = self._known.get(text)
        if known is None:
            known = self._verify(text)
            self._known[text] = known
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        if time.time() > known.expires_at + LEEWAY:
            self._known.pop(text, None)
            raise _refuse("the token has expired")
        if self._revoked(known.token_id):
            raise _refuse("the token was revoked")
        return known

    def _verify(self, text: str) -> Identity:
        if len(text) > _MAX_TOKEN:
            raise _refuse("the token is too long")
        try:
            header = jwt.get_unverified_header(text)
            if header.get("alg") != ALGORITHM or header.get("typ") != "magicflow+jwt":
                raise _refuse("the token is of another kind")
            key = self._keys.verifying(str(header.get("kid", "")))
            if key is None:
                raise _refuse("the token is signed with a key that this cluster does not know")
            claims = jwt.decode(
                text,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=LEEWAY,
                # When it was made says nothing about whether it is good: clocks differ.
                options={"require": ["exp", "aud", "iss", "sub", "jti"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError as error:
            raise _refuse("the token has expired") from error
        except jwt.InvalidTokenError as error:
            raise _refuse(f"the token is not valid: {error}") from error
        scopes = claims.get("scopes")
        if not isinstance(claims.get("app"), str) or not isinstance(scopes, list):
            raise _refuse("the token lacks app or scopes")
        return Identity(
            claims["app"],
            str(claims["sub"]),
            frozenset(str(scope) for scope in scopes),
            str(claims["jti"]),
            float(claims["exp"]),
        )


def _refuse(message: str) -> Unauthenticated:
    return Unauthenticated(
        message,
        reason="TOKEN_INVALID",
        mend="get a token with `magicflow app token APP` and pass it as "
        "`authorization: Bearer …` or in MAGICFLOW_TOKEN",
    )
