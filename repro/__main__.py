"""`python -m repro` is `vggc`."""

from repro.cli import main

if __name__ == "__main__":
    main()
