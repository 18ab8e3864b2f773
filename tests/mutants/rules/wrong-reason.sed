# file: deploy/prometheus/rules.py
# One of the reasons for which publishing waits is misspelt.
s/journal_diverged\|position_reset\|cluster_changed/journal_diverged|position_lost|cluster_changed/
