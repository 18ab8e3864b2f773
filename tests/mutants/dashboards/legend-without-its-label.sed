# file: deploy/grafana/overview.py
# A legend shows a label that the aggregation has dropped.
s/("weni_edge_http_rejections_total", "reason"\) \+ NONZERO, )"\{\{reason\}\}"/\1"{{source}}"/
