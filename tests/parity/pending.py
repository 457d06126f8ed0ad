"""What `pytest` leaves out until its work is done. Naming sections or folders ignores this."""

PENDING_SECTIONS: frozenset[str] = frozenset()

PENDING_TYPES: frozenset[str] = frozenset()
"""Layer types, as the summary names them; a case with any of them waits."""
