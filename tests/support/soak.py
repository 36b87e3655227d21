"""How long the long tests run: the environment variable SOAK multiplies their numbers (`make soak`)."""

import os

SOAK = int(os.environ.get("SOAK", "1"))
