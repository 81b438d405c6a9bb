"""Signing keys from files: one folder, `<key id>.pem` each, the newest signs, all verify."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from engine.errors import Unavailable


class FileKeys:
    """Ed25519 keys. To rotate, put another file into the folder and call `load` again; take the
    old one away once its tokens have expired."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._private: dict[str, Ed25519PrivateKey] = {}
        self._public: dict[str, Ed25519PublicKey] = {}
        self._newest = ""

    @classmethod
    def open(cls, folder: Path, create: bool) -> FileKeys:
        """The keys of a folder; with `create` a first one is made where there is none.

        Errors: `Unavailable` where no key is found or a file cannot be read.
        """
        keys = cls(folder)
        if create and not any(folder.glob("*.pem")):
            keys._make()
        keys.load()
        return keys

    def load(self) -> None:
        """Reads the folder again. Errors: `Unavailable`."""
        files = sorted(self._folder.glob("*.pem"), key=lambda f: (f.stat().st_mtime, f.name))
        if not files:
            raise Unavailable(
                f"there is no signing key in {self._folder}",
                mend="copy the cluster's keys there, or let `magicflow dev` make one",
            )
        private = {}
        for file in files:
            try:
                key = serialization.load_pem_private_key(file.read_bytes(), None)
            except (ValueError, TypeError, OSError) as error:
                raise Unavailable(f"the signing key {file} cannot be read: {error}") from error
            if not isinstance(key, Ed25519PrivateKey):
                raise Unavailable(f"the signing key {file} is not an Ed25519 key")
            private[file.stem] = key
        self._private = private
        self._public = {kid: key.public_key() for kid, key in private.items()}
        self._newest = files[-1].stem

    def _make(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        pem = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file = self._folder / f"key-{secrets.token_hex(4)}.pem"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(pem)

    def signing(self) -> tuple[str, Ed25519PrivateKey]:
        """The key id and key to sign with."""
        return self._newest, self._private[self._newest]

    def verifying(self, key_id: str) -> Ed25519PublicKey | None:
        return self._public.get(key_id)
