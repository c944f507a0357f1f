"""Seeds of a run's random draws: each is a function of what it is for, so that a run can be resumed."""

import hashlib


def seed_of(*key: object) -> int:
    """Hash of `key`, a non-negative 63-bit seed."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1
