"""Batches from files of token ids, in an order that depends on nothing but the step.

Files are DOMAIN.00000.npy, DOMAIN.00001.npy, ..., uint16 [rows, length + 1], written by data.py, perhaps while training
runs: where the next file is missing, earlier ones come again.
"""
import itertools
import os
import queue
import threading
import time

import numpy as np


def assign(mix, step=0):
    """Endless (domain, how many times it came before): at every place the domain that lags its share the most."""
    used = dict.fromkeys(mix, 0)
    for total in itertools.count():
        domain = max(mix, key=lambda d: mix[d] * (total + 1) - used[d])
        if total >= step:
            yield domain, used[domain]
        used[domain] += 1


class Reader:
    """Rows of one folder, by domain and running number."""

    def __init__(self, folder):
        self.folder, self.count, self.open, self.per_file = folder, {}, {}, {}

    def path(self, domain, i):
        return os.path.join(self.folder, f"{domain}.{i:05d}.npy")

    def file(self, domain, i):
        """File i, modulo those that exist; waits for the first."""
        n = self.count.get(domain, 0)
        while n <= i and os.path.exists(self.path(domain, n)):
            n += 1
        if n == 0 and not os.path.exists(self.path(domain, 0)):
            print(f"waiting for {self.path(domain, 0)}", flush=True)
        while n == 0:
            time.sleep(0.2)
            n = int(os.path.exists(self.path(domain, 0)))
        self.count[domain], i = n, i % n
        if self.open.get(domain, (-1,))[0] != i:
            self.open[domain] = i, np.load(self.path(domain, i))
        return self.open[domain][1]

    def rows(self, domain, number, count):
        """The `count` rows of group `number`: files are used from their start, whole groups only."""
        if domain not in self.per_file:
            found = len(self.file(domain, 0))
            if found < count:
                raise ValueError(f"{self.path(domain, 0)}: {found} rows, at least {count} (a group) are needed")
            self.per_file[domain] = found // count
        file, place = divmod(number, self.per_file[domain])
        return self.file(domain, file)[place * count : (place + 1) * count]


def batches(folder, mix, groups, group, step=0):
    """Endless (tokens uint16 [groups * group, length + 1], domain of each group as an index into `mix`). Each group
    of consecutive rows is of one domain; groups of a domain are neighbours."""
    reader, source, names = Reader(folder), assign(mix, step * groups), list(mix)
    while True:
        picked = sorted(itertools.islice(source, groups), key=lambda p: names.index(p[0]))
        yield (np.concatenate([reader.rows(d, number, group) for d, number in picked]),
               np.asarray([names.index(d) for d, _ in picked]))


def ahead(source, depth=8):
    """The items of `source`, made by a thread up to `depth` ahead, so that a GPU does not wait."""
    items, stop = queue.Queue(depth), object()

    def fill():
        try:
            for item in source:
                items.put(item)
            items.put(stop)
        except Exception as e:  # handed to the consumer
            items.put(e)

    threading.Thread(target=fill, daemon=True).start()
    while (item := items.get()) is not stop:
        if isinstance(item, Exception):
            raise item
        yield item
