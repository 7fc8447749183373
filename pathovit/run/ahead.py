"""What a worker process needs, imported ahead of it: workers are forked from a process that has imported this and begun nothing.

To import torch and all the rest takes seconds. This is done once, while the scheduler is started beside it, and a worker that has to be
replaced is there at once. Nothing here may begin a thread or touch a device: neither outlives a fork.
"""

from __future__ import annotations

import gc
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that has workers, which ends them

import distributed  # noqa: E402, F401
import torch  # noqa: E402, F401

import pathovit.encoders.load  # noqa: E402
import pathovit.encoders.reference  # noqa: E402
import pathovit.model.slide_model  # noqa: E402
import pathovit.run.embed  # noqa: E402
import pathovit.run.finish  # noqa: E402
import pathovit.run.worker  # noqa: E402
import pathovit.show.overview  # noqa: E402, F401

gc.collect()
gc.freeze()  # what a collection does not look at, it does not write to: workers go on sharing these pages
