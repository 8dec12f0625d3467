"""Run a script with a lower limit of descriptors, as by `ulimit -n`: few_descriptors.py LIMIT SCRIPT ARGUMENT..."""

import resource
import runpy
import sys

if __name__ == "__main__":
    limit, *sys.argv = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
    runpy.run_path(sys.argv[0], run_name="__main__")
