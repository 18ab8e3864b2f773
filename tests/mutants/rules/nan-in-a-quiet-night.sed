# file: deploy/prometheus/rules.py
# The share of failed messages is recorded without traffic, too: NaN.
s/\/ \(sum by \(\{RELEASE\}\) \(rate\(weni_edge_statuses_total\{\{\{JOB\}\}\}\[1h\]\)\) > 0\)/\/ sum by ({RELEASE}) (rate(weni_edge_statuses_total{{{JOB}}}[1h]))/
