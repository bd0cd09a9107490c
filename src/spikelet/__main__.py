"""`python -m spikelet` is `spikelet`."""

from spikelet.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
