"""`python -m tests.benchmarks.rescue`."""

from tests.benchmarks.rescue.bench import main

if __name__ == "__main__":
    main()
