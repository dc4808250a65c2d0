"""What a policy remembers, as a text that a client carries from decision to decision and cannot change.

A token is base64 of: version (6 bytes), the state's numbers, and HMAC-SHA256 over both and over what the state belongs to. The
numbers lie as the policy itself lays them out (`StateLayout`), so nothing in a token is interpreted before it is authenticated.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import math
import os
import secrets
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.errors import InputError

KEY_BYTES = 32
MAC_BYTES = 32
VERSION_BYTES = 6


class StateLayout:
    """A policy's memory of one team as a string of bytes.

    Attributes:
        size: Bytes of one team; 0 for a policy without memory.
        initial: `[1, size]` uint8, the memory at the start of an episode.
    """

    def __init__(self, start: dict[str, Tensor]) -> None:
        """Args: start: What the policy's `initial_state(1)` returns."""
        self._parts = [(name, value.shape[1:], value.dtype) for name, value in start.items()]
        self._sizes = [math.prod(shape) * dtype.itemsize for _, shape, dtype in self._parts]
        self.size = sum(self._sizes)
        self.initial = self.to_bytes(start, 1)

    def to_bytes(self, state: dict[str, Tensor], teams: int) -> np.ndarray:
        """`[B, size]` uint8."""
        parts = [state[name].contiguous().view(teams, -1).numpy().view(np.uint8) for name, _, _ in self._parts]
        return np.concatenate(parts, axis=1) if parts else np.zeros((teams, 0), np.uint8)

    def to_state(self, data: np.ndarray) -> dict[str, Tensor]:
        """What `to_bytes` was given."""
        state, start = {}, 0
        for (name, shape, dtype), size in zip(self._parts, self._sizes, strict=True):
            part = torch.from_numpy(np.ascontiguousarray(data[:, start : start + size]))
            state[name] = part.view(dtype).reshape(len(data), *shape)
            start += size
        return state


class StateTokens:
    """Seals and opens tokens with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, owner: str, version: str, state: bytes) -> str:
        """The token of a state.

        Args:
            owner: What the state belongs to (a policy, or one agent of it): a token of another owner does not open.
            version: Of the policy, 12 hexadecimal digits.
        """
        content = bytes.fromhex(version) + state
        return base64.urlsafe_b64encode(content + self._mac(owner, content)).decode()

    def open(self, owner: str, token: str) -> tuple[str, bytes]:
        """Version and state.

        Raises:
            ValueError: The token was not sealed with this key for this owner.
        """
        try:
            data = base64.urlsafe_b64decode(token.encode())
        except (binascii.Error, ValueError):
            raise ValueError("state: expected a token that an earlier decision returned") from None
        content, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
        if len(content) < VERSION_BYTES or not hmac.compare_digest(mac, self._mac(owner, content)):
            raise ValueError("state: the token is not one of this policy, or was changed")
        return content[:VERSION_BYTES].hex(), content[VERSION_BYTES:]

    def _mac(self, owner: str, content: bytes) -> bytes:
        return hmac.digest(self._key, owner.encode() + b"\0" + content, "sha256")


def read_key(path: Path) -> bytes:
    """The key in a file of at least 32 bytes; a new file with a random one, readable by its owner only, if there is none.

    Raises:
        InputError: The file cannot be read or made, or is too short for a key.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "xb", opener=_private) as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        key = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be used as the file of the key for state tokens: {error.strerror}") from None
    if len(key) < KEY_BYTES:
        raise InputError(f"{path}: {len(key)} bytes: expected a key of at least {KEY_BYTES}")
    return key


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
