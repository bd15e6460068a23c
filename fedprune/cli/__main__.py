"""`python -m fedprune.cli` is a run for those who use Hydra: `--multirun`, `--cfg`, launchers."""

from fedprune.cli.hydra_job import main

if __name__ == "__main__":
    main()
