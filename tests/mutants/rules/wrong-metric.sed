# file: deploy/prometheus/rules.py
# The journal's room is judged by a metric that there is not.
s/weni_edge_journal_capacity_bytes\{\{\{JOB\}\}\} > 0\.8/weni_edge_journal_max_bytes{{{JOB}}} > 0.8/
