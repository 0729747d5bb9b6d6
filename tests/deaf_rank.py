"""A rank that does not listen, started by torchrun."""

import signal
import time

for stop in (signal.SIGTERM, signal.SIGINT):
    signal.signal(stop, signal.SIG_IGN)
print("up", flush=True)
time.sleep(300)
