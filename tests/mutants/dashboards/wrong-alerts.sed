# file: deploy/grafana/overview.py
# The graph of alerts looks for alerts of another name.
s/alertname=~"WeniEdge\.\*"/alertname=~"Weni_Edge.*"/
