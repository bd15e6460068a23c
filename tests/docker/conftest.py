"""Says at the end how long every step took."""

from tests.support.compose import STEPS


def pytest_terminal_summary(terminalreporter, config):
    for name, seconds in config.stash.get(STEPS, {}).items():
        terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
