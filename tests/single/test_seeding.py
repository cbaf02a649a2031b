"""The global generators when several threads use them."""

import subprocess
import sys

PROGRAM = """
import gc, threading, time
from hvd_train.data.seeding import kept_generators, seed_globals
from hvd_train.state import generators

class Garbage:
    def __init__(self):
        self.own = self
    def __del__(self):
        time.sleep(0)

def use():
    for i in range(700):
        Garbage()
        more = [[] for _ in range(i % 7)]  # the collector runs at another place of the loop
        with kept_generators():
            seed_globals(i)
        generators.load(generators.state())

gc.set_threshold(5)
threads = [threading.Thread(target=use) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_keep_the_generators_do_not_wait_for_each_other():
    """In a process of its own: two threads that wait for each other stop the whole interpreter."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
