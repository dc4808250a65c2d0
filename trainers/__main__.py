"""`python -m trainers COMMAND …`: the command line where the project is not installed, as in a job on a cluster."""

from trainers.cli import main

if __name__ == "__main__":
    main()
