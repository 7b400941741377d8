"""Reads files by as many threads as there are processors, 16 MiB at a time, and throws away what it reads.

    read-by-all-cores.py [--sha256] FILE...

With --sha256 it also digests each piece. Neither reads nor digests hold Python's lock.
"""

import hashlib
import os
import sys
import threading

PIECE = 16 * 1024 * 1024

paths = sys.argv[1:]
digests = paths[:1] == ["--sha256"]
if digests:
    paths = paths[1:]


def pieces():
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        for offset in range(0, os.fstat(file).st_size, PIECE):
            yield file, offset


shared = pieces()
lock = threading.Lock()
failed = []


def lane():
    buffer = bytearray(PIECE)
    view = memoryview(buffer)
    try:
        while True:
            with lock:
                piece = next(shared, None)
            if piece is None:
                return
            length = os.preadv(piece[0], [buffer], piece[1])
            if digests:
                hashlib.sha256(view[:length]).digest()
    except OSError as error:
        failed.append(error)


threads = [threading.Thread(target=lane) for _ in os.sched_getaffinity(0)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failed:
    sys.exit(str(failed[0]))
