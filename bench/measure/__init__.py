"""One harness for what is measured on real bases: cases in YAML, finished runs in a table that is gone on with."""
