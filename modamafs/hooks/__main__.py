"""``python -m modamafs.hooks``, as the worker starts it."""

import sys

from modamafs.hooks.process import main

sys.exit(main())
