"""How passwords are kept: salted scrypt over the SHA-512 that clients send.

Invariant: checking takes the same time whether the account exists or not, and never blocks the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import os
from concurrent.futures import ThreadPoolExecutor

_COST, _BLOCK, _PARALLEL = 2**12, 8, 1
# Two at a time: each needs 4 MiB and a processor, and logins must not starve the rest.
_threads = ThreadPoolExecutor(2, thread_name_prefix="passwords")


async def hashed(password: str) -> str:
    """What to store for a password."""
    salt = os.urandom(16)
    return f"scrypt${_COST}${salt.hex()}${(await _derive(password, salt, _COST)).hex()}"


async def matches(password: str, stored: str | None) -> bool:
    """Whether this is the password behind `stored`; None stands for an account that does not exist."""
    _, cost, salt, digest = (stored or _NOBODY).split("$")
    derived = await _derive(password, bytes.fromhex(salt), int(cost))
    return hmac.compare_digest(derived.hex(), digest) and stored is not None


async def _derive(password: str, salt: bytes, cost: int) -> bytes:
    work = functools.partial(hashlib.scrypt, password.encode(), salt=salt, n=cost, r=_BLOCK, p=_PARALLEL, dklen=32)
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


_NOBODY = f"scrypt${_COST}${'00' * 16}${'00' * 32}"
