"""Processes that tests start in place of real ones: a supervisor, children of a run, a server, holders of a device."""
