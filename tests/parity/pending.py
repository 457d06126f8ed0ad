"""What `pytest` leaves out until its work is done. Naming sections or folders ignores this."""

PENDING_SECTIONS: frozenset[str] = frozenset(
    {
        "zoo_build",  # 73% of the published nets build, 85% are wanted
    }
)

PENDING_TYPES: frozenset[str] = frozenset()
"""Layer types, as the summary names them; a case with any of them waits."""
