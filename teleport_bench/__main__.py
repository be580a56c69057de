"""`python -m teleport_bench`."""

from teleport_bench.cli import main

raise SystemExit(main())
