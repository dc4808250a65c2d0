"""`python -m trainers COMMAND …`: the command line where the project is not installed, as in a job on a cluster."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a cluster's Python need not be the project's
    print(f"edgeflock: this node has Python {sys.version.split()[0]}, expected 3.11 or later", file=sys.stderr)
    raise SystemExit(2)

try:
    from trainers.cli import main
except ModuleNotFoundError as error:
    lacks = f"edgeflock: this node lacks the package {error.name}: start it from cluster/Dockerfile or with requirements.txt"
    print(lacks, file=sys.stderr)
    raise SystemExit(2) from None

if __name__ == "__main__":
    main()
