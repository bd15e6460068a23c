"""Ray for one simulation, started beside the SuperLink instead of after it.

Flower starts Ray when a run has begun and ends it before the run is over: six seconds of a job on
two cores, in which nothing else happens. Here it starts while the SuperLink does and while the run
is submitted; Flower finds it by ``RAY_ADDRESS``, and the supervisor ends it. It is run by path, and
what it is asked for is what Flower asks for. Without it: each simulation takes so much longer.
"""

import os
import signal
import sys


def main(arguments: list[str]) -> None:
    """Run Ray with ``[CPUS]`` until killed."""
    port = os.environ.pop("RAY_ADDRESS").rpartition(":")[2]
    os.environ["RAY_GCS_SERVER_PORT"] = port
    import ray

    ray.init(num_cpus=int(arguments[0]), include_dashboard=False, log_to_driver=False)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
