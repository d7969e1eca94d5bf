"""For where the package is installed without an environment of its own."""

from __future__ import annotations

import sys

from clients.containerd_shim.main import main

sys.exit(main())
