# file: deploy/grafana/panels.py
# The variable of the instances asks for a metric that there is not.
s/label_values\(weni_edge_journal_capacity_bytes\{\{\{RELEASE\}\}\}, instance\)/label_values(weni_edge_capacity_bytes{{{RELEASE}}}, instance)/
