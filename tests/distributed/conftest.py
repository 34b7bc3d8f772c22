"""The scripts are started by the tests, on ranks of their own; pytest need not look into them for doctests."""

from __future__ import annotations


collect_ignore_glob = ["*_script.py", "rank_tools.py"]
