"""Keep tests offline, quiet and out of the user's folders."""

import os
import signal
import tempfile

os.environ.setdefault("FEDPRUNE_HOME", tempfile.mkdtemp(prefix="fedprune-tests-"))
# Small tensors and busy machines: a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell's background job ignores Ctrl-C and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
