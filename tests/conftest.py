"""What all tests share."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

pytest_plugins = ["tests.servers"]
