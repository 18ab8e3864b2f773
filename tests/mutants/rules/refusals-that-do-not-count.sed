# file: deploy/prometheus/rules.py
# Calls that are refused because the disk is slow do not count as bad.
s/journal_full\|journal_slow\|/journal_full|/
