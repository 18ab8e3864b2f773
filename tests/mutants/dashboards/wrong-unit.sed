# file: deploy/grafana/overview.py
# A duration is shown in bytes.
s/"s", \("max\(weni_edge_journal_oldest/"bytes", ("max(weni_edge_journal_oldest/
