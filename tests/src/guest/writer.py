"""Writes numbered records to a file and makes each durable, until /tmp/enough is there.

usage: writer.py FILE ANSWERS

ANSWERS gets a line for each record: its number and how long it took, or its number and the error. After an error the file is opened
again, and the record written again.
"""

import os
import sys
import time

name, answers = sys.argv[1:]
number, fd = 0, -1
with open(answers, "w", buffering=1) as told:
    while not os.path.exists("/tmp/enough"):
        begun = time.monotonic()
        try:
            if fd < 0:
                fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644)
            os.pwrite(fd, b"%7d\n" % number, number * 8)
            os.fsync(fd)
            told.write(f"{number} {time.monotonic() - begun}\n")
            number += 1
        except OSError as error:
            told.write(f"{number} {error.strerror}\n")
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError:
                    pass
            fd = -1
            time.sleep(0.05)
