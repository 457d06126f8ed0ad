"""What `pytest` leaves out until its work is done. Naming sections (`--section`, `--all-sections`) ignores this."""

PENDING_SECTIONS: frozenset[str] = frozenset(
    {
        "data",  # databases and image lists
        "protocols",  # dense and multi-crop evaluation
        "solvers",
        "2013-chain",  # needs solvers
        "2013-data",
        "2013-solver",
    }
)

PENDING_TYPES: frozenset[str] = frozenset(
    {
        "AnnotatedData",  # needs databases
    }
)
"""Layer types; a case with any of them waits."""
