"""`python -m optwatch` is `optwatch`."""

from optwatch.cli import main

raise SystemExit(main())
