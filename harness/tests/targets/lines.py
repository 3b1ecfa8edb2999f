"""lines.py DIR LINES: three saves in place, none of them synced, and LINES other lines of output."""

import os
import sys

directory, lines = sys.argv[1], int(sys.argv[2])
path = os.path.join(directory, "checkpoint")
step = int(open(path).read() or 0) if os.path.exists(path) else 0
print("resumed from step", step, flush=True)
while step < 3:
    step += 1
    for number in range(lines // 3):
        os.write(1, b"loss %d\n" % number)
    for name in (".a", ".b", ""):
        with open(path + name, "w") as file:
            file.write(str(step))
    print("saved step", step, flush=True)
